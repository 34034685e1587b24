"""Load the images, audio and videos that a request refers to, within size limits.

>>> media = Media(settings)
>>> with media.request(b"client") as request_media:      # all media of one request, within its total limit
...     data = await request_media.image("data:image/png;base64,iVBORw0...", "messages[0].content[1].image_url.url")

Three types of URL: data URLs; http(s) where the server was started with `remote` hosts; files where it was started with
a `local` folder. Senders of URLs are assumed to be hostile and to want access to what only this machine can reach:

- A host must be on the list, in plain form, and all its IP addresses public. They are resolved once, and the
  connection goes to exactly the address that was checked. A redirect is checked like a new URL.
- A file is opened folder by folder below the root, without following any link, and must be a regular file.
- All failed fetches return the same error, so that no response reveals whether something exists inside the network.

`read_url` fetches for the user of this machine (polyphi/cli): from any host, within the same limits, and says why a
fetch failed.
"""

import asyncio
import base64
import binascii
import logging
import os
import ssl
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes, urljoin

import httpx2

from polyphi.media.file_types import is_audio, is_image, is_pdf, is_video
from polyphi.media.isolated import pdfs_unavailable as pdf_isolation_missing
from polyphi.media.isolated import unavailable as isolation_missing
from polyphi.media.media import MediaError
from polyphi.serve.admission.quotas import FairSlots, QuotaExceeded, Reservation
from polyphi.serve.admission.settings import Settings
from polyphi.serve.admission.threads import Threads
from polyphi.serve.http.addresses import (
    PORTS,
    Address,
    InvalidAddress,
    _as_ip,
    is_public,
    parse,
    resolve_host,
)
from polyphi.serve.http.errors import ApiError

log = logging.getLogger("polyphi.serve")
Modality = Literal["image", "audio", "video", "document"]
EXPECTED: dict[str, str] = {
    "image": "a PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC image",
    "audio": "a WAV, FLAC, OGG or MP3 audio file",
    "video": "an MP4, WebM, Matroska or AVI video",
}
EXPECTED_CONTAINERS = "a WAV, FLAC, OGG, MP3, M4A, MP4, WebM, AAC or AMR audio file"

REDIRECTS = 5
WAIT_SECONDS = 60.0
"""Maximum time that a fetch waits for its turn, behind others of its client or clients that occupy all slots."""
CONNECT_SECONDS = 5.0
"""Connection timeout of one of a host's IP addresses, after which the next one is tried."""
ADDRESSES = 4
"""Maximum IP addresses of a host that are tried, in their order."""
FETCHES = 16
"""Media that are fetched at once, and host names that are looked up."""
Resolve = Callable[[str, int], Sequence[str]]


