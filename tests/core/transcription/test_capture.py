"""Audio from a pipe and from a microphone."""

import io
import struct
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import soundfile

from polyphi.transcription.capture import microphone, pipe

SAMPLES = (1000 * np.random.default_rng(0).standard_normal(5000)).astype("<i2")


def wav(samples: np.ndarray, rate: int = 16000, **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", **options)
    return file.getvalue()


class Slow(io.RawIOBase):
    """A pipe that returns a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, size: int = -1) -> bytes:
        size = min(size, 77)
        part, self.data = self.data[:size], self.data[size:]
        return part


def read(data: bytes, rate: int = 16000) -> tuple[int, np.ndarray]:
    rate, blocks = pipe(Slow(data), rate)  # type: ignore[arg-type]
    return rate, np.concatenate(list(blocks) or [np.empty(0, np.int16)])


def test_raw_samples() -> None:
    for count in (5000, 1600, 6, 5, 0):
        rate, samples = read(SAMPLES[:count].tobytes(), 8000)
        assert rate == 8000 and (samples == SAMPLES[:count]).all() and len(samples) == count
    assert len(read(SAMPLES.tobytes() + b"x")[1]) == 5000, "half a sample is dropped"


@pytest.mark.parametrize("rate", [8000, 24000, 44100])
def test_wav(rate: int) -> None:
    assert read(wav(SAMPLES, rate))[0] == rate
    assert (read(wav(SAMPLES, rate))[1] == SAMPLES).all()
    stereo = wav(np.stack([SAMPLES, SAMPLES], axis=1), rate)
    assert (read(stereo)[1] == SAMPLES).all()
    extensible = wav(SAMPLES, rate).replace(b"fmt \x10\0\0\0\x01\0", b"fmt \x10\0\0\0\xfe\xff")
    assert (read(extensible)[1] == SAMPLES).all()


def test_a_wav_stream_has_no_length_and_may_have_other_chunks() -> None:
    data = wav(SAMPLES)
    at = data.index(b"data")
    endless = data[: at + 4] + b"\xff\xff\xff\xff" + data[at + 8 :]
    assert (read(endless)[1] == SAMPLES).all()
    chunk = b"LIST" + struct.pack("<I", 5) + b"abcde\0"
    assert (read(data[:at] + chunk + data[at:])[1] == SAMPLES).all()


@pytest.mark.parametrize(
    "data",
    [
        wav(SAMPLES, subtype="FLOAT"),
        wav(SAMPLES, subtype="PCM_24"),
        wav(SAMPLES, 4000),
        wav(SAMPLES)[:30],
        wav(SAMPLES)[:12],
        wav(SAMPLES)[:12] + b"data" + bytes(40),
        wav(SAMPLES)[:12] + (b"junk" + struct.pack("<I", 1000) + bytes(1000)) * 100,
        wav(SAMPLES)[:12] + b"junk\xff\xff\xff\xff" + bytes(100),
        b"fLaC" + bytes(100),
        b"OggS" + bytes(100),
        b"ID3\x04" + bytes(100),
    ],
)
def test_other_streams_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        read(data)


def test_a_rate_of_raw_samples_is_checked() -> None:
    with pytest.raises(ValueError, match="100"):
        read(SAMPLES.tobytes(), 100)


def device(monkeypatch: pytest.MonkeyPatch, failure: Exception | None = None) -> type[Exception]:
    """A package whose microphone plays `SAMPLES`."""

    class PortAudioError(Exception):
        pass

    @contextmanager
    def stream(**options: Any) -> Iterator[None]:
        assert options["dtype"] == "int16" and options["channels"] == 1
        options["callback"](SAMPLES[:1600].tobytes(), 1600, None, None)
        options["callback"](SAMPLES[1600:3200].tobytes(), 1600, None, None)
        yield

    def opened(**options: Any) -> Any:
        if failure:
            raise PortAudioError(str(failure))
        return stream(**options)

    module = types.ModuleType("sounddevice")
    vars(module).update(RawInputStream=opened, PortAudioError=PortAudioError)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return PortAudioError


def test_a_microphone(monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch)
    with microphone() as (rate, blocks):
        assert rate == 16000
        assert (np.concatenate([next(blocks), next(blocks)]) == SAMPLES[:3200]).all()


def test_without_a_microphone_the_error_names_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, OSError("no device"))
    with pytest.raises(ValueError, match="arecord"), microphone():
        pass
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ValueError, match="arecord"), microphone():
        pass
