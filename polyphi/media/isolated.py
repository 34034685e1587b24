"""Decode files in separate processes, which can do nothing else: containers (MP4, WebM, AAC, AMR, AVI) and videos with
FFmpeg, PDFs with PDFium, and for a server that strangers reach also images and all other audio.

>>> with open("memo.m4a", "rb") as file:
...     rate, channels, samples = audio_header(file, "mov")
...     blocks = list(audio_blocks(file, "mov", max_seconds=1800))     # float32 [n, channels]
>>> decoders = start_decoders()                             # forks the processes, in milliseconds each
>>> picture = image(data, max_pixels=10**7, decoders=decoders)

Decoders are large programs in C, and files of strangers reach them. Each pass over a file has a new process
(isolated_child.py) with an empty environment, the file as its input and a pipe as its output. Its memory, its CPU
time and the time that its output is waited for are limited; on Linux the kernel refuses it files, sockets, processes
and signals. Whatever happens to it, this process gets a `DecoderError`. It starts in about 0.1 s, or in a few
milliseconds where `start_decoders` has started a process that forks it.

The messages of the process aren't trusted either: sizes are checked before anything is allocated.
"""

import fcntl
import io
import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from PIL import Image as pil
from PIL.Image import Image as Picture

from polyphi.media.file_types import sniff
from polyphi.runtime.fork_server import ForkServer, package_folders
from polyphi.runtime.installation import from_checkout
from polyphi.runtime.steps import Stop, is_stopped

log = logging.getLogger(__name__)
CHILD = Path(__file__).with_name("isolated_child.py")
# Bytes of address space beside the program's own.
AUDIO_MEMORY, VIDEO_MEMORY, IMAGE_MEMORY, DOCUMENT_MEMORY = (
    384 << 20,
    896 << 20,
    128 << 20,
    512 << 20,
)
PIXEL_MEMORY = 32
"""Bytes of address space for each pixel of an image. WebP takes most: 28."""
# CPU time: of any file, for each selected frame of a video, which may be far from a key frame, and a second for so many
# seconds of audio, or pixels of an image: decoders are ten times as fast.
CPU_SECONDS, CPU_SECONDS_PER_FRAME, AUDIO_SPEED, IMAGE_SPEED = 10, 5, 50, 4_000_000
CPU_SECONDS_PER_PAGE = 2
"""[ours] CPU time of a document for each of its pages, beside `CPU_SECONDS`. Measured: 0.01 s for a page of text, 0.1
to 0.8 s for a scan at 300 to 600 dots per inch."""
PAGE_CPU_SECONDS, DOCUMENT_TURN_SECONDS = 6, 2
"""[ours] Most CPU time of one page (measured: 5 s for a map of 100,000 lines), and the CPU time of a document after
which the next page has a new process, so that other documents may be decoded in between."""
WAIT = 3  # wall time in CPU times: the machine may be busy
TICK = 0.2  # s between two looks whether the result is still needed
NOT_ISOLATED = (
    "this system can't isolate the process of the decoder (Linux on x86-64 and AArch64 can)"
)
SAMPLE = b"#!AMR\n" + bytes([4, *bytes(12)]) * 4  # 80 ms of AMR
SAMPLE_PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj "
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj trailer<</Root 1 0 R>>"
)
PACKAGES = {"audio": "av", "video": "av", "document": "pypdfium2"}
"""The package that a process for one file imports."""
MAX_LINE = 4096  # bytes of a message without its data
MAX_MESSAGE = 300  # characters of the message of an error
MAX_BLOCK = 1 << 22  # bytes of a block of samples
PIPE = 1 << 20  # bytes that the output may be ahead of its reader


class DecoderError(Exception):
    """A file that can't be decoded. `error`: the name that the process reports (isolated_child.py), or "crashed",
    "time" (above a limit), "memory", "stopped" (not needed any more); `value`: the value above a limit. "media": the
    decoder's own check has refused it, with the `message` and the `reason` of a `MediaError`."""

    def __init__(
        self, error: str, value: float | None = None, message: str = "", reason: str = ""
    ) -> None:
        super().__init__(error)
        self.error, self.value, self.message, self.reason = error, value, message, reason


