"""The record of the transcripts in a folder: which are up to date, and which were edited by hand.

A folder of transcripts has a file of JSON lines, `.transcripts.jsonl`: for each transcript the hash of its text, of the
recording's bytes, and of the model and options. A line is appended before its transcript is written: after a kill
between the two, the transcript is that of an earlier line or missing. The last line of a text is the valid one.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from polyphi.runtime.files import append, sha256, write_whole

RECORD = ".transcripts.jsonl"
RecordLine = dict[str, str]
RecordState = Literal["missing", "current", "outdated", "edited", "edited and outdated"]


def read(folder: Path) -> dict[str, list[RecordLine]]:
    """The lines of each transcript in a folder, by its name, in their order."""
    lines: dict[str, list[RecordLine]] = defaultdict(list)
    with suppress(FileNotFoundError):
        for text in (folder / RECORD).read_bytes().splitlines():
            with suppress(ValueError, TypeError, KeyError):  # empty, or cut short by a kill
                line = json.loads(text)
                lines[line["transcript"]].append(line)
    return lines


def state(target: Path, lines: Sequence[RecordLine], recording: Path, settings: str) -> RecordState:
    """Whether the transcript `target`, with its lines, is that of the recording's bytes with these settings (a hash),
    and whether its text is one that `write` wrote. Raises OSError where one of the files can't be read."""
    if not target.exists():
        return "missing"
    text = sha256(target)
    ours = [line for line in lines if line.get("text") == text]
    of = {"recording": sha256(recording), "settings": settings}
    is_current = bool(lines) and (ours or lines)[-1].items() >= of.items()
    if ours:
        return "current" if is_current else "outdated"
    return "edited" if is_current else "edited and outdated"


def write(target: Path, text: str, recording: str, settings: str) -> None:
    """Write a transcript, after the hashes of its recording and settings."""
    target.parent.mkdir(parents=True, exist_ok=True)
    line = {
        "transcript": target.name,
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "recording": recording,
        "settings": settings,
    }
    append(target.parent / RECORD, json.dumps(line, ensure_ascii=False).encode() + b"\n")
    write_whole(target, text)
