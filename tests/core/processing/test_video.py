"""Videos: selected frames, and errors of one line."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyphi.media.media import Caps, MediaError, decode_image
from polyphi.processing.expansion import expand
from polyphi.processing.video import decode_video
from polyphi.types.messages import Message
from polyphi.types.parts import Image as ImagePart
from polyphi.types.parts import Text, Video
from tests.fixtures.images import film
from tests.fixtures.variants import few

Make = Callable[..., bytes]


def numbers(frames: list[Image.Image], count: int) -> list[float]:
    """Return the indices of frames of `film` by their brightness."""
    return [(np.asarray(f).mean() - 20) * (count - 1) / 200 for f in frames]


@pytest.mark.parametrize(
    ("format", "codec"),
    [
        ("mp4", "mpeg4"),
        ("mp4", "libx264"),
        ("webm", "libvpx"),
        ("matroska", "mpeg4"),
        ("avi", "mpeg4"),
    ],
)
@pytest.mark.parametrize("gop", few([12, 1, 100], 1))
def test_frames_of_a_video_cover_its_time_evenly(format: str, codec: str, gop: int) -> None:
    frames = decode_video(film(40, format, codec, gop), frames=4)
    assert [f.size for f in frames] == [(64, 48)] * 4 and frames[0].mode == "RGB"
    assert numbers(frames, 40) == pytest.approx([5, 15, 25, 35], abs=1)


def test_a_short_video_gives_all_that_it_has() -> None:
    assert numbers(decode_video(film(3), frames=16), 3) == pytest.approx([0, 1, 2], abs=0.1)
    assert len(decode_video(film(1), frames=16)) == 1


def test_what_is_no_video_is_refused_in_one_line(png: Make, tmp_path: Path) -> None:
    whole = film(40)
    for source, message in (
        (png(4, 4), "expected an MP4, WebM, Matroska or AVI video, found PNG"),
        (b"#EXTM3U\nfile:///etc/passwd", "found text"),
        (b"ffconcat version 1.0\nfile /etc/passwd", "found text"),
        (whole[:60], "damaged or truncated"),
        (whole[: len(whole) // 2], "damaged"),  # an MP4's table stands at its end
        (film(0, sound=True), "only sound"),
        (tmp_path / "none.mp4", "found nothing there"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            decode_video(source)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("format", "count"),
    [
        ("mp4", 12),
        *(pytest.param(f, 150, marks=pytest.mark.long) for f in ("mp4", "webm", "avi")),
    ],
)
def test_damaged_videos_are_read_or_refused_and_nothing_else(format: str, count: int) -> None:
    whole = film(12, format, "libvpx" if format == "webm" else "mpeg4")
    rng, refused = np.random.default_rng(0), 0
    for _ in range(count):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(0, len(data), 5)] = rng.integers(0, 256, 5)
        try:
            assert 1 <= len(decode_video(data.tobytes(), frames=4)) <= 4
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 0 < refused < count


def test_a_video_is_held_to_its_caps() -> None:
    whole = film(40)
    for caps, frames, message in (
        (Caps(video_bytes=100), 4, "may have 100 bytes"),
        (Caps(frame_pixels=1000), 4, "may have 1,000 pixels, found 3,072"),
        (Caps(video_seconds=2.0), 4, "may last 2 s, found 5.0 s"),
        (Caps(), 0, "1 to 1024 frames, found 0"),
        (Caps(video_frames=8), 9, "1 to 8 frames, found 9"),
        (Caps(video_pixels=4 * 64 * 48), 5, "12,288 pixels in all, found 15,360"),
    ):
        with pytest.raises(MediaError, match=message) as refused:
            decode_video(whole, frames=frames, caps=caps)
        assert refused.value.reason == "size"
    assert len(decode_video(film(40), frames=4, caps=Caps(video_pixels=4 * 64 * 48))) == 4


def test_a_video_becomes_its_frames_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "walk.mp4").write_bytes(film(40))
    before, after = Text("Before."), Text("What happens?")
    walk = Video(tmp_path / "walk.mp4", frames=4, detail="low", max_crops=2)
    first, second = expand([Message.user(before, walk, after), Message.assistant("It.")])
    assert first.parts[0] == before and first.parts[-1] == after
    assert second == Message.assistant("It.")
    frames = first.parts[1:-1]
    assert all(isinstance(f, ImagePart) and (f.detail, f.max_crops) == ("low", 2) for f in frames)
    decoded = decode_video(tmp_path / "walk.mp4", frames=4)
    assert len(frames) == 4
    for frame, expected in zip(frames, decoded, strict=True):  # every pixel is kept
        assert np.array_equal(np.asarray(decode_image(frame.source)), np.asarray(expected))


def test_without_pyav_a_video_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = film(1)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"\[video\]") as refused:
        decode_video(whole)
    assert "\n" not in str(refused.value)