class DecoderProcess:
    """The process that decodes one file, as an iterator of (message, data). The end of the `with` block ends it."""

    def __init__(
        self,
        file: io.BufferedIOBase | bytes,
        job: dict[str, Any],
        *,
        memory_bytes: int = AUDIO_MEMORY,
        cpu_seconds: int = CPU_SECONDS,
        max_bytes: int = MAX_BLOCK,
        stop: Stop | None = None,
        decoders: ForkServer | None = None,
    ) -> None:
        """`max_bytes`: maximum bytes of the data of a message; `decoders`: what forks the process, otherwise a new one
        is started. Raises `DecoderError` if that fails."""
        self._max_bytes, self._stop = max_bytes, stop
        self._seconds_left = float(WAIT * cpu_seconds)
        self._buffer = bytearray()
        job = {**job, "memory_bytes": memory_bytes, "cpu_seconds": cpu_seconds}
        self._pipe, output = os.pipe()
        self._close = weakref.finalize(self, os.close, self._pipe)
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # not on macOS
            with suppress(OSError):  # a limit of the user
                fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, PIPE)
        try:
            with _descriptor(file) as stdin:
                self._process = (
                    _started(
                        {**job, "packages": _folders(PACKAGES.get(job.get("task", "")))},
                        stdin,
                        output,
                    )
                    if decoders is None
                    else decoders.start(json.dumps(job).encode(), [stdin, output])
                )
        except OSError as error:
            raise _crashed(f"could not be started: {error.strerror}") from None
        finally:
            os.close(output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        if isinstance(self._process, subprocess.Popen):
            self._process.wait()
        self._close()

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bytearray]]:
        """The messages until the last one, which isn't among them. Raises `DecoderError`."""
        while True:
            try:
                message = json.loads(self._take(self._line_length()))
                error, size = message.get("error"), message.get("bytes", 0)
                value = message.get("found")
                if not (isinstance(size, int) and 0 <= size <= self._max_bytes):
                    raise ValueError
            except (ValueError, AttributeError, RecursionError):
                raise _crashed("sent what is no message") from None
            if error is not None:
                raise DecoderError(
                    str(error)[:40],
                    value if isinstance(value, int | float) else None,
                    _line(message.get("message")),
                    _line(message.get("reason")),
                )
            if message.get("end") is True:
                return
            yield message, self._take(size)

    def _line_length(self) -> int:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE:
                raise _crashed("sent too long a message")
            self._fill()
        return end + 1

    def _take(self, count: int) -> bytearray:
        data = self._buffer[:count]
        del self._buffer[:count]
        start = len(data)
        data += bytes(count - start)
        with memoryview(data) as view:
            while start < count:
                self._wait()
                if not (size := os.readv(self._pipe, [view[start:]])):
                    raise self._death()
                start += size
        return data

    def _fill(self) -> None:
        self._wait()
        data = os.read(self._pipe, MAX_LINE)
        if not data:
            raise self._death()
        self._buffer += data

    def _wait(self) -> None:
        """Wait for output. Only this time counts: the process also waits for us, while the model reads its output."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        ready = False
        while not ready:
            if is_stopped() or (self._stop is not None and self._stop()):
                raise DecoderError("stopped")
            if self._seconds_left < 0:
                log.warning("a media file was not decoded: the decoder sent nothing for too long")
                raise DecoderError("time")
            began = time.monotonic()
            ready = bool(poll.poll(1000 * TICK))
            self._seconds_left -= time.monotonic() - began

    def _death(self) -> DecoderError:
        """The error of a process that has closed its output without a last message."""
        try:
            status = self._process.wait(WAIT)
        except subprocess.TimeoutExpired:
            return _crashed("closed its output")
        error = _crashed(
            f"ended with {signal.Signals(-status).name if status < 0 else f'exit status {status}'}"
        )
        return DecoderError("time") if status == -signal.SIGXCPU else error


def _crashed(event: str) -> DecoderError:
    """The error of a process that failed; the log has the `event`, for the operator."""
    log.warning("a media file was not decoded: the decoder %s", event)
    return DecoderError("crashed")


def _line(value: Any) -> str:
    """The text of a message, which may have been sent by an attacker: one printable line."""
    return "".join(filter(str.isprintable, str(value or "")[:MAX_MESSAGE]))


def _started(job: dict[str, Any], stdin: int, stdout: int) -> "subprocess.Popen[bytes]":
    """A new process for a job."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(CHILD), json.dumps(job)],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,  # Ctrl-C is for this process
    )


