"""Media of requests are loaded within size limits, or refused without revealing the inside (threats S1 to S4, S9).

No test leaves this machine: connections to outside addresses are counted and redirected to a local server.
"""

import asyncio
import base64
import ipaddress
import os
import re
import socket
import ssl
import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

import anyio
import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as pil

from polyphi.serve.admission.quotas import FairSlots, Pool
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer import fetch
from polyphi.serve.answer.fetch import Media
from polyphi.serve.http import addresses
from polyphi.serve.http.addresses import InvalidAddress, is_public, parse
from polyphi.serve.http.errors import ApiError
from tests.fixtures.images import image_file

PARAM = "messages[0].content[1].image_url.url"
PUBLIC, OTHER, SIXTH = "93.184.216.34", "151.101.1.140", "2606:2800:220:1:248:1893:25c8:1946"
PEM = Path(__file__).with_name("media_example_org.pem")  # an unused key, for these tests


def encoded(form: str = "PNG", side: int = 8) -> bytes:
    return image_file(pil.new("RGB", (side, side), "red"), form)


PICTURE, SECRET = encoded(), encoded(side=9)
Page = bytes | Callable[[socket.socket], None]


def page(body: bytes = PICTURE, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers]
    if not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def onward(where: str, status: str = "302 Found") -> bytes:
    return page(b"", f"Location: {where}", "Set-Cookie: a=b", status=status)


class Server:
    """A server on a port of 127.0.0.1 that returns `pages` (by path) and records its requests."""

    def __init__(self, tls: bool = False) -> None:
        self.pages: dict[str, Page] = {}
        self.heads: list[str] = []
        self.names: list[str | None] = []
        self.accepted = self.open = self.most = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._context = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(PEM)
            self._context.sni_callback = lambda _, name, __: self.names.append(name)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self.open += 1
            self.most = max(self.most, self.open)
        with suppress(OSError), connection:
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head and (more := connection.recv(4096)):
                head += more
            self.heads.append(head.decode())
            response = self.pages.get(head.split(b" ")[1].decode(), page(b"", status="404 None"))
            connection.sendall(response) if isinstance(response, bytes) else response(connection)
        with self._lock:
            self.open -= 1

    def close(self) -> None:
        self._listener.shutdown(
            socket.SHUT_RDWR
        )  # or its thread would wait for a connection forever
        self._listener.close()


class Net:
    """The world as the server sees it: names and their addresses (a list of answers is given one after the other),
    and every connection that was tried. Public addresses lead to `server`, or with port 443 to `secure`."""

    def __init__(self) -> None:
        self.server, self.secure = Server(), Server(tls=True)
        self.names: dict[str, list[str] | list[list[str]]] = {
            "media.example.org": [PUBLIC],
            "other.example.org": [OTHER],
            "inside.example.org": ["10.0.0.7"],
        }
        self.lookups: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.closed: set[str] = set()
        self._connect = anyio.connect_tcp

    def resolve(self, host: str, port: int) -> list[str]:
        self.lookups.append(host)
        if host not in self.names:
            raise socket.gaierror("no such host")
        ips = self.names[host]
        return ips.pop(0) if isinstance(ips[0], list) else ips

    async def connect(self, remote_host: str, remote_port: int, **options: object) -> object:
        self.connected.append((remote_host, remote_port))
        if remote_host in self.closed:
            raise OSError("refused")
        if not remote_host.startswith("127."):
            secure = remote_port == 443
            remote_host, remote_port = "127.0.0.1", (self.secure if secure else self.server).port
        return await self._connect(remote_host, remote_port)


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    net = Net()
    monkeypatch.setattr(anyio, "connect_tcp", net.connect)
    yield net
    net.server.close()
    net.secure.close()


TRUSTED = ssl.create_default_context(cafile=str(PEM))
ANY = Pool("bytes of requests", 1 << 30)


def media(net: Net | None = None, *remote: str, slots: int = 16, **settings: object) -> Media:
    """A loader that fetches `slots` addresses at once, also of one client."""
    chosen = Settings("phi", remote=remote, **{"fetch_seconds": 5.0, **settings})
    loader = Media(chosen, resolve=net.resolve if net else None, tls=TRUSTED)
    loader._slots = FairSlots(slots)
    return loader


