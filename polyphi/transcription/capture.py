"""Live audio for the command line: from a pipe (WAV or raw samples) or from a microphone, as 16-bit mono samples.

>>> rate, blocks = pipe(sys.stdin.buffer, rate=16000)        # arecord -q -f S16_LE -r 16000 | ...
>>> for samples in blocks: live.append(samples)
"""

import queue
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int16

from polyphi.text.quantity import quantity

Blocks = Iterator[Int16[np.ndarray, " n"]]
MICROPHONE_RATE = 16000  # Hz
BLOCK = 0.1  # s of a block
MAX_HEADER = 64 << 10  # bytes before the samples of a WAV stream
RATES = (8000, 192_000)  # Hz, lowest and highest
CHANNELS = 8
PIPE = "or pipe the audio: arecord -q -f S16_LE -r 16000 -c 1 | polyphi transcribe MODEL --live -"
PCM, EXTENSIBLE = 1, 0xFFFE  # formats of WAV


def pipe(stream: BinaryIO, rate: int) -> tuple[int, Blocks]:
    """(rate in Hz, blocks) of a stream: of WAV with 16-bit samples, whose header may lack the length, or of raw 16-bit
    little-endian mono samples at `rate`. Raises ValueError for another kind of stream."""
    head = _read(stream, 12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        rate, channels = _wav_header(stream)
        return rate, _blocks(stream, b"", rate, channels)
    if head[:4] in (b"fLaC", b"OggS") or head[:3] == b"ID3":
        raise ValueError(
            "--live reads WAV or raw 16-bit samples from a pipe; convert other formats first, for example with ffmpeg "
            "-i FILE -f wav -"
        )
    return rate, _blocks(stream, head, rate, 1)


def _read(stream: BinaryIO, count: int) -> bytes:
    """The next bytes, fewer only at the end of the stream."""
    data = b""
    while len(data) < count and (part := stream.read(count - len(data))):
        data += part
    return data


def _wav_header(stream: BinaryIO) -> tuple[int, int]:
    """(rate, channels) of a WAV stream, read up to its first sample."""
    rate = channels = size = 0
    while size < MAX_HEADER:
        name, length = struct.unpack("<4sI", _read(stream, 8).ljust(8, b"\0"))
        if name == b"data" and rate:
            return rate, channels
        size += 8 + length + length % 2
        chunk = _read(stream, min(length + length % 2, MAX_HEADER))
        if name == b"fmt " and len(chunk) >= 16:
            form, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunk[:16])
            if form not in (PCM, EXTENSIBLE) or bits != 16 or not 1 <= channels <= CHANNELS:
                raise ValueError(
                    f"the WAV stream has format {form}, {bits} bits and {quantity(channels, 'channel')}; "
                    f"expected 16-bit PCM of up "
                    f"to {CHANNELS} channels"
                )
            _check_rate(rate)
        elif name == b"\0\0\0\0":
            break
    raise ValueError("the WAV stream has no format and samples in its header")


def _check_rate(rate: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"expected a rate from {RATES[0]} to {RATES[1]} Hz, found {rate}")


def _blocks(stream: BinaryIO, rest: bytes, rate: int, channels: int) -> Blocks:
    _check_rate(rate)
    frame = 2 * channels
    size = round(BLOCK * rate) * frame
    while True:
        data = rest + _read(stream, size - len(rest))
        samples = np.frombuffer(data[: len(data) // frame * frame], "<i2").reshape(-1, channels)
        if len(samples):
            yield samples[:, 0] if channels == 1 else samples.mean(axis=1).astype(np.int16)
        if len(data) < size:
            return
        rest = b""


def sound_devices() -> Any:
    """The package for microphones. Raises ValueError if it isn't installed."""
    try:
        import sounddevice
    except (ImportError, OSError):  # OSError: the package is there, PortAudio isn't
        message = (
            "a microphone needs the package sounddevice and PortAudio (pip install sounddevice)"
        )
        raise ValueError(f"{message}; {PIPE}") from None
    return sounddevice


@contextmanager
def microphone() -> Iterator[tuple[int, Blocks]]:
    """(rate in Hz, blocks) of the default microphone. Raises ValueError without one."""
    sounddevice = sound_devices()
    blocks: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

    def receive(data: Any, frames: int, time: Any, status: Any) -> None:
        blocks.put(np.frombuffer(bytes(data), np.int16))

    def endless() -> Blocks:
        while True:
            yield blocks.get()

    try:
        stream = sounddevice.RawInputStream(
            samplerate=MICROPHONE_RATE,
            blocksize=round(BLOCK * MICROPHONE_RATE),
            channels=1,
            dtype="int16",
            callback=receive,
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise ValueError(f"no microphone can be opened ({error}); {PIPE}") from None
    with stream:
        yield MICROPHONE_RATE, endless()
