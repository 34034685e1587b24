"""What a request names as a picture or a clip -> its bytes, within caps.

>>> media = Media(settings)
>>> with media.request() as named:               # all that one request names, together within caps of its own
...     data = await named.image("data:image/png;base64,iVBORw0...", "messages[0].content[1].image_url.url")

Three kinds of address: data URLs; http(s) where the server was started with `remote` hosts; files where it was given a
`local` folder. Whoever sends an address is taken for an enemy who wants to reach what only this machine can reach:

- A host must be on the list, in plain spelling, and all its addresses public. They are looked up once, and the very
  address that was judged is connected to. A redirect is judged like a new address.
- A file is opened folder by folder below the root, without following any link, and must be a regular file.
- Why an address gave nothing is not told apart, so that no answer says whether something inside was there.
"""

import asyncio
import base64
import binascii
import logging
import os
import ssl
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes, urljoin

import httpx2

from polyphi.engine.media import MediaError, is_audio, is_image
from polyphi.serve.addresses import (
    PORTS,
    Address,
    WrongAddress,
    _as_ip,
    is_public,
    look_up,
    parse,
)
from polyphi.serve.errors import ApiError
from polyphi.serve.settings import Settings

Kind = Literal["image", "audio"]
WORDS: dict[str, str] = {"image": "picture", "audio": "clip"}
EXPECTED: dict[str, str] = {
    "image": "a PNG, JPEG, WebP, GIF or BMP picture",
    "audio": "a WAV, FLAC, OGG or MP3 clip",
}

REDIRECTS = 5
FETCHES = 16
"""Addresses fetched at once, for all requests."""
CONNECT_SECONDS = 5.0
"""For one of a host's addresses; the next one is tried then."""
ADDRESSES = 4
"""Of a host, tried in their order."""
Resolve = Callable[[str, int], Sequence[str]]


