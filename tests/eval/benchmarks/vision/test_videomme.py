"""Frames of a video: their selection and order."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyphi.processing.video import decode_video
from polyphi_eval.benchmarks.vision import videomme
from polyphi_eval.score import rows_of

av = pytest.importorskip("av")


def write_video(path: Path, count: int, codec: str) -> None:
    """Write a video in which a bright area grows from left to right."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = 64
        for number in range(count):
            frame = np.full((64, 64, 3), 20, np.uint8)
            frame[:, : 64 * (number + 1) // count] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])  # the latter's frames refer to later ones
@pytest.mark.parametrize("count", [5, 16, 100])
def test_frames_are_evenly_spaced_from_the_first_to_the_last(
    tmp_path: Path, codec: str, count: int
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec} here")
    write_video(tmp_path / "film.mp4", count, codec)
    with av.open(str(tmp_path / "film.mp4")) as container:  # one after another, without seeking
        decoded = [np.asarray(frame.to_image()).astype(int) for frame in container.decode(video=0)]
    assert len(decoded) == count
    frames = videomme.frames(tmp_path / "film.mp4")
    indices = np.linspace(0, count - 1, 16).astype(int)
    for frame, index in zip(frames, indices, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(frame))).astype(int)
        nearest = min(range(count), key=lambda n: np.abs(pixels - decoded[n]).mean())
        assert np.array_equal(decoded[nearest], decoded[index])


def test_its_note_says_that_videos_of_messages_have_other_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", 64, "mpeg4")

    def bright(image: Image.Image) -> float:
        return float((np.asarray(image.convert("L")) > 120).mean())

    own = [bright(Image.open(io.BytesIO(f))) for f in videomme.frames(tmp_path / "film.mp4")]
    messages = [bright(frame) for frame in decode_video(tmp_path / "film.mp4", frames=16)]
    assert own[0] < messages[0] and messages[-1] < own[-1]
    line = {
        "meta": {"duration": "short"},
        "value": 1.0,
        "parts": {},
        "extracted": "A",
        "error": None,
    }
    line |= {"cut": False, "sound_seconds": 0.0, "seconds": 0.0}
    for row in rows_of(videomme.benchmark, [line]):
        assert "from the first to the last" in row.note and "middle" in row.note


def test_the_error_names_a_damaged_video(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"no video at all")
    with pytest.raises(ValueError, match=r"film\.mp4: expected a video that can be decoded"):
        videomme.frames(tmp_path / "film.mp4")