def get(media: Media, url: str, kind: str = "image") -> bytes:
    return asyncio.run(getattr(media, kind)(url, PARAM))


def refused(media: Media, url: str, status: int = 400, kind: str = "image") -> str:
    """The error message, which contains no address, path or library output."""
    with pytest.raises(ApiError) as caught:
        get(media, url, kind)
    error = caught.value
    assert (error.status, error.param) == (status, PARAM), error.message
    assert not re.search(
        r"0x|\d+\.\d+\.\d+|::|/tmp|/etc|Errno|httpx|ssl|<|Traceback", error.message
    )
    return error.message


NOTHING = "the image could not be fetched from its address"


# Data URLs


def test_data_urls() -> None:
    plain = base64.b64encode(PICTURE).decode()
    for url in (
        "data:image/png;base64," + plain,
        "data:;base64," + plain,
        "DATA:text/plain;charset=x;BASE64," + base64.encodebytes(PICTURE).decode(),
        "data:image/png;base64," + quote(plain, safe=""),
        "data:image/png," + quote(PICTURE),
    ):
        assert get(media(), url) == PICTURE


def test_what_is_no_data_url() -> None:
    for url, status in (
        ("data:image/png;base64", 400),
        ("data:image/png;base64,!!!!", 400),
        ("data:image/png;base64,iVBORw0KGgo", 400),
        ("data:image/png;base64,iVBO=w0KGgo=", 400),
        ("data:image/png;base64,iVBORw0KGgö=", 400),
        ("data:image/png;base64,\ud800", 400),
        ("data:image/png,ö", 400),
        ("data:image/png;base64,", 415),
        ("data:image/png,hello", 415),
        ("ftp://media.example.org/a.png", 400),
        ("a.png", 400),
        ("", 400),
    ):
        refused(media(), url, status)


def test_data_urls_are_capped_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    small = media(max_image_bytes=len(PICTURE) - 1)
    for url in (
        "data:;base64," + base64.b64encode(PICTURE).decode(),
        "data:;base64," + "A" * 4000,
        "data:," + quote(PICTURE),
        "data:," + "A" * 4000,
    ):
        assert "bytes, found more" in refused(small, url, 413)
    assert get(media(max_image_bytes=len(PICTURE)), "data:," + quote(PICTURE)) == PICTURE
    monkeypatch.setattr(base64, "b64decode", None)
    monkeypatch.setattr(fetch, "unquote_to_bytes", None)
    for url in ("data:;base64," + "A" * 4000, "data:," + "A" * 4000):
        refused(small, url, 413)


def test_input_audio() -> None:
    clip = b"RIFF\0\0\0\0WAVEfmt "
    text = base64.b64encode(clip).decode()
    assert asyncio.run(media().input_audio(text, PARAM)) == clip
    assert media().decode_base64(f" {text[:5]}\n{text[5:]}", PARAM, 100) == clip
    for data, status in ((text[:-1], 400), ("Zm9v", 415), ("A" * 400, 413)):
        with pytest.raises(ApiError) as caught:
            asyncio.run(media(max_audio_bytes=16).input_audio(data, PARAM))
        assert caught.value.status == status


# Hosts


def test_remote_fetch_is_off_by_default(net: Net) -> None:
    message = refused(media(net), "http://media.example.org/a.png")
    assert "fetches nothing from other hosts" in message and "data URL" in message
    assert not net.lookups and not net.connected


def test_a_picture_and_a_clip_come_from_listed_hosts(net: Net) -> None:
    net.server.pages = {"/a.png?size=1&b=%20": page(), "/a.wav": page(b"RIFF\0\0\0\0WAVE")}
    loader = media(net, "media.example.org")
    assert get(loader, "http://Media.Example.org/a.png?size=1&b=%20#part") == PICTURE
    assert get(loader, "http://media.example.org/a.wav", "audio") == b"RIFF\0\0\0\0WAVE"
    assert net.connected == [(PUBLIC, 80)] * 2
    head = net.server.heads[0].lower()
    assert head.startswith("get /a.png?size=1&b=%20 http/1.1\r\nhost: media.example.org\r\n")
    assert "accept-encoding: identity" in head
    assert "found something else" in refused(loader, "http://media.example.org/a.wav", 415)