class Media:
    """One for a server; safe to use from all requests of one event loop. `resolve` and `tls` are there for tests."""

    def __init__(
        self,
        settings: Settings,
        *,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.settings = settings
        self._resolve, self._tls = resolve or look_up, tls
        self._turns = asyncio.Semaphore(FETCHES)
        # Threads of their own: name servers that don't answer must not take those that others work in.
        self._resolvers = ThreadPoolExecutor(FETCHES, "look up hosts")
        self._all = Held(settings.max_bodies_bytes)
        self._own: Held | None = None
        if settings.remote:
            self._tls = tls or httpx2.create_ssl_context(trust_env=False)
            logging.getLogger("httpx2").setLevel(logging.WARNING)  # it tells every address

    @contextmanager
    def request(self) -> "Iterator[Media]":
        """The same for one request: what it has fetched and read is at most `max_body_bytes`, as if it had been sent,
        and counts among what all requests hold until this ends."""
        one = copy(self)
        one._own = Held(self.settings.max_body_bytes, within=self._all)
        try:
            yield one
        finally:
            one._own.release()

    def close(self) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def image(self, url: str, param: str) -> bytes:
        """The picture at a data:, http(s):// or file:// address. Raises ApiError: 400 for an address that is wrong,
        refused or gives nothing, 413 above a cap, 415 for bytes that are no picture."""
        return await self._at(url, "image", param)

    async def audio(self, url: str, param: str) -> bytes:
        """The clip at such an address; raises as `image` does."""
        return await self._at(url, "audio", param)

    async def input_audio(self, data: str, param: str) -> bytes:
        """The clip in base64 that an `input_audio` part holds; raises as `image` does."""
        limit = self.settings.max_audio_bytes
        return checked(await asyncio.to_thread(self.decoded, data, param, limit), "audio", param)

    def decoded(self, data: str, param: str, limit: int) -> bytes:
        """Base64 as bytes: the standard alphabet with its padding; white space may stand anywhere. Raises ApiError 400,
        and 413 for more than `limit` bytes."""
        try:
            plain = data.encode("ascii").translate(None, b" \t\r\n\f")
            if len(plain) > (limit + 2) // 3 * 4:
                raise _too_large(limit, param)
            found = base64.b64decode(plain, validate=True)
        except (UnicodeEncodeError, binascii.Error):
            raise ApiError(
                400, "expected base64 (A-Z, a-z, 0-9, +, / and = at the end)", param=param
            ) from None
        if len(found) > limit:
            raise _too_large(limit, param)
        return found

    async def _at(self, url: str, kind: Kind, param: str) -> bytes:
        settings = self.settings
        limit = settings.max_image_bytes if kind == "image" else settings.max_audio_bytes
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            data = await asyncio.to_thread(self._inline, url, param, limit)
        elif scheme in PORTS:
            data = await self._remote(url, kind, param, limit)
        elif scheme == "file":
            data = await asyncio.to_thread(self._local, url, param, limit)
        else:
            raise ApiError(
                400,
                f"expected the {WORDS[kind]} as a data URL (data:...;base64,...) or an http(s) address",
                param=param,
            )
        return checked(data, kind, param)

    def _inline(self, url: str, param: str, limit: int) -> bytes:
        """A data URL's bytes. What it says of their kind is not believed, so not read either."""
        head, comma, body = url.partition(",")
        if not comma:
            raise ApiError(400, "expected a data URL with a comma before its data", param=param)
        if head.strip().lower().endswith(";base64"):
            if "%" in body:
                body = _unquoted(body, param).decode("latin-1")
            return self.decoded(body, param, limit)
        if len(body) > 3 * limit:
            raise _too_large(limit, param)
        data = _unquoted(body, param)
        if len(data) > limit:
            raise _too_large(limit, param)
        return data

    def _take(self, count: int, param: str) -> None:
        """Counts bytes that came from outside the request."""
        full = self._own.take(count) if self._own else None
        if full is self._own and full is not None:
            raise ApiError(
                413,
                f"expected at most {full.limit:,} bytes in all media of a request, found more",
                param=param,
            )
        if full is not None:
            raise ApiError(
                429,
                "the server holds as many media as it may; try again later",
                param=param,
                headers={"Retry-After": "5"},
            )

    # Files

    def _local(self, url: str, param: str, limit: int) -> bytes:
        root = self.settings.local
        if root is None:
            raise ApiError(
                400, "this server reads no files of its own; send a data URL instead", param=param
            )
        parts = _below(root, url)
        try:
            descriptor = _open(root, parts) if parts else None
        except (OSError, ValueError):  # the latter for a name with a NUL
            descriptor = None
        if descriptor is None:
            raise ApiError(
                400, "expected a file below the folder of media, found none there", param=param
            )
        with open(descriptor, "rb", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            if size > limit:
                raise _too_large(limit, param)
            self._take(size, param)
            return file.read(size)

    # Hosts

    async def _remote(self, url: str, kind: Kind, param: str, limit: int) -> bytes:
        if not self.settings.remote:
            raise ApiError(
                400,
                f"this server fetches nothing from other hosts; send the {WORDS[kind]} as a data URL "
                "(data:...;base64,...)",
                param=param,
            )
        try:
            async with asyncio.timeout(self.settings.fetch_seconds), self._turns:
                return await self._follow(parse(url), param, limit)
        except WrongAddress as wrong:
            raise ApiError(400, str(wrong), param=param) from None
        except (_Nothing, TimeoutError, OSError, httpx2.HTTPError, httpx2.InvalidURL):
            raise ApiError(
                400, f"the {WORDS[kind]} could not be fetched from its address", param=param
            ) from None

    async def _follow(self, address: Address, param: str, limit: int) -> bytes:
        """The bytes at an address, or where it sends us. Each stop is judged anew."""
        for _ in range(REDIRECTS + 1):
            if not self._listed(address):
                raise WrongAddress("this server doesn't fetch from that host (or port)")
            found = await self._get(address, await self._addresses(address), param, limit)
            if isinstance(found, bytes):
                return found
            try:
                onward = parse(
                    urljoin(f"{address.scheme}://{address.written}{address.target}", found)
                )
            except ValueError:  # also WrongAddress: who sent the address didn't write this one
                raise _Nothing from None
            usual = address.port == PORTS[address.scheme] and onward.port == PORTS[onward.scheme]
            if not (usual or onward.port == address.port) or not self._listed(onward):
                raise _Nothing
            if (address.scheme, onward.scheme) == ("https", "http"):
                raise _Nothing
            address = onward
        raise _Nothing

    def _listed(self, address: Address) -> bool:
        for entry in self.settings.remote:
            name, colon, port = entry.lower().rpartition(":")
            if not colon or not port.isdigit():
                name, port = entry.lower(), str(PORTS[address.scheme])
            name = name.removeprefix("[").removesuffix("]")
            below = name.startswith("*.") and address.host.endswith(name[1:])
            if (name in ("*", address.host) or below) and int(port) == address.port:
                return True
        return False

    async def _addresses(self, address: Address) -> list[str]:
        """Where that host is: looked up once, and nothing at all if any of it isn't public."""
        if _as_ip(address.host) is not None:
            found: Sequence[str] = [address.host]
        else:
            loop = asyncio.get_running_loop()
            try:
                found = await loop.run_in_executor(
                    self._resolvers, self._resolve, address.host, address.port
                )
            except (OSError, UnicodeError):
                raise _Nothing from None
        if not found or not all(map(is_public, found)):
            raise _Nothing
        return list(found)[:ADDRESSES]

    async def _get(
        self, address: Address, places: Sequence[str], param: str, limit: int
    ) -> bytes | str:
        """The bytes there, or the address of a redirect. The name is used for TLS and the Host header only."""
        assert self._tls
        timeout = httpx2.Timeout(self.settings.fetch_seconds, connect=CONNECT_SECONDS)
        headers = {
            "host": address.written,
            "accept": "*/*",
            "accept-encoding": "identity",
            "user-agent": "polyphi",
            "connection": "close",
        }
        # A client for each stop: no connection, cookie or proxy of anybody else.
        async with httpx2.AsyncClient(
            verify=self._tls, trust_env=False, follow_redirects=False, timeout=timeout
        ) as client:
            for place in places:
                where = f"[{place}]" if ":" in place else place
                url = f"{address.scheme}://{where}:{address.port}{address.target}"
                asked = client.build_request(
                    "GET", url, headers=headers, extensions={"sni_hostname": address.host}
                )
                try:
                    response = await client.send(asked, stream=True)
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    continue
                try:
                    return await self._answer(response, param, limit)
                finally:
                    await response.aclose()
        raise _Nothing

    async def _answer(self, response: httpx2.Response, param: str, limit: int) -> bytes | str:
        onward = response.headers.get("location")
        if onward and response.status_code in (301, 302, 303, 307, 308):
            return onward
        if response.status_code != 200:
            raise _Nothing
        # Asked for plain bytes; what comes packed anyway may unpack to anything.
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise _Nothing
        promised = response.headers.get("content-length", "0")
        if promised.isdigit() and int(promised) > limit:
            raise _too_large(limit, param)
        data = bytearray()
        async for chunk in response.aiter_raw():
            if len(data) + len(chunk) > limit:
                raise _too_large(limit, param)
            self._take(len(chunk), param)
            data += chunk
        return bytes(data)


class Held:
    """Bytes in hand, at most `limit`, and those of all others `within` which they count."""

    def __init__(self, limit: int, within: "Held | None" = None) -> None:
        self.limit, self.within, self.bytes = limit, within, 0
        self._lock: threading.Lock = within._lock if within else threading.Lock()
        self._released = False

    def take(self, count: int) -> "Held | None":
        """Counts so many more; if that is too much, nothing is counted and who is full comes back."""
        with self._lock:
            if self._released:  # by a request that has ended; its thread will see
                return None
            counting = [self, *([self.within] if self.within else [])]
            for held in counting:
                if held.bytes + count > held.limit:
                    return held
            for held in counting:
                held.bytes += count
            return None

    def release(self) -> None:
        with self._lock:
            self._released = True
            if self.within:
                self.within.bytes -= self.bytes


class _Nothing(Exception):
    """An address that gave nothing, for whatever reason."""


def checked(data: bytes, kind: Kind, param: str) -> bytes:
    """The same bytes if they begin like a picture or a clip; raises ApiError 415 otherwise."""
    if not (is_image if kind == "image" else is_audio)(data):
        raise ApiError(415, f"expected {EXPECTED[kind]}, found something else", param=param)
    return data


def refusal(error: MediaError, param: str) -> ApiError:
    """What the engine found wrong with a picture or clip that was sent as bytes, as an answer."""
    status = {"kind": 415, "size": 413}.get(error.reason, 400)
    return ApiError(status, str(error), param=param)


def _too_large(limit: int, param: str) -> ApiError:
    return ApiError(413, f"expected at most {limit:,} bytes, found more", param=param)


def _unquoted(text: str, param: str) -> bytes:
    """Percent-encoded ASCII as bytes."""
    if not text.isascii():
        raise ApiError(400, "expected a data URL in ASCII; percent-encode the rest", param=param)
    return unquote_to_bytes(text)


def _below(root: Path, url: str) -> list[str]:
    """The names from `root` down to the file of a file:// address; none for an address of any other place."""
    place, _, path = url[len("file:") :].removeprefix("//").partition("/")
    if place or "?" in path or "#" in path:
        return []
    try:
        parts = [unquote_to_bytes(part).decode() for part in path.split("/")]
    except UnicodeError:
        return []
    if any(p in ("", ".", "..") or "/" in p for p in parts):
        return []
    for base in (root.absolute(), root.resolve()):
        above = base.parts[1:]
        if tuple(parts[: len(above)]) == above:
            return parts[len(above) :]
    return []


def _open(root: Path, parts: Sequence[str]) -> int | None:
    """A descriptor of a regular file: each name is opened within its folder, and none may be a link."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in parts[:-1]:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        # Without O_NONBLOCK a named pipe would make us wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(parts[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None
