"""Videos with captions or questions -> rows of frames (report 3.2, "video summarization").

    clips/                     a folder: each video with a text file of the same name
      walk.mp4  walk.txt         "A dog walks along the river."
    clips/rows.jsonl           or rows next to the videos, each with one of
      {"video": "walk.mp4", "caption": "A dog walks along the river."}
      {"video": "walk.mp4", "question": "Who walks?", "answer": "A dog."}
      {"video": "walk.mp4", "conversations": [{"from": "human", "value": "<video>\\nWho walks?"}, {"from": "gpt", ...}]}

>>> samples = read(Path("clips"), source="my clips", licence="CC-BY-4.0", frames=16)

Frames are JPEGs of at most 1344 pixels a side, evenly spaced over the video: 16, as the report does for VideoMME.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polyphi.data import formats
from polyphi.data.confinement import inside
from polyphi.data.shards import Sample
from polyphi.processing.video import decode_video
from polyphi.runtime import inputs
from polyphi_recipe.filters.images import CAP, encoded, shrunk

FRAMES = 16
VIDEO = "<video>"
ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
QUESTION = "What happens in the video?"


def read(
    path: Path,
    *,
    source: str,
    licence: str,
    frames: int = FRAMES,
    cap: int = CAP,
    part: tuple[int, int] = (0, 1),
    report: Callable[[str], None] = print,
) -> Iterator[Sample]:
    """Yield a sample for each row of a JSON lines file, or for each video of a folder with a text; for `part` (i, n)
    every n-th from the i-th. Rows that can't be read are reported and skipped. Raises ValueError if there is
    nothing to read."""
    if not path.exists():
        raise ValueError(f"nothing to read at {path}: expected a folder of videos, or JSON lines")
    index, count = part
    inputs.note_listing(path, (*ENDINGS, ".txt"))
    rows = _folder(path) if path.is_dir() else _lines(path)
    root = path if path.is_dir() else path.parent
    rows_read = 0
    for i, (name, row) in enumerate(rows):
        rows_read += 1
        if i % count != index:
            continue
        try:
            parsed = json.loads(row) if isinstance(row, str) else row
            yield _sample(parsed, name, root, frames, cap, source, licence)
        except (ValueError, OSError, RecursionError) as error:
            report(f"  skipped {name}: {error}")
    if not rows_read:
        raise ValueError(
            f"nothing to read at {path}: expected videos ({', '.join(ENDINGS)}) with a .txt of their name, or rows"
        )


def _folder(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS):
        text_path = path.with_suffix(".txt")
        if text_path.is_file():
            inputs.note(text_path)
            name = path.relative_to(folder).as_posix()
            yield name, {"video": name, "caption": text_path.read_text(errors="replace").strip()}


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    inputs.note(file)
    with file.open(encoding="utf-8", errors="replace") as opened:
        for number, line in enumerate(opened, 1):
            if line.strip():
                yield f"{file.name}, line {number}", line


def _sample(
    row: Any, name: str, root: Path, frames: int, cap: int, source: str, licence: str
) -> Sample:
    """Return a row as a sample, converted by LLaVA's format: a video is a sequence of images."""
    if not isinstance(row, Mapping) or not isinstance(row.get("video"), str):
        raise ValueError("expected an object whose `video` is a path")
    turns = _turns(row)
    user_turns = [t for t in turns if formats.SPEAKERS.get(str(t.get("from"))) == "user"]
    if (marks := sum(t["value"].count(VIDEO) for t in user_turns)) != 1:
        raise ValueError(f"expected one {VIDEO} in the user's turns, found {marks}")
    video = inside(root, row["video"])
    inputs.note(video)
    frame_images = decode_video(video, frames=frames)
    images = [{"bytes": encoded(shrunk(image, cap))} for image in frame_images]
    for turn in user_turns:
        head, mark, tail = turn["value"].partition(VIDEO)
        if mark:
            turn["value"] = head + f"{formats.IMAGE}\n" * len(images) + tail.removeprefix("\n")
    sample, _ = formats.sample({"image": images, "conversations": turns}, name)
    meta = {"task": "video", "file": row["video"], "frames": len(images)}
    return Sample(str(row.get("id", name)), sample.messages, source, licence, meta)


def _turns(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the conversation of a row, in which `<video>` stands for the video."""
    if "conversations" in row:
        turns = row["conversations"]
        if not isinstance(turns, list) or not all(
            isinstance(t, Mapping) and isinstance(t.get("value"), str) for t in turns
        ):
            raise ValueError("expected `conversations` as a list of {from, value}")
        return [dict(turn) for turn in turns]
    if "question" in row and "answer" in row:
        question, answer = row["question"], row["answer"]
    elif "caption" in row:
        question, answer = QUESTION, row["caption"]
    else:
        raise ValueError(
            f"expected `caption`, `question` and `answer`, or `conversations`, found {', '.join(map(str, row))}"
        )
    return [
        {"from": "human", "value": f"{VIDEO}\n{question}"},
        {"from": "gpt", "value": str(answer)},
    ]
