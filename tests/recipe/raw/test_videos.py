"""Videos with captions and questions become rows of frames; cartoons show their events in order."""

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from polyphi.data.shards import Sample
from polyphi.processing.video import decode_video
from polyphi.types.messages import media
from polyphi.types.parts import Image as Picture
from polyphi_recipe.raw import videos
from polyphi_recipe.synthetic import cartoons
from polyphi_recipe.synthetic.scenes import Scene
from polyphi_recipe.text.lexicon import COLOUR_RGB

EVENTS = ("moves right", "grows", "turns blue")


def film(frames: Sequence[Image.Image]) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        stream.bit_rate = 2_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    return out.getvalue()


def cartoon(*events: str, colour: str = "red", seed: int = 0) -> cartoons.Cartoon:
    return cartoons.draw(Scene(random.Random(seed), "train", 0), "square", colour, events)


def square(frame: Image.Image) -> tuple[float, float, float, np.ndarray]:
    """Return (centre x and y, width, colour) of the pixels that differ from the background."""
    pixels = np.asarray(frame).astype(int)
    mask = np.abs(pixels - pixels[0, 0]).sum(axis=2) > 120
    ys, xs = np.nonzero(mask)
    return xs.mean(), ys.mean(), np.sqrt(len(xs)), np.median(pixels[mask], axis=0)


def test_a_cartoon_shows_its_events_in_order_and_says_so() -> None:
    drawn = cartoon(*EVENTS)
    assert drawn.summary() == "A red square moves right, then grows, then turns blue."
    assert len(drawn.frames) == 32 and len(drawn.sampled_frames()) == 4
    a, b, c, d = (square(frame) for frame in drawn.sampled_frames())
    assert b[0] > a[0] + 40 and abs(b[1] - a[1]) < 2 and abs(b[2] - a[2]) < 2
    assert c[2] > 1.7 * b[2] and abs(c[0] - b[0]) < 2
    assert np.abs(d[3] - COLOUR_RGB["blue"]).max() < 20 < np.abs(c[3] - COLOUR_RGB["blue"]).max()
    assert abs(d[2] - c[2]) < 2


@pytest.mark.parametrize("event", [*cartoons.PLAIN, "turns green"])
def test_every_event_changes_what_it_says_and_nothing_else(event: str) -> None:
    before, after = (square(f) for f in cartoon(event, seed=3).sampled_frames())
    changed = {name for name, a, b in zip("xys", before, after, strict=False) if abs(a - b) > 3} | (
        {"colour"} if np.abs(before[3] - after[3]).max() > 40 else set()
    )
    axis = {"left": "x", "right": "x", "up": "y", "down": "y"}.get(event.rsplit(maxsplit=1)[-1])
    assert changed == {axis or ("colour" if event.startswith("turns") else "s")}
    larger = {"moves right": 0, "moves down": 1, "grows": 2}
    smaller = {"moves left": 0, "moves up": 1, "shrinks": 2}
    if event in larger:
        assert after[larger[event]] > before[larger[event]]
    if event in smaller:
        assert after[smaller[event]] < before[smaller[event]]


def test_a_shape_stays_in_the_picture() -> None:
    scene = Scene(random.Random(0), "train", 0)
    for seed in range(20):
        events = random.Random(seed).sample(cartoons.PLAIN, 3)
        drawn = cartoons.draw(scene, "circle", "black", events)
        for frame in drawn.frames:
            edge = np.asarray(frame)[[0, -1]].reshape(-1, 3)
            assert (edge == edge[0]).all(), events


def test_what_is_seen_of_a_cartoon_is_what_decoding_its_file_gives() -> None:
    drawn = cartoon(*EVENTS)
    decoded = decode_video(film(drawn.frames), frames=4)
    for a, b in zip(drawn.sampled_frames(), decoded, strict=True):
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).mean() < 6


def frames_of(sample: Sample) -> list[Image.Image]:
    return [Image.open(io.BytesIO(p.source)) for p in media(sample.messages, Picture)]


def test_a_folder_of_videos_with_texts_becomes_rows(tmp_path: Path) -> None:
    drawn = cartoon(*EVENTS)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.mp4").write_bytes(film(drawn.frames))
    (tmp_path / "in" / "b.txt").write_text(drawn.summary() + "\n")
    (tmp_path / "a.MP4").write_bytes(film(drawn.frames)[:900])
    (tmp_path / "a.txt").write_text("Broken.")
    (tmp_path / "c.mp4").write_bytes(film(drawn.frames))  # without a text
    messages: list[str] = []
    (row,) = videos.read(
        tmp_path, source="mine", licence="CC0-1.0", frames=4, cap=64, report=messages.append
    )
    assert row.answer == drawn.summary() and row.prompt[0].text == videos.QUESTION
    assert [(f.size, f.format) for f in frames_of(row)] == [((64, 64), "JPEG")] * 4
    assert row.meta == {"task": "video", "file": "in/b.mp4", "frames": 4} and row.source == "mine"
    assert len(messages) == 1 and "a.MP4" in messages[0] and "damaged" in messages[0]


def test_rows_name_their_videos(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(film(cartoon(*EVENTS).frames))
    (tmp_path.parent / "outside.mp4").write_bytes(film(cartoon(*EVENTS).frames))
    turns = [
        {"from": "human", "value": "<video>\nWhat moves?"},
        {"from": "gpt", "value": "A square."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "To the right."},
    ]
    rows = [
        {"video": "v.mp4", "caption": "It grows. <video>", "id": "first"},
        {"video": "v.mp4", "question": "What?", "answer": "A square."},
        {"video": "v.mp4", "conversations": turns},
        {"video": "v.mp4", "conversations": turns[2:]},
        {"video": "../outside.mp4", "caption": "Out."},
        {"video": "none.mp4", "caption": "None."},
        {"video": "v.mp4"},
        ["no object"],
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\nno JSON\n")
    messages: list[str] = []
    samples = list(videos.read(file, source="m", licence="l", frames=2, report=messages.append))
    assert [s.id for s in samples] == ["first", "rows.jsonl, line 2", "rows.jsonl, line 3"]
    assert [s.answer for s in samples] == ["It grows. <video>", "A square.", "To the right."]
    assert [len(frames_of(s)) for s in samples] == [2, 2, 2]
    assert [m.text for m in samples[2].messages] == [
        "What moves?",
        "A square.",
        "Where?",
        "To the right.",
    ]
    reasons = ["expected one <video>", "inside the row's folder", "no file", "expected `caption`",
               "whose `video` is a path", "Expecting value"]  # fmt: skip
    assert len(messages) == len(reasons)
    assert all(reason in line for reason, line in zip(reasons, messages, strict=True)), messages
    parts = [
        [
            s.id
            for s in videos.read(file, source="m", licence="l", part=(i, 2), report=messages.append)
        ]
        for i in (0, 1)
    ]
    assert parts == [["first", "rows.jsonl, line 3"], ["rows.jsonl, line 2"]]


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=str(path)):
            list(videos.read(path, source="m", licence="l"))