LISTED = [
    ("media.example.org", "http://media.example.org/a", True),
    ("MEDIA.example.org", "http://media.example.org:80/a", True),
    ("media.example.org", "http://other.example.org/a", False),
    ("media.example.org", "http://media.example.org:8000/a", False),
    ("media.example.org", "http://media.example.org:443/a", False),
    ("media.example.org:8000", "http://media.example.org:8000/a", True),
    ("media.example.org:8000", "http://media.example.org/a", False),
    ("*.example.org", "http://media.example.org/a", True),
    ("*.example.org", "http://example.org/a", False),
    ("*.example.org", "http://badexample.org/a", False),
    ("*.ample.org", "http://media.example.org/a", False),
    ("*", "http://media.example.org:8000/a", False),
    (PUBLIC, f"http://{PUBLIC}/a", True),
    ("*", f"http://[{SIXTH}]/a", True),
    (f"[{SIXTH}]:8000", f"http://[{SIXTH}]:8000/a", True),
    ("example.org", "http://media.example.org/a", False),
]
"""The list of hosts, an address, and whether it is fetched."""


def test_only_what_is_listed(net: Net) -> None:
    net.server.pages = {"/a": page()}
    net.names |= {"badexample.org": [OTHER], "example.org": [OTHER]}
    for remote, url, listed in LISTED:
        before = len(net.lookups), len(net.connected)
        if listed:
            assert get(media(net, remote), url) == PICTURE
        else:
            refused(media(net, remote), url)
            assert (len(net.lookups), len(net.connected)) == before, (remote, url)


def test_names_stand_in_tls_and_addresses_in_the_connection(net: Net) -> None:
    net.secure.pages = {"/a": page()}
    net.names["wrong.example.org"] = [PUBLIC]
    loader = media(net, "*")
    assert get(loader, "https://media.example.org/a") == PICTURE
    assert net.connected == [(PUBLIC, 443)] and net.secure.names == ["media.example.org"]
    assert refused(loader, "https://wrong.example.org/a") == NOTHING  # another name's certificate
    assert refused(loader, f"https://{PUBLIC}/a") == NOTHING
    assert len(net.secure.heads) == 1