def start_decoders() -> ForkServer:
    """Start the process that forks others for the functions of this module. Raises `DecoderError` if they don't work
    on this system."""
    job = json.dumps({"task": "fork", "packages": package_folders()})
    decoders = ForkServer(
        [sys.executable, "-I", "-S", "-B", str(CHILD), job],
        # Only one thread forks. A further arena of memory would count as 64 MiB.
        environment={
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
        },
    )
    try:
        _probe(decoders)
    except DecoderError:
        decoders.close()
        raise
    return decoders


def is_isolated(decoders: ForkServer | None = None) -> bool:
    """Whether the system refuses a decoder's process what it doesn't need. Raises `DecoderError` if it fails."""
    return _probe(decoders).get("isolated") is True


def _probe(decoders: ForkServer | None) -> dict[str, Any]:
    with DecoderProcess(b"", {"task": "probe"}, decoders=decoders) as decoder:
        return _first(iter(decoder))[0]


@contextmanager
def _descriptor(file: io.BufferedIOBase | bytes) -> Iterator[int]:
    """The descriptor of a file, or of one in memory with the same bytes."""
    if not isinstance(file, io.BytesIO | bytes):
        yield file.fileno()
        return
    create = getattr(os, "memfd_create", None)  # not on macOS
    with open(create("media"), "w+b") if create else tempfile.TemporaryFile() as copy:
        copy.write(file if isinstance(file, bytes) else file.getbuffer())
        copy.flush()
        yield copy.fileno()


def _folders(package: str | None) -> list[str]:
    """The folder of a package. A process that is started for a file has no other path than the standard library's."""
    if package is None:
        return []
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise DecoderError("missing")
    return [str(Path(spec.origin).parents[1])]


@cache
def unavailable() -> str | None:
    """The reason why containers and videos of strangers can't be decoded on this machine, or None: a process has tried
    what it is to be refused, and another one has decoded a file."""
    sample = audio_blocks(io.BytesIO(SAMPLE), "amr", max_seconds=1)
    return _failure(sample, f"PyAV is missing; {from_checkout('video')}")


@cache
def pdfs_unavailable() -> str | None:
    """The reason why PDFs of strangers can't be decoded on this machine, or None."""
    sample = pdf_pages(SAMPLE_PDF, box=(9, 9), max_pages=1, max_characters=1)
    return _failure(sample, f"pypdfium2 is missing; {from_checkout('serve')}")


def _failure(sample: Iterator[Any], missing: str) -> str | None:
    """The reason why a sample can't be decoded as files of strangers are; `missing`: where its package isn't there."""
    try:
        for _ in sample:
            pass
        isolated = is_isolated()
    except DecoderError as error:
        if error.error == "missing":
            return missing
        return "the process of the decoder doesn't work on this system"
    return None if isolated else NOT_ISOLATED