class Media:
    """The media loader of a server, shared by all requests of one event loop. `trusted`: URLs come from this machine's
    user, and hosts may have private addresses. Tests replace `resolve` and `tls`."""

    def __init__(
        self,
        settings: Settings,
        *,
        trusted: bool = False,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.settings, self._trusted = settings, trusted
        self._resolve, self._tls = resolve or resolve_host, tls
        self._slots = FairSlots(FETCHES)
        self._client = b""
        # Dedicated threads: name servers that don't answer must not block the shared ones.
        self._resolvers = Threads(FETCHES, "look up hosts")
        self._reservation: Reservation | None = None
        self._loaded = 0
        self.containers = self._accepts("M4A, MP4, WebM, AAC, AMR and videos", isolation_missing())
        """Whether audio and videos that FFmpeg decodes are accepted."""
        self.pdfs = not trusted and self._accepts("PDFs", pdf_isolation_missing())
        """Whether PDFs are accepted."""
        if settings.remote:
            self._tls = tls or httpx2.create_ssl_context(trust_env=False)
            logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every URL

    def _accepts(self, formats: str, reason: str | None) -> bool:
        """Whether formats are accepted whose decoder can't be isolated for this `reason`, if any."""
        setting = self.settings.containers
        accepted = reason is None if setting is None else setting
        if reason is not None and setting is not False:
            log.warning("%s are %s: %s", formats, "accepted" if accepted else "refused", reason)
        return accepted

    @contextmanager
    def request(self, client: bytes, reservation: Reservation | None = None) -> "Iterator[Media]":
        """A loader for one request of a client: it loads at most `max_body_bytes` in total, one after the other, and
        its bytes count in the request's reservation until the context ends."""
        media = copy(self)
        media._client, media._reservation = client, reservation
        try:
            yield media
        finally:
            if reservation is not None:
                reservation.grow(-media._loaded)

    def close(self) -> None:
        self._resolvers.close(wait=False)

    async def image(self, url: str, param: str) -> bytes:
        """The bytes of the image at a data:, http(s):// or file:// URL. Raises ApiError: 400 for an invalid or refused
        URL or a failed fetch, 413 above a limit, 415 for bytes that are no image."""
        return await self._load(url, "image", param)

    async def audio(self, url: str, param: str) -> bytes:
        """The bytes of the audio at a URL; raises as `image` does."""
        return await self._load(url, "audio", param)

    async def video(self, url: str, param: str) -> bytes:
        """The bytes of the video at a URL; raises as `image` does."""
        if not self.containers:
            raise ApiError(
                415,
                "this server decodes no videos; send some of the frames as image_url parts, in their order",
                param=param,
            )
        return await self._load(url, "video", param)

    async def document(self, url: str, param: str) -> bytes:
        """The bytes of the document at a URL; raises as `image` does, but other files than PDFs are refused when they
        are read as text."""
        data = await self._load(url, "document", param)
        if is_pdf(data) and not self.pdfs:
            raise ApiError(
                415,
                "this server reads no PDFs; send their text, or images of their pages",
                param=param,
            )
        return data

    async def input_audio(self, data: str, param: str) -> bytes:
        """The bytes of an `input_audio` part in base64; raises as `image` does."""
        limit = self.settings.max_audio_bytes
        decoded = await asyncio.to_thread(self.decode_base64, data, param, limit)
        return self.check(decoded, "audio", param)

    async def item(self, data: str, param: str) -> bytes:
        """The bytes of a part of a further modality in base64. Raises ApiError as `image` does."""
        limit = self.settings.max_body_bytes
        return await asyncio.to_thread(self.decode_base64, data, param, limit)

    def check(self, data: bytes, modality: Modality, param: str) -> bytes:
        """Return `data` if it begins like a file of an accepted format; raises ApiError 415 otherwise."""
        expected = EXPECTED[modality]
        if modality == "audio":
            accepted = is_audio(data, containers=self.containers)
            expected = EXPECTED_CONTAINERS if self.containers else expected
        else:
            accepted = (is_image if modality == "image" else is_video)(data)
        if not accepted:
            raise ApiError(415, f"expected {expected}, found something else", param=param)
        return data

    def decode_base64(self, data: str, param: str, limit: int) -> bytes:
        """The bytes of a base64 text: standard alphabet with padding; white space is allowed anywhere. Raises ApiError
        400, and 413 for more than `limit` bytes."""
        try:
            plain = data.encode("ascii").translate(None, b" \t\r\n\f")
            if len(plain) > (limit + 2) // 3 * 4:
                raise _too_large(limit, param)
            decoded = base64.b64decode(plain, validate=True)
        except (UnicodeEncodeError, binascii.Error):
            raise ApiError(
                400, "expected base64 (A-Z, a-z, 0-9, +, / and = at the end)", param=param
            ) from None
        if len(decoded) > limit:
            raise _too_large(limit, param)
        return decoded

    async def _load(self, url: str, modality: Modality, param: str) -> bytes:
        limit: int = getattr(self.settings, f"max_{modality}_bytes")
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            data = await asyncio.to_thread(self._data_url, url, param, limit)
        elif scheme in PORTS:
            data = await self._fetch(url, modality, param, limit)
        elif scheme == "file":
            data = await asyncio.to_thread(self._read_file, url, param, limit)
        else:
            raise ApiError(
                400,
                f"expected the {modality} as a data URL (data:...;base64,...) or an http(s) address",
                param=param,
            )
        return data if modality == "document" else self.check(data, modality, param)

    def _data_url(self, url: str, param: str, limit: int) -> bytes:
        """The bytes of a data URL. Its media type is ignored; `check` looks at the bytes."""
        head, comma, body = url.partition(",")
        if not comma:
            raise ApiError(400, "expected a data URL with a comma before its data", param=param)
        if head.strip().lower().endswith(";base64"):
            if "%" in body:
                body = _unquote(body, param).decode("latin-1")
            return self.decode_base64(body, param, limit)
        if len(body) > 3 * limit:
            raise _too_large(limit, param)
        data = _unquote(body, param)
        if len(data) > limit:
            raise _too_large(limit, param)
        return data

    def _count_bytes(self, count: int, param: str) -> None:
        """Counts bytes that were loaded from outside the request; raises ApiError above a limit."""
        if (reservation := self._reservation) is None:
            return
        if self._loaded + count > (limit := self.settings.max_body_bytes):
            raise ApiError(
                413,
                f"expected at most {limit:,} bytes in all media of a request, found more",
                param=param,
            )
        try:
            reservation.grow(count)
            self._loaded += count
        except QuotaExceeded as full:
            whose = "this client's" if full.by_client else "all"
            raise ApiError(
                429,
                f"the memory for media of {whose} requests is full; try again later",
                param=param,
                code="memory_full",
                headers={"Retry-After": "5"},
            ) from None

    # Files

    def _read_file(self, url: str, param: str, limit: int) -> bytes:
        root = self.settings.local
        if root is None:
            raise ApiError(400, "this server reads no files; send a data URL instead", param=param)
        parts = _below(root, url)
        try:
            descriptor = _open(root, parts) if parts else None
        except (OSError, ValueError):  # ValueError: a name with a NUL
            descriptor = None
        if descriptor is None:
            raise ApiError(400, "expected a file below the media folder, found none", param=param)
        with open(descriptor, "rb", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            if size > limit:
                raise _too_large(limit, param)
            self._count_bytes(size, param)
            return file.read(size)

    # Hosts

    async def _fetch(self, url: str, modality: Modality, param: str, limit: int) -> bytes:
        if not self.settings.remote:
            raise ApiError(
                400,
                f"this server fetches nothing from other hosts; send the {modality} as a data URL "
                "(data:...;base64,...)",
                param=param,
            )
        slots, loop, started = self._slots, asyncio.get_running_loop(), False
        try:
            async with asyncio.timeout(WAIT_SECONDS) as timeout, slots.exclusive(self._client):
                timeout.reschedule(loop.time() + self.settings.fetch_seconds)
                started = True
                address = parse(url, single_labels=self._trusted)
                return await self._follow_redirects(address, param, limit)
        except InvalidAddress as error:
            raise ApiError(400, str(error), param=param) from None
        except (
            _FetchFailed,
            TimeoutError,
            OSError,
            httpx2.HTTPError,
            httpx2.InvalidURL,
        ) as error:
            if self._trusted:
                reason = str(error) or f"no answer within {self.settings.fetch_seconds:g} s"
                raise ApiError(400, reason, param=param) from None
            if not started:
                raise ApiError(
                    429,
                    f"the {modality} was not fetched: {slots.waiting} other fetches are waiting; try again later",
                    param=param,
                    code="queue_full",
                    headers={"Retry-After": "20"},
                ) from None
            raise ApiError(
                400, f"the {modality} could not be fetched from its address", param=param
            ) from None

    async def _follow_redirects(self, address: Address, param: str, limit: int) -> bytes:
        """The bytes at a URL, after up to `REDIRECTS` redirects. Each target is checked like a new URL."""
        for _ in range(REDIRECTS + 1):
            if not self._is_allowed(address):
                raise InvalidAddress("this server doesn't fetch from that host (or port)")
            result = await self._get(address, await self._addresses(address), param, limit)
            if isinstance(result, bytes):
                return result
            try:
                target = parse(
                    urljoin(f"{address.scheme}://{address.authority}{address.target}", result),
                    single_labels=self._trusted,
                )
            except ValueError:  # also InvalidAddress: the client didn't write this URL
                raise _FetchFailed("it redirects to an invalid address") from None
            usual = address.port == PORTS[address.scheme] and target.port == PORTS[target.scheme]
            if not (usual or target.port == address.port) or not self._is_allowed(target):
                raise _FetchFailed(f"it redirects to another port or host ({target.authority})")
            if (address.scheme, target.scheme) == ("https", "http"):
                raise _FetchFailed("it redirects from https to http")
            address = target
        raise _FetchFailed(f"it redirects more than {REDIRECTS} times")

    def _is_allowed(self, address: Address) -> bool:
        if self._trusted:
            return True
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
        """The IP addresses of a host, resolved once. Raises _FetchFailed if any of them isn't public."""
        if _as_ip(address.host) is not None:
            ips: Sequence[str] = [address.host]
        else:
            try:
                ips = await self._resolvers.run(
                    self._client, self._resolve, address.host, address.port
                )
            except (OSError, UnicodeError):
                raise _FetchFailed(f"the host {address.host} is unknown") from None
        if not ips or not (self._trusted or all(map(is_public, ips))):
            raise _FetchFailed("the host has no public address")
        return list(ips)[:ADDRESSES]

    async def _get(
        self, address: Address, ips: Sequence[str], param: str, limit: int
    ) -> bytes | str:
        """The bytes at a URL, or the URL of a redirect. The name is only used for TLS and the Host header."""
        assert self._tls
        timeout = httpx2.Timeout(self.settings.fetch_seconds, connect=CONNECT_SECONDS)
        headers = {
            "host": address.authority,
            "accept": "*/*",
            "accept-encoding": "identity",
            "user-agent": "polyphi",
            "connection": "close",
        }
        # A new client for each URL: no shared connection, cookie or proxy.
        async with httpx2.AsyncClient(
            verify=self._tls, trust_env=False, follow_redirects=False, timeout=timeout
        ) as client:
            for ip in ips:
                host = f"[{ip}]" if ":" in ip else ip
                url = f"{address.scheme}://{host}:{address.port}{address.target}"
                request = client.build_request(
                    "GET", url, headers=headers, extensions={"sni_hostname": address.host}
                )
                try:
                    response = await client.send(request, stream=True)
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    continue
                try:
                    return await self._body(response, param, limit)
                finally:
                    await response.aclose()
        raise _FetchFailed(f"{address.authority} doesn't answer")

    async def _body(self, response: httpx2.Response, param: str, limit: int) -> bytes | str:
        location = response.headers.get("location")
        if location and response.status_code in (301, 302, 303, 307, 308):
            return location
        if response.status_code != 200:
            raise _FetchFailed(f"HTTP {response.status_code} {response.reason_phrase}".rstrip())
        # The request excludes compression; a compressed body could decompress to any size.
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise _FetchFailed("it sends compressed data, though none was requested")
        length = response.headers.get("content-length", "0")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit, param)
        data = bytearray()
        async for chunk in response.aiter_raw():
            if len(data) + len(chunk) > limit:
                raise _too_large(limit, param)
            self._count_bytes(len(chunk), param)
            data += chunk
        return bytes(data)


class _FetchFailed(Exception):
    """A fetch failed; only the machine's own user gets the reason."""


def read_url(url: str, modality: Modality, settings: Settings | None = None) -> bytes:
    """The bytes of the image or audio clip at an http(s) URL, for the user of this machine: from any host, within the
    size and time limits of a server's `settings`. Raises ValueError with the URL and the reason of a failed fetch, for
    a file above the limit, and for bytes that are no media."""
    settings = settings or Settings(containers=isolation_missing() is None)
    media = Media(replace(settings, remote=("*",)), trusted=True)

    async def read() -> bytes:
        with media.request(b"") as request:
            return await request._load(url, modality, url)

    try:
        return asyncio.run(read())
    except ApiError as error:
        raise ValueError(f"{url[:200]} can't be used: {error.message}") from None
    finally:
        media.close()


def media_api_error(error: MediaError, param: str) -> ApiError:
    """The ApiError for the engine's error about an image, audio or video."""
    status = {"kind": 415, "size": 413}.get(error.reason, 400)
    code = "media_not_decoded" if error.reason == "decoder" else None
    if error.public is not None:
        log.warning("%r", f"{error!s:.600}")
    return ApiError(status, error.public or str(error), param=param, code=code)


def _too_large(limit: int, param: str) -> ApiError:
    return ApiError(413, f"expected at most {limit:,} bytes, found more", param=param)


def _unquote(text: str, param: str) -> bytes:
    """Percent-encoded ASCII as bytes."""
    if not text.isascii():
        raise ApiError(400, "expected a data URL in ASCII; percent-encode the rest", param=param)
    return unquote_to_bytes(text)


def _below(root: Path, url: str) -> list[str]:
    """The path components from `root` to the file of a file:// URL; empty for a URL outside `root`."""
    host, _, path = url[len("file:") :].removeprefix("//").partition("/")
    if host or "?" in path or "#" in path:
        return []
    try:
        parts = [unquote_to_bytes(part).decode() for part in path.split("/")]
    except UnicodeError:
        return []
    if any(p in ("", ".", "..") or "/" in p for p in parts):
        return []
    for base in (root.absolute(), root.resolve()):
        prefix = base.parts[1:]
        if tuple(parts[: len(prefix)]) == prefix:
            return parts[len(prefix) :]
    return []


def _open(root: Path, parts: Sequence[str]) -> int | None:
    """A descriptor of a regular file, None for another type. Each component is opened in its folder, without links."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in parts[:-1]:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        # Without O_NONBLOCK, open() of a named pipe would wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(parts[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None
