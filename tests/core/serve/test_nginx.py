"""deploy/nginx.conf before a real server: names, streams, sessions, large bodies, and clients that are slow."""

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from starlette.responses import Response
from websockets.sync.client import connect

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from tests.fixtures.processes import free_port
from tests.fixtures.servers import Running, serving

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
CONFIG = Path(__file__).parents[3] / "deploy" / "nginx.conf"
NAME = "phi.example.org"
MAIN = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/polyphi.conf;
}}
"""
CHAT = "/v1/chat/completions"
SHORT = {"messages": [{"role": "user", "content": "1 + 2"}], "max_tokens": 4}

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs Debian's nginx-light")


@dataclass
class Proxied:
    """A server, and nginx before it on `port`."""

    running: Running
    port: int

    def client(self, host: str = NAME, **headers: str) -> httpx2.Client:
        url = f"http://127.0.0.1:{self.port}"
        return httpx2.Client(
            base_url=url, headers={"host": host, **headers}, timeout=60, trust_env=False
        )

    def dial(self, data: bytes) -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        peer.sendall(data)
        return peer

    @property
    def unsent(self) -> int:
        """Bytes of responses that nginx has not read."""
        connections = self.running.uvicorn.server_state.connections
        return sum(each.transport.get_write_buffer_size() for each in connections)

    @property
    def requests(self) -> int:
        """Those that have reached the server and are not answered."""
        return len(self.running.uvicorn.server_state.tasks)


@contextmanager
def proxied(engine: Engine, folder: Path, changes: Mapping[str, str] = {}) -> Iterator[Proxied]:
    """`changes`: other settings in place of those of deploy/nginx.conf for which a test would wait too long."""
    with serving(engine, Settings("tiny", hosts=(NAME,))) as running:
        port = free_port()
        config = CONFIG.read_text()
        edits = {
            "127.0.0.1:8000": running.url.removeprefix("http://"),
            "listen 80;": f"listen 127.0.0.1:{port};",
            **changes,
        }
        for old, new in edits.items():
            assert config.count(old) == 1, old
            config = config.replace(old, new)
        (folder / "polyphi.conf").write_text(config)
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
        assert NGINX
        command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
        with subprocess.Popen(command) as process:
            try:
                until(lambda: process.poll() is not None or answers(port))
                assert process.poll() is None
                yield Proxied(running, port)
            finally:
                process.kill()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionError:
        return False
    return True


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while True:
        with suppress(BlockingIOError):
            if true():
                return
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def proxy(shared_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxied(shared_engine, tmp_path_factory.mktemp("nginx")) as result:
        yield result


def test_a_chat_and_the_page_pass_and_other_names_are_refused(proxy: Proxied) -> None:
    """The server sees the client's own Host: of a page on another name that resolves here, too."""
    for host in (NAME, f"{NAME}:8443", "localhost"):
        with proxy.client(host) as client:
            assert client.post(CHAT, json=SHORT).status_code == 200
            assert client.get("/").text.startswith("<!doctype html>")
    for host in ("evil.example", "127.0.0.1.evil.example", "polyphi"):
        with proxy.client(host) as client:
            refused = client.post(CHAT, json=SHORT)
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "host_not_allowed"
    with proxy.client(origin=f"http://{NAME}") as client:
        assert client.post(CHAT, json=SHORT).status_code == 200
    with proxy.client(origin="http://evil.example") as client:
        assert client.post(CHAT, json=SHORT).status_code == 403
    with proxy.dial(b"GET /v1/models HTTP/1.0\r\n\r\n") as peer:
        assert peer.recv(1000).split()[1] == b"403"  # no name