NETWORKS = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "::/8", "64:ff9b::/96"),
    *("64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    *("4000::/2", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
]
NAMED = [
    *("127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fd00:ec2::254", "168.63.129.16"),
    *("100.100.100.200", "192.0.0.192", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"),
    *("fe80::1%1", SIXTH + "%1", "localhost", "127.1", "2130706433"),
]
"""Loopback, the metadata of clouds, public addresses within others, and what only a C library reads as an address."""
INSIDE = st.sampled_from(NETWORKS).flatmap(lambda network: st.ip_addresses(network=network))
SHARED = {"suppress_health_check": [HealthCheck.function_scoped_fixture], "deadline": None}


@given(INSIDE.map(str) | st.sampled_from(NAMED))
def test_what_is_public(host: str) -> None:
    assert not is_public(host)
    assert all(map(is_public, (PUBLIC, OTHER, SIXTH, "1.1.1.1", "2a00:1450:4001:82a::200e")))


@settings(max_examples=30, **SHARED)
@given(INSIDE.map(str) | st.sampled_from(NAMED))
def test_s1_addresses_of_the_inside_are_never_connected_to(net: Net, host: str) -> None:
    """Neither directly, nor behind a name, nor with a public address, whatever the list allows."""
    net.names |= {
        "bad.example.org": [host],
        "mixed.example.org": [PUBLIC, host],
        "late.example.org": [host, PUBLIC],
    }
    loader = media(net, "*", "*:8000", host, f"{host}:8000", "bad.example.org")
    written = f"[{host}]" if ":" in host else host
    for port in ("", ":8000"):
        refused(loader, f"http://{written}{port}/latest/meta-data/")
        for name in ("bad", "mixed", "late"):
            assert refused(loader, f"http://{name}.example.org{port}/") == NOTHING
            assert refused(loader, f"https://{name}.example.org{port}/") == NOTHING
    assert net.connected == []


def numbers(ip: ipaddress.IPv4Address) -> st.SearchStrategy[str]:
    """Forms of an address that C libraries read, other than four decimal numbers."""
    parts = [*ip.packed]
    head, last = ".".join(map(str, parts[:2])), parts[2] << 8 | parts[3]
    forms = [str(int(ip)), hex(int(ip)), f"0{int(ip):o}", f"{head}.{last}", f"{ip}."]
    forms += [".".join(map(hex, parts)), ".".join(f"0{part:o}" for part in parts)]
    return st.sampled_from(forms)


NAME = "media.example.org"
STRANGE = st.characters(
    exclude_characters=string.ascii_letters + string.digits + "-_./?#:", exclude_categories=["Cs"]
)
odd = st.tuples(st.integers(0, len(NAME)), STRANGE).map(
    lambda p: NAME[: p[0]] + p[1] + NAME[p[0] :]
)


ODD_HOSTS = [
    *("127.0.0.1.", "0127.0.0.1", "127.0.0.256", "1.2.3.4.5", "media.5", "media.example.org."),
    *(".example.org", "media..example.org", "-a.example.org", "", "localhost", "metadata"),
    *("a" * 64 + ".org", ".".join(["abc"] * 70), "user@media.example.org", "u:p@media.example.org"),
    *("media.example.org@127.0.0.1", "media.example.org\\@127.0.0.1", "①②⑦.0.0.1", "mеdia.org"),
    *("media.example.org:0", "media.example.org:", "media.example.org:80a", "a.org:99999"),
    *("media.example.org:-80", "media.example.org:８０", "a.org:80:80", "[::1", "::1", "[a.org]"),
    *("media.example.oRg\u212a", "[fe80::1%25eth0]", "[::ffff:127.0.0.1%1]"),
]


@settings(max_examples=60, **SHARED)
@given(st.ip_addresses(v=4).flatmap(numbers) | odd | st.sampled_from(ODD_HOSTS))
def test_s1_odd_hosts_are_not_even_looked_up(net: Net, host: str) -> None:
    for scheme in ("http", "https"):
        refused(media(net, "*", host), f"{scheme}://{host}/a.png")
    assert not net.lookups and not net.connected


@given(st.text("aB.:@/\\?#[]%10x-_ \t", max_size=20))
def test_s1_addresses_are_read_as_other_parsers_read_them(text: str) -> None:
    """What is checked is what is connected to, whoever parses it."""
    url = f"http://media.{text}"
    with suppress(InvalidAddress):
        address = parse(url)
        other = urlsplit(url)
        assert (address.host, address.port) == (other.hostname, other.port or 80)
        assert httpx2.URL(url).host == address.host


REDIRECTS = [
    *("http://127.0.0.1/", "http://127.0.0.1:{port}/", "http://169.254.169.254/latest/"),
    *("http://inside.example.org/", "//inside.example.org/", "http://[::ffff:10.0.0.1]/"),
    *("http://0x7f.1/", "http://user@other.example.org/", "http:\\127.0.0.1/"),
    *("file:///etc/passwd", "ftp://media.example.org/", "data:image/png;base64,iVBORw0KGgo="),
    *("http://media.example.org:{port}/a", "http://unlisted.org/a", "gopher://127.0.0.1/"),
    *("https://media.example.org:8443/a", "http://media.example.org:443/a"),
]


def test_s1_redirects_are_judged_anew(net: Net) -> None:
    trap = Server()
    net.names["unlisted.org"] = [PUBLIC]
    # The port is listed, but a redirect may not change it.
    listed = ("*.example.org", f"*.example.org:{trap.port}", "127.0.0.1", f"127.0.0.1:{trap.port}")
    loader = media(net, *listed, local=Path("/etc"))
    for number, where in enumerate(REDIRECTS, 1):
        net.server.pages = {"/": onward(where.format(port=trap.port)), "/a": page()}
        assert refused(loader, "http://media.example.org/") == NOTHING
        assert net.connected == [(PUBLIC, 80)] * number, where
    assert trap.accepted == 0
    trap.close()


def test_s1_redirects_are_few_and_never_lead_out_of_tls(net: Net) -> None:
    for status in ("301 Moved", "302 Found", "303 See", "307 There", "308 There"):
        net.server.pages |= {"/": onward("http://other.example.org/a", status), "/a": page()}
        assert get(media(net, "*"), "http://media.example.org/") == PICTURE
    assert net.connected[:2] == [(PUBLIC, 80), (OTHER, 80)]
    assert "cookie" not in "".join(net.server.heads).lower()
    net.server.pages |= {f"/{i}": onward(f"/{i + 1}") for i in range(6)} | {"/5": page()}
    assert get(media(net, "*"), "http://media.example.org/0") == PICTURE
    net.server.pages |= {"/5": onward("6"), "/6": page()}
    before = len(net.connected)
    assert refused(media(net, "*"), "http://media.example.org/0") == NOTHING
    assert len(net.connected) == before + 6
    net.server.pages |= {"/up": onward("https://media.example.org/a")}
    net.secure.pages |= {"/a": page(), "/down": onward("http://media.example.org/a")}
    assert get(media(net, "*"), "http://media.example.org/up") == PICTURE
    before = len(net.server.heads)
    assert refused(media(net, "*"), "https://media.example.org/down") == NOTHING
    net.server.pages |= {"/none": onward("")}
    assert refused(media(net, "*"), "http://media.example.org/none") == NOTHING
    assert len(net.server.heads) == before + 1


def test_s1_proxies_and_credentials_of_the_environment_are_not_used(
    net: Net, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trap = Server()
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{trap.port}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{trap.port}")
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    net.server.pages = {"/a": page()}
    assert get(media(net, "*"), "http://media.example.org/a") == PICTURE
    assert trap.accepted == 0 and "authorization" not in net.server.heads[0].lower()
    trap.close()


def test_s2_a_name_is_looked_up_once_and_its_address_kept(net: Net) -> None:
    """A name that is public when checked and internal when connected to: it is resolved only once."""
    net.server.pages = {"/a": page(), "/twice": onward("/a")}
    net.names["media.example.org"] = [[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]]
    assert get(media(net, "*"), "http://media.example.org/a") == PICTURE
    assert net.lookups == ["media.example.org"] and net.connected == [(PUBLIC, 80)]
    net.names["media.example.org"] = [[PUBLIC], ["127.0.0.1"]]
    assert refused(media(net, "*"), "http://media.example.org/twice") == NOTHING
    assert len(net.lookups) == 3 and net.connected == [(PUBLIC, 80)] * 2
    # Where the first address doesn't answer, the next one of the same look is tried.
    net.names["media.example.org"] = [[OTHER, SIXTH, PUBLIC], ["127.0.0.1"]]
    net.closed = {OTHER, SIXTH}
    assert get(media(net, "*"), "http://media.example.org/a") == PICTURE
    assert len(net.lookups) == 4
    assert net.connected[-3:] == [(OTHER, 80), (SIXTH, 80), (PUBLIC, 80)]


def test_the_systems_own_answer_is_judged_too() -> None:
    """Without a stub: `localhost` in any hosts file, and number formats that only the C library parses."""
    ips = addresses.resolve_host("localhost", 80)
    assert ips and not any(map(is_public, ips))
    with pytest.raises(OSError, match=r"."):
        addresses.resolve_host("nothing.invalid", 80)


def drip(connection: socket.socket) -> None:
    connection.sendall(page(b"", "Content-Length: 1000"))
    with suppress(OSError):
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.05)


def silence(connection: socket.socket) -> None:
    connection.recv(1)


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with suppress(OSError):
        while True:
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def endless_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    with suppress(OSError):
        while True:
            connection.sendall(b"X-More: " + b"x" * 8000 + b"\r\n")


@pytest.mark.parametrize("slow", [drip, silence])
def test_s4_slow_hosts_end_at_the_deadline(net: Net, slow: Page) -> None:
    net.server.pages = {"/a": slow, "/on": onward("/a")}
    for path in ("a", "on"):
        start = time.monotonic()
        message = refused(media(net, "*", fetch_seconds=0.3), f"http://media.example.org/{path}")
        assert message == NOTHING and 0.2 < time.monotonic() - start < 9  # all takes 10 s


def test_s4_names_that_never_resolve_end_at_the_deadline(net: Net) -> None:
    release = threading.Event()
    loader = Media(
        Settings("phi", remote=("*",), fetch_seconds=0.2),
        resolve=lambda *_: release.wait(20) and [],
    )
    start = time.monotonic()
    assert refused(loader, "http://media.example.org/") == NOTHING
    assert time.monotonic() - start < 15 and not net.connected
    release.set()
    loader.close()


def test_s4_bytes_are_capped_as_they_come(net: Net) -> None:
    packed = page(PICTURE, "Content-Encoding: gzip")
    net.server.pages = {
        "/big": page(b"x" * 5000),
        "/promise": page(b"", "Content-Length: 999999999999"),
        "/endless": endless,
        "/head": endless_head,
        "/lie": page(PICTURE + b"y" * 9000, f"Content-Length: {len(PICTURE)}"),
        "/short": page(PICTURE, "Content-Length: 900"),
        "/nonsense": page(PICTURE, "Content-Length: -1"),
        "/gzip": packed,
        "/packed": page(PICTURE, "Content-Encoding: br, zstd"),
        "/not": b"SSH-2.0-OpenSSH_9.9\r\n",
        "/none": b"",
    }
    loader = media(net, "*", max_image_bytes=1000)
    for path in ("big", "promise", "endless"):
        message = refused(loader, f"http://media.example.org/{path}", 413)
        assert message == "expected at most 1,000 bytes, found more"
    for path in ("head", "short", "nonsense", "gzip", "packed", "not", "none"):
        assert refused(loader, f"http://media.example.org/{path}") == NOTHING
    # No more is taken than was promised.
    assert get(loader, "http://media.example.org/lie") == PICTURE


def test_s4_few_are_fetched_at_once(net: Net) -> None:
    fetches, counts = 0, []

    def late(connection: socket.socket) -> None:
        nonlocal fetches
        fetches += 1
        counts.append(fetches)
        time.sleep(0.05)
        fetches -= 1  # before the client can go on with the next one
        connection.sendall(page())

    net.server.pages = {"/a": late}
    loader = media(net, "*", slots=2)

    async def all_at_once() -> list[bytes]:
        with (
            loader.request(b"a", ANY.take(b"a", 0)) as one,
            loader.request(b"b", ANY.take(b"b", 0)) as other,
        ):
            loads = [one.image("http://media.example.org/a", PARAM) for _ in range(4)]
            loads += [other.image("http://media.example.org/a", PARAM) for _ in range(4)]
            return await asyncio.gather(*loads)

    assert asyncio.run(all_at_once()) == [PICTURE] * 8
    assert max(counts) == 2


def test_s4_a_request_and_all_of_them_hold_so_much(net: Net, tmp_path: Path) -> None:
    """A thousand URLs in one small request don't bypass the limit on bodies."""
    net.server.pages = {"/a": page()}
    (tmp_path / "a.png").write_bytes(PICTURE)
    urls = ["http://media.example.org/a", f"file://{tmp_path}/a.png"]
    size = len(PICTURE)
    loader = media(net, "*", local=tmp_path, max_body_bytes=3 * size)
    pool = Pool("bytes", 5 * size)

    async def ask() -> list[int]:
        with loader.request(b"a", pool.take(b"a", 0)) as one:
            for number in range(3):
                await one.image(urls[number % 2], PARAM)
            results = []
            with loader.request(b"b", pool.take(b"b", 0)) as other:
                for who, url in (
                    (one, urls[0]),
                    (one, urls[1]),
                    (other, urls[0]),
                    (other, urls[1]),
                ):
                    try:
                        await who.image(url, PARAM)
                        results.append(200)
                    except ApiError as error:
                        results.append(error.status)
                try:
                    await other.image(urls[1], PARAM)
                except ApiError as error:
                    assert error.headers == {"Retry-After": "5"} and error.param == PARAM
                    results.append(error.status)
            return results

    for _ in range(2):  # what the first ones reserved is free again
        assert asyncio.run(ask()) == [413, 413, 200, 200, 429]


def test_b9_media_of_one_client_leave_memory_to_others(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    url, size = f"file://{tmp_path}/a.png", len(PICTURE)
    loader = media(local=tmp_path, max_body_bytes=2 * size)
    pool = Pool("bytes", 4 * size)

    async def load() -> list[int | str]:
        results: list[int | str] = []
        with (
            loader.request(b"a", pool.take(b"a", 0)) as one,
            loader.request(b"a", pool.take(b"a", 0)) as two,
            loader.request(b"b", pool.take(b"b", 0)) as other,
        ):
            for who in (one, two, two, one, other):
                try:
                    await who.image(url, PARAM)
                    results.append(200)
                except ApiError as error:
                    results.append(error.message)
        return results

    refused_ = "the memory for media of this client's requests is full; try again later"
    assert asyncio.run(load()) == [200, 200, 200, refused_, 200]


def test_a_fetch_has_its_time_from_its_turn_on(net: Net) -> None:
    def late(connection: socket.socket) -> None:
        time.sleep(1)
        connection.sendall(page())

    net.server.pages = {"/a": late}
    loader = media(net, "*", slots=1, fetch_seconds=3)

    async def all_at_once() -> list[bytes]:
        with loader.request(b"a", ANY.take(b"a", 0)) as one:
            loads = [one.image("http://media.example.org/a", PARAM) for _ in range(5)]
            return await asyncio.gather(*loads)

    assert asyncio.run(all_at_once()) == [PICTURE] * 5


def test_a_fetch_whose_turn_does_not_come_is_refused(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "WAIT_SECONDS", 0.2)
    net.server.pages = {"/a": silence, "/b": page()}
    loader = media(net, "*", slots=1, fetch_seconds=2)

    async def both() -> list[bytes | BaseException]:
        with (
            loader.request(b"a", ANY.take(b"a", 0)) as one,
            loader.request(b"b", ANY.take(b"b", 0)) as other,
        ):
            loads = [
                one.image("http://media.example.org/a", PARAM),
                other.image("http://media.example.org/b", PARAM),
            ]
            return await asyncio.gather(*loads, return_exceptions=True)

    slow, waiting = asyncio.run(both())
    assert isinstance(slow, ApiError) and (slow.status, slow.message) == (400, NOTHING)
    assert isinstance(waiting, ApiError) and waiting.status == 429
    assert (waiting.code, waiting.param) == ("queue_full", PARAM)
    assert int(waiting.headers["Retry-After"]) >= 1


def test_s9_nothing_is_told_of_what_is_inside(net: Net) -> None:
    """An unknown name, an internal name, a closed port, an error, another status: the same message."""
    net.server.pages = {"/404": page(b"no", status="404 None"), "/500": page(status="500 Oh")}
    net.names["closed.example.org"] = [OTHER]
    net.closed = {OTHER}
    messages = {
        refused(media(net, "*"), url)
        for url in (
            "http://unknown.example.org/",
            "http://inside.example.org/",
            "http://127.0.0.1/",
            "http://closed.example.org/",
            "http://media.example.org/404",
            "http://media.example.org/500",
            "https://inside.example.org/",
        )
    }
    assert messages == {NOTHING}


# Files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`root`, the media folder, beside secrets."""
    folder = tmp_path_factory.mktemp("files")
    root = folder / "root"
    (root / "deep" / "er").mkdir(parents=True)
    (folder / "rootless").mkdir()
    for path in ("root/a.png", "root/deep/er/b c.png", "root/%2e"):
        (folder / path).write_bytes(PICTURE)
    for path in ("secret.png", "rootless/c.png"):
        (folder / path).write_bytes(SECRET)
    (root / "out.png").symlink_to(folder / "secret.png")
    (root / "in.png").symlink_to(root / "a.png")
    (root / "up").symlink_to(folder)
    (root / "round").symlink_to(root / "deep")
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(os.path.relpath(root / "plug.png"))
    return folder


def test_files_are_read_below_the_root(folder: Path) -> None:
    loader = media(local=folder / "root")
    for name in ("a.png", "deep/er/b%20c.png", "deep/er/b c.png", "%252e"):
        assert get(loader, f"file://{folder}/root/{name}") == PICTURE
    link = folder / "link"
    link.symlink_to(folder / "root")  # a root that is a link is the operator's own choice
    for root in (link, folder / "root"):
        assert get(media(local=link), f"file://{root}/a.png") == PICTURE


def test_s3_files_are_refused_by_default(folder: Path) -> None:
    assert "reads no files" in refused(media(), f"file://{folder}/root/a.png")


NAMES = [
    *("root", "deep", "er", "a.png", "b%20c.png", "secret.png", "rootless", "c.png", "none.png"),
    *("..", ".", "", "%2e%2e", ".%2E", "%2e", "up", "out.png", "in.png", "round", "pipe.png"),
    *("plug.png", "a.png%00", "a.png%00.jpg", "%ff", "..%c0%af", "a.png?x", "a.png#x", "a" * 300),
]
FILES = {"root/a.png", "root/deep/er/b%20c.png"}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(NAMES), max_size=5), st.sampled_from(["/", "%2f", "//"]))
def test_s3_no_path_leads_out_of_the_root(folder: Path, names: list[str], slash: str) -> None:
    """Nor to a link, a pipe, a socket or a folder: only plain paths are read."""
    path = slash.join(["root", *names])
    if path not in FILES:
        assert "media folder" in refused(media(local=folder / "root"), f"file://{folder}/{path}")