def audio_header(
    file: io.BufferedIOBase,
    format: str | None,
    *,
    max_seconds: float = 0,
    stop: Stop | None = None,
    decoders: ForkServer | None = None,
) -> tuple[int, int, int | None]:
    """Return rate in Hz, channels and samples (None: unknown) of a container's first audio stream; `format` is FFmpeg's
    name, or None for a file that libsndfile reads, which needs `decoders`. Raises `DecoderError`, and as
    `DecoderProcess` does."""
    with _audio(file, format, max_seconds, stop, decoders, header=True) as decoder:
        header, _ = _first(iter(decoder))
    rate, channels = _numbers(header, "rate", "channels")
    samples = header.get("samples")
    return rate, channels, samples if isinstance(samples, int) and samples >= 0 else None


def audio_blocks(
    file: io.BufferedIOBase,
    format: str | None,
    *,
    max_seconds: float,
    stop: Stop | None = None,
    decoders: ForkServer | None = None,
) -> Iterator[Float[np.ndarray, "n channels"]]:
    """Yield the samples of a container's first audio stream, or of a file that libsndfile reads. The caller limits
    their number. Raises as `audio_header` does."""
    with _audio(file, format, max_seconds, stop, decoders, header=False) as decoder:
        messages = iter(decoder)
        _, channels = _numbers(_first(messages)[0], "rate", "channels")
        for _, data in messages:
            if not data or len(data) % (4 * channels):
                raise _crashed("sent parts of samples")
            yield np.frombuffer(data, np.float32).reshape(-1, channels)


def _audio(
    file: io.BufferedIOBase,
    format: str | None,
    max_seconds: float,
    stop: Stop | None,
    decoders: ForkServer | None,
    *,
    header: bool,
) -> DecoderProcess:
    return DecoderProcess(
        file,
        {"task": "audio" if format else "sound", "format": format, "header": header},
        cpu_seconds=CPU_SECONDS + math.ceil(max_seconds / AUDIO_SPEED),
        stop=stop,
        decoders=decoders,
    )


def image_size(data: bytes, *, max_pixels: int, decoders: ForkServer) -> tuple[int, int]:
    """Return width and height of an image file from its header. Raises `DecoderError`; "media" above `max_pixels`."""
    with _image(data, max_pixels, decoders, header=True) as decoder:
        message, _ = _first(iter(decoder))
    return _numbers(message, "width", "height")


def image(data: bytes, *, max_pixels: int, decoders: ForkServer) -> Picture:
    """Return an image file as RGB. Raises as `image_size` does."""
    with _image(data, max_pixels, decoders, header=False) as decoder:
        messages = iter(decoder)
        width, height = _numbers(_first(messages)[0], "width", "height")
        if width * height > max_pixels:
            raise _crashed("sent another image")
        picture, top = pil.new("RGB", (width, height)), 0
        for _, rows in messages:
            bottom = top + len(rows) // (3 * width)
            if len(rows) != 3 * width * (bottom - top) or not top < bottom <= height:
                raise _crashed("sent parts of rows")
            picture.paste(pil.frombytes("RGB", (width, bottom - top), rows), (0, top))
            top = bottom
    if top != height:
        raise _crashed("sent half an image")
    return picture


def _image(data: bytes, max_pixels: int, decoders: ForkServer, *, header: bool) -> DecoderProcess:
    return DecoderProcess(
        data,
        {
            "task": "image",
            "header": header,
            "max_pixels": max_pixels,
            "threads": sniff(data) == "HEIC",
        },
        memory_bytes=IMAGE_MEMORY + 2 * len(data) + PIXEL_MEMORY * max_pixels,
        cpu_seconds=CPU_SECONDS + (0 if header else math.ceil(max_pixels / IMAGE_SPEED)),
        max_bytes=max(MAX_BLOCK, 3 * max_pixels),  # a row may be long
        decoders=decoders,
    )