def test_a_stream_arrives_in_pieces(proxy: Proxied, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first event arrives while the server computes the next one."""
    engine, go_on = proxy.running.engine, threading.Event()
    run, before = type(engine.runner).run, engine.counters().tokens

    def waits(*args: object) -> object:
        if engine.counters().tokens > before + 5:
            assert go_on.wait(60)
        return run(*args)

    monkeypatch.setattr(type(engine.runner), "run", waits)
    body = {**SHORT, "stream": True, "max_tokens": 50, "ignore_eos": True}
    with proxy.client() as client, client.stream("POST", CHAT, json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert not go_on.is_set()
        go_on.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_client_that_leaves_ends_its_request(proxy: Proxied) -> None:
    body = {**SHORT, "stream": True, "max_tokens": 1900, "ignore_eos": True}
    with proxy.client() as client, client.stream("POST", CHAT, json=body) as answer:
        next(answer.iter_lines())
    until(proxy.running.idle)


def test_a_session_of_live_transcription(proxy: Proxied) -> None:
    url = f"ws://localhost:{proxy.port}/v1/realtime?intent=transcription"
    with connect(url) as session:
        assert json.loads(session.recv(60))["type"] == "session.created"
        session.send(json.dumps({"type": "input_audio_buffer.clear"}))
        assert json.loads(session.recv(60))["type"] == "input_audio_buffer.cleared"
    until(lambda: not proxy.requests)


def test_an_offer_of_http2_is_no_websocket(proxy: Proxied) -> None:
    """Java's client makes it with each request."""
    with proxy.client(
        connection="upgrade, http2-settings", upgrade="h2c", **{"http2-settings": "AAAA"}
    ) as client:
        for _ in range(2):
            assert client.post(CHAT, json=SHORT).status_code == 200


def test_a_large_upload_passes_and_a_larger_one_is_refused(proxy: Proxied) -> None:
    with proxy.client() as client:
        counted = client.post("/tokenize", json={"prompt": "the quick brown fox " * 200_000})
        assert counted.status_code == 200 and counted.json()["count"] > 200_000
    head = b"POST /tokenize HTTP/1.1\r\nhost: phi.example.org\r\ncontent-type: application/json\r\n"
    with proxy.dial(head + b"content-length: 104857601\r\n\r\n") as peer:
        assert peer.recv(1000).split()[1] == b"413"


def test_a_slow_client_occupies_nginx_alone(engine: Engine, tmp_path: Path) -> None:
    """The server sees neither half a request nor an unread response; nginx ends headers that don't come."""
    changes = {"client_header_timeout 10s": "client_header_timeout 2s"}
    with proxied(engine, tmp_path, changes) as proxy:
        body = json.dumps(SHORT).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {NAME}\r\ncontent-type: application/json\r\n"
        start = f"{head}content-length: {len(body)}\r\n\r\n".encode()
        with proxy.dial(start + body[:-1]) as peer:
            time.sleep(1)
            assert proxy.requests == 0
            peer.sendall(body[-1:])
            assert peer.recv(1000).split()[1] == b"200"
        with proxy.dial(start[:-2]) as peer:
            assert peer.recv(1000) == b""
        app = proxy.running.uvicorn.config.app
        app.add_api_route("/large", lambda: Response(bytes(50_000_000)))  # type: ignore[union-attr]
        with proxy.dial(f"GET /large HTTP/1.1\r\nhost: {NAME}\r\n\r\n".encode()) as peer:
            peek = socket.MSG_PEEK | socket.MSG_DONTWAIT
            until(lambda: peer.recv(1, peek))
            time.sleep(1)  # the server writes the whole body
            until(lambda: not proxy.unsent)
            received = 0
            while received < 50_000_000:  # it is nginx that has it
                part = peer.recv(1 << 20)
                assert part
                received += len(part)


def test_an_address_has_a_rate_of_requests(engine: Engine, tmp_path: Path) -> None:
    changes = {"rate=20r/s": "rate=1r/m", "burst=100 nodelay": "burst=3 nodelay"}
    with proxied(engine, tmp_path, changes) as proxy, proxy.client() as client:
        statuses = [client.get("/version").status_code for _ in range(6)]
        assert statuses == [200] * 4 + [429] * 2