@pytest.mark.parametrize(
    "url",
    [
        *("file:///dev/zero", "file:///proc/self/environ", "file:///etc/passwd"),
        *("file://etc/passwd", "file://localhost{root}/a.png", "file://host{root}/a.png"),
        *(
            "file:a.png",
            "file://",
            "file:///a.png",
            "file://..{root}/a.png",
            "file:////{root}/a.png",
        ),
        *(
            "file://{root}/../secret.png",
            "file://{root}/%2e%2e/secret.png",
            "file://{root}/out.png",
        ),
        *("file://{root}less/c.png", "file://{root}/up/secret.png", "file://{root}/\ud800"),
        "file://{root}/" + "a" * 5000,
    ],
)
def test_s3_other_places(folder: Path, url: str) -> None:
    message = refused(media(local=folder / "root"), url.format(root=folder / "root"))
    assert "media folder" in message


def test_s3_devices_and_unreadable_files() -> None:
    for name in ("null", "zero", "full"):
        assert "media folder" in refused(media(local=Path("/dev")), f"file:///dev/{name}")


def test_s3_files_are_capped(folder: Path) -> None:
    url = f"file://{folder}/root/a.png"
    small = media(local=folder / "root", max_image_bytes=len(PICTURE) - 1)
    assert "bytes, found more" in refused(small, url, 413)
    with (folder / "root" / "hole.png").open("wb") as file:
        file.truncate(1 << 40)
    assert "bytes, found more" in refused(
        media(local=folder / "root"), url.replace("a.png", "hole.png"), 413
    )
    (folder / "root" / "notes.png").write_text("my password is")
    assert "found something else" in refused(
        media(local=folder / "root"), url.replace("a.png", "notes.png"), 415
    )


# Addresses


def test_addresses_are_taken_apart() -> None:
    address = parse("HTTPS://Media.Example.ORG:8443?q=ü#x")
    assert (address.scheme, address.host, address.port) == ("https", "media.example.org", 8443)
    assert (address.target, address.authority) == ("/?q=%C3%BC", "media.example.org:8443")
    assert parse("http://1.2.3.4").authority == "1.2.3.4"
    assert parse(f"http://[{SIXTH}]/").authority == f"[{SIXTH}]"
    assert parse("https://xn--bcher-kva.example/a").host == "xn--bcher-kva.example"
    for bad in ("http://a.org/" + "a" * 5000, "http:/a.org/", "http:a.org", "http://a.org/ b"):
        with pytest.raises(ValueError, match=r"address"):
            parse(bad)
