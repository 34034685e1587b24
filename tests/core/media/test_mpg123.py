"""What libmpg123 prints for damaged files is left out, and nothing else."""

import io
import os
import random
import threading

import numpy as np
import pytest
import soundfile

from polyphi.media import mpg123
from polyphi.media.media import AudioStream, MediaError


def damaged_mp3() -> bytes:
    """Five seconds of a tone with 60 random bytes, for which libmpg123 prints lines."""
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(80_000) / 16_000)
    file, draws = io.BytesIO(), random.Random(0)
    soundfile.write(file, tone.astype(np.float32), 16_000, format="MP3")
    data = bytearray(file.getvalue())
    for _ in range(60):
        data[draws.randrange(400, len(data))] = draws.randrange(256)
    return bytes(data)


def test_a_damaged_clip_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    data = damaged_mp3()
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        file.read()
    assert "mpg123" in capfd.readouterr().err  # or else this test shows nothing
    with pytest.raises(MediaError, match="truncated"):
        list(AudioStream(data))
    assert capfd.readouterr() == ("", "")


def test_other_lines_are_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with mpg123.without_messages():
        os.write(2, b"[src/libmpg123/layer3.c:do():1] error: x\nNote: y\n\nours\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "ours\nafter\n"


def test_threads_of_a_server_keep_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    def decode() -> None:
        with mpg123.without_messages():
            os.write(2, b"Note: y\n")

    thread = threading.Thread(target=decode)
    thread.start()
    thread.join()
    assert capfd.readouterr().err == "Note: y\n"
