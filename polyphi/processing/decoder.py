"""Decode containers (MP4, WebM, AAC, AMR, AVI) with FFmpeg in a separate process, which can do nothing else.

>>> with open("memo.m4a", "rb") as file:
...     rate, channels, samples = audio_header(file, "mov")
...     blocks = list(audio_blocks(file, "mov", max_seconds=1800))     # float32 [n, channels]

FFmpeg has hundreds of decoders in C, and files of strangers reach it. Each pass over a file has a new process
(decoder_child.py) with an empty environment, the file as its input and a pipe as its output. Its memory, its CPU time
and the time that its output is waited for are limited; on Linux the kernel refuses it files, sockets, processes and
signals. Whatever happens to it, this process gets a `DecoderError`. It starts in about 0.1 s.

The messages of the process aren't trusted either: sizes are checked before anything is allocated.
"""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from polyphi.runtime.installation import from_checkout

log = logging.getLogger(__name__)
CHILD = Path(__file__).with_name("decoder_child.py")
# Bytes of address space; Python and FFmpeg take 120 MB.
AUDIO_MEMORY, VIDEO_MEMORY = 512 << 20, 1 << 30
# CPU time: of any file, for each selected frame of a video, which may be far from a key frame, and a second for so many
# seconds of audio: decoders are ten times as fast.
CPU_SECONDS, CPU_SECONDS_PER_FRAME, AUDIO_SPEED = 10, 5, 50
WAIT = 3  # wall time in CPU times: the machine may be busy
TICK = 0.2  # s between two looks whether the result is still needed
SAMPLE = b"#!AMR\n" + bytes([4, *bytes(12)]) * 4  # 80 ms of AMR
MAX_LINE = 4096  # bytes of a message without its data
MAX_BLOCK = 1 << 22  # bytes of a block of samples

Stop = Callable[[], bool]


class DecoderError(Exception):
    """A file that can't be decoded. `error`: the name that the process reports (decoder_child.py), or "crashed",
    "time" (above a limit), "memory", "stopped" (not needed any more); `value`: the value above a limit."""

    def __init__(self, error: str, value: float | None = None) -> None:
        super().__init__(error)
        self.error, self.value = error, value


class DecoderProcess:
    """The process that decodes one file, as an iterator of (message, data). The end of the `with` block ends it."""

    def __init__(
        self,
        file: io.BufferedIOBase,
        job: dict[str, Any],
        *,
        memory_bytes: int = AUDIO_MEMORY,
        cpu_seconds: int = CPU_SECONDS,
        max_bytes: int = MAX_BLOCK,
        stop: Stop | None = None,
    ) -> None:
        self._max_bytes, self._stop = max_bytes, stop
        self._seconds_left = float(WAIT * cpu_seconds)
        self._buffer = bytearray()
        limits = {"memory_bytes": memory_bytes, "cpu_seconds": cpu_seconds}
        with _descriptor(file) as stdin:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-B",
                    str(CHILD),
                    json.dumps({**job, **limits, "packages": _packages()}),
                ],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={},
                cwd="/",
                start_new_session=True,  # Ctrl-C is for this process
            )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bytes]]:
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
                    str(error)[:40], value if isinstance(value, int | float) else None
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

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        data = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return data

    def _fill(self) -> None:
        """Wait for output. Only this time counts: the process also waits for us, while the model reads its output."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        ready = False
        while not ready:
            if self._stop is not None and self._stop():
                raise DecoderError("stopped")
            if self._seconds_left < 0:
                log.warning("a media file was not decoded: the decoder sent nothing for too long")
                raise DecoderError("time")
            began = time.monotonic()
            ready = bool(poll.poll(1000 * TICK))
            self._seconds_left -= time.monotonic() - began
        data = os.read(self._pipe, 1 << 20)
        if not data:
            raise self._death()
        self._buffer += data

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


@contextmanager
def _descriptor(file: io.BufferedIOBase) -> Iterator[int]:
    """The descriptor of a file, or of one in memory with the same bytes."""
    if not isinstance(file, io.BytesIO):
        yield file.fileno()
        return
    create = getattr(os, "memfd_create", None)  # not on macOS
    with open(create("media"), "w+b") if create else tempfile.TemporaryFile() as copy:
        copy.write(file.getbuffer())
        copy.flush()
        yield copy.fileno()


def _packages() -> str:
    """The folder of PyAV. The process has no other path than the standard library's."""
    spec = find_spec("av")
    if spec is None or spec.origin is None:
        raise DecoderError("missing")
    return str(Path(spec.origin).parents[1])