def video_frames(
    file: io.BufferedIOBase,
    format: str,
    *,
    frames: int,
    max_pixels: int,
    max_video_pixels: int,
    max_seconds: float,
    stop: Stop | None = None,
    decoders: ForkServer | None = None,
) -> Iterator[tuple[int, int, bytearray]]:
    """Yield (width, height, RGB rows) of at most `frames` frames of a video (video.py). Raises as `audio_header` does;
    "pixels" of a frame, "video_pixels" of all and "seconds" above their limits."""
    job = {
        "task": "video",
        "format": format,
        "frames": frames,
        "max_pixels": max_pixels,
        "max_video_pixels": max_video_pixels,
        "max_seconds": max_seconds,
    }
    with DecoderProcess(
        file,
        job,
        memory_bytes=VIDEO_MEMORY,
        cpu_seconds=CPU_SECONDS + CPU_SECONDS_PER_FRAME * frames,
        max_bytes=3 * max_pixels,
        stop=stop,
        decoders=decoders,
    ) as decoder:
        for count, (message, data) in enumerate(decoder):
            width, height = _numbers(message, "width", "height")
            if count >= frames or len(data) != 3 * width * height:
                raise _crashed("sent another frame")
            yield width, height, data


def pdf_pages(
    data: bytes,
    *,
    box: tuple[int, int] | None,
    max_pages: int,
    max_characters: int,
    stop: Stop | None = None,
    decoders: ForkServer | None = None,
) -> Iterator[tuple[int, tuple[int, int, bytearray] | None, str] | None]:
    """Yield (number of all pages, (width, height, RGB rows), text) of each page of a PDF, and None between two
    processes. The images are as large as fits into `box`, (short, long side) in pixels; without one there are none.
    Raises as `audio_header` does; "password" for an encrypted file, "pages" and "characters" above their limits."""
    most_pixels = box[0] * box[1] if box else 0
    first, count, characters, seconds = 0, 1, 0, 0.0
    while first < count:
        if first:
            yield None
        left = math.ceil(CPU_SECONDS + CPU_SECONDS_PER_PAGE * count - seconds)
        if left <= 0:
            raise DecoderError("time")
        job = {
            "task": "document",
            "box": box,
            "first": first,
            "characters": characters,
            "max_pages": max_pages,
            "max_characters": max_characters,
            "turn_seconds": DOCUMENT_TURN_SECONDS,
        }
        with DecoderProcess(
            data,
            job,
            memory_bytes=DOCUMENT_MEMORY + len(data),
            cpu_seconds=min(left, PAGE_CPU_SECONDS + DOCUMENT_TURN_SECONDS),
            max_bytes=max(3 * most_pixels, 4 * max_characters),
            stop=stop,
            decoders=decoders,
        ) as decoder:
            messages = iter(decoder)
            pages, used = _first(messages)[0].get("pages"), 0.0
            if not (isinstance(pages, int) and first < pages <= max_pages):
                raise _crashed("sent a wrong number of pages")
            count, started_at = pages, first
            while first < count and (message_data := next(messages, None)) is not None:
                image = None
                if box:
                    message, rows = message_data
                    width, height = _numbers(message, "width", "height")
                    if not (width * height <= most_pixels and len(rows) == 3 * width * height):
                        raise _crashed("sent another page")
                    image = width, height, rows
                    message_data = _first(messages)
                message, text = message_data
                value = message.get("cpu_seconds")
                if not (isinstance(value, int | float) and used <= value):
                    raise _crashed("sent a wrong time")
                used, first = value, first + 1
                layer = text.decode("utf-8", "replace")
                characters += len(layer)
                yield count, image, layer
        if first == started_at:
            raise _crashed("sent no page")
        seconds += used


def _first(
    messages: Iterator[tuple[dict[str, Any], bytearray]],
) -> tuple[dict[str, Any], bytearray]:
    if (message := next(messages, None)) is None:
        raise _crashed("sent no message")
    return message


def _numbers(message: dict[str, Any], *names: str) -> tuple[int, int]:
    """Return two numbers of a message, both above 0."""
    first, second = (message.get(name) for name in names)
    if not (isinstance(first, int) and isinstance(second, int) and first > 0 and second > 0):
        raise _crashed("sent a wrong number")
    return first, second