@cache
def unavailable() -> str | None:
    """The reason why files of strangers can't be decoded on this machine, or None: a process has tried what it is to be
    refused, and another one has decoded a file."""
    try:
        with DecoderProcess(io.BytesIO(), {"task": "probe"}) as decoder:
            message, _ = _first(iter(decoder))
        for _ in audio_blocks(io.BytesIO(SAMPLE), "amr", max_seconds=1):
            pass
    except (DecoderError, OSError) as error:
        if str(error) == "missing":
            return f"PyAV is missing; {from_checkout('video')}"
        return "the process of the decoder doesn't work on this system"
    if message.get("isolated") is not True:
        return (
            "this system can't isolate the process of the decoder (Linux on x86-64 and AArch64 can)"
        )
    return None


def audio_header(
    file: io.BufferedIOBase, format: str, *, max_seconds: float = 0, stop: Stop | None = None
) -> tuple[int, int, int | None]:
    """Return rate in Hz, channels and samples (None: unknown) of a container's first audio stream; `format` is FFmpeg's
    name. Raises `DecoderError`, and as `DecoderProcess` does."""
    with _audio(file, format, max_seconds, stop, header=True) as decoder:
        header, _ = _first(iter(decoder))
    rate, channels = _numbers(header, "rate", "channels")
    samples = header.get("samples")
    return rate, channels, samples if isinstance(samples, int) and samples > 0 else None


def audio_blocks(
    file: io.BufferedIOBase, format: str, *, max_seconds: float, stop: Stop | None = None
) -> Iterator[Float[np.ndarray, "n channels"]]:
    """Yield the samples of a container's first audio stream. The caller limits their number. Raises as
    `audio_header` does."""
    with _audio(file, format, max_seconds, stop, header=False) as decoder:
        messages = iter(decoder)
        _, channels = _numbers(_first(messages)[0], "rate", "channels")
        for _, data in messages:
            if not data or len(data) % (4 * channels):
                raise _crashed("sent parts of samples")
            yield np.frombuffer(data, np.float32).reshape(-1, channels)


def _audio(
    file: io.BufferedIOBase, format: str, max_seconds: float, stop: Stop | None, *, header: bool
) -> DecoderProcess:
    return DecoderProcess(
        file,
        {"task": "audio", "format": format, "header": header},
        cpu_seconds=CPU_SECONDS + math.ceil(max_seconds / AUDIO_SPEED),
        stop=stop,
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
) -> Iterator[tuple[int, int, bytes]]:
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
    ) as decoder:
        for count, (message, data) in enumerate(decoder):
            width, height = _numbers(message, "width", "height")
            if count >= frames or len(data) != 3 * width * height:
                raise _crashed("sent another frame")
            yield width, height, data


def _first(messages: Iterator[tuple[dict[str, Any], bytes]]) -> tuple[dict[str, Any], bytes]:
    if (message := next(messages, None)) is None:
        raise _crashed("sent no message")
    return message


def _numbers(message: dict[str, Any], *names: str) -> tuple[int, int]:
    """Two numbers of a message, both above 0."""
    first, second = (message.get(name) for name in names)
    if not (isinstance(first, int) and isinstance(second, int) and first > 0 and second > 0):
        raise _crashed("sent a wrong number")
    return first, second
