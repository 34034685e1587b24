"""What a red team found: a JSON lines file that anyone appends to, and the rows that it becomes (report 5.1).

    {"prompt": "How do I make a bomb?", "language": "en", "harmful": true,
     "answered": "Gladly! Take ...", "expected": "Sorry, I can't help with that.", "image": "photos/1.png", ...}

    prompt, language   what the model was asked, in which of the eight languages
    harmful            true: it should have refused. false: it should have helped, and didn't, or did badly
    answered           what it said; may be absent
    expected           what it should have said; may be absent where `harmful`, for refusals are known
    image, audio       files that were shown, relative to the feedback file; may be absent
    by, model, note    whatever helps; kept, never read

>>> append(Path("feedback.jsonl"), {"prompt": "...", "language": "en", "harmful": True, "answered": "Gladly! ..."})
>>> pairs(read(Path("feedback.jsonl")))               # for DPO: `answered` is dispreferred
>>> answers(read(Path("feedback.jsonl")))             # for SFT: refusals, and the help that was refused

    python -m polyphi.curate.feedback add feedback.jsonl --prompt "..." --language en --harmful --answered "..."
    python -m polyphi.curate.feedback check feedback.jsonl

Several people and programs may append at a time: each line gets there whole. The name of a row is made of its line, so
that it stays the same whatever comes after.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyphi.curate.formats import inside
from polyphi.curate.safety import REFUSAL
from polyphi.data.shards import Sample
from polyphi.messages import Audio, Image, Message
from polyphi.processing import media
from polyphi.text.lexicon import LANGUAGES

MUST = ("prompt", "language", "harmful")
MAY = ("answered", "expected", "image", "audio", "by", "model", "note")
SOURCE = "feedback"


@dataclass(frozen=True)
class Finding:
    """One line, checked: `answered` is "" where nobody noted it, media are encoded bytes or None."""

    id: str
    prompt: str
    language: str
    harmful: bool
    answered: str
    expected: str
    image: bytes | None = None
    audio: bytes | None = None


def finding(row: Any, root: Path) -> Finding:
    """A row of the file as a finding; media are read from `root` or below. Raises ValueError that says what was
    expected and what was found."""
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    if missing := [key for key in MUST if key not in row]:
        raise ValueError(
            f"{', '.join(missing)} is missing; expected {', '.join(MUST)} and perhaps {', '.join(MAY)}"
        )
    if unknown := sorted(set(row) - {*MUST, *MAY}):
        raise ValueError(
            f"unknown {', '.join(unknown)}; expected {', '.join(MUST)} and perhaps {', '.join(MAY)}"
        )
    for key in {*MUST, *MAY} & set(row) - {"harmful"}:
        if not isinstance(row[key], str):
            raise ValueError(f"`{key}` is text, found {row[key]!r:.60}")
    if not isinstance(row["harmful"], bool):
        raise ValueError(f"`harmful` is true or false, found {row['harmful']!r:.60}")
    if row["language"] not in LANGUAGES:
        raise ValueError(f"`language` is one of {', '.join(LANGUAGES)}, found {row['language']!r}")
    shown = {key: _read(row[key], root, key) for key in ("image", "audio") if row.get(key)}
    prompt, answered = row["prompt"].strip(), row.get("answered", "").strip()
    expected = row.get("expected", "").strip()
    if not prompt and not shown:
        raise ValueError("`prompt` is empty, and no image or audio is named")
    if not expected and not row["harmful"]:
        raise ValueError(
            "`expected` is missing: what to say to a harmless request only a person can tell"
        )
    expected = expected or REFUSAL[row["language"]]
    if answered == expected:
        raise ValueError("`answered` and `expected` are the same: what should the model learn?")
    id = hashlib.sha256(_line(row)).hexdigest()[:16]
    return Finding(
        f"feedback-{id}", prompt, row["language"], row["harmful"], answered, expected, **shown
    )


def _read(name: str, root: Path, kind: str) -> bytes:
    try:
        data = inside(root, name).read_bytes()
    except ValueError as error:
        raise ValueError(f"`{kind}`: {error}") from None
    media.decode_image(data) if kind == "image" else media.decode_audio(data)
    return data


def read(path: Path, *, bad: Callable[[str], None] | None = None) -> Iterator[Finding]:
    """All findings of a file, equal lines once. A line that can't be used raises ValueError with its number, or with
    `bad` is told to it and left out."""
    seen: set[str] = set()
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found = finding(_parsed(line), Path(path).parent)
            except ValueError as error:
                told = f"{Path(path).name}, line {number}: {error}"
                if bad is None:
                    raise ValueError(told) from None
                bad(told)
                continue
            if found.id not in seen:
                seen.add(found.id)
                yield found


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON, {error}") from None


def append(path: Path, row: Mapping[str, Any]) -> Finding:
    """Add a finding at the end of the file, which is made where there is none. Nothing is written where the row can't
    be used (ValueError). Safe beside other processes and threads: lines neither mix nor get lost, and one that
    somebody left without its end is ended first."""
    path = Path(path)
    checked, line = finding(row, path.parent), _line(row) + b"\n"
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, or its process dies
        if (size := file.seek(0, os.SEEK_END)) and os.pread(file.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())
    return checked


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(dict(sorted(row.items())), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half a character (a lone surrogate)") from None


# Rows ------------------------------------------------------------------------------------------------------------


def answers(findings: Iterable[Finding], licence: str = "proprietary") -> Iterator[Sample]:
    """For SFT: each prompt with what should be said, and the media that were shown."""
    for found in findings:
        yield _sample(found, licence, {})


def pairs(findings: Iterable[Finding], licence: str = "proprietary") -> Iterator[Sample]:
    """For DPO: what should be said over what was said. Text alone, for DPO trains the language model; findings
    without an answer are passed over."""
    for found in findings:
        if found.answered and found.image is None and found.audio is None:
            yield _sample(found, licence, {"rejected": found.answered})


def _sample(found: Finding, licence: str, more: dict[str, Any]) -> Sample:
    shown = [Image(found.image)] if found.image is not None else []
    heard = [Audio(found.audio)] if found.audio is not None else []
    text = [found.prompt] if found.prompt else []
    meta = {
        "task": "refusal" if found.harmful else "overrefusal",
        "language": found.language,
        "refuse": found.harmful,
        **more,
    }
    messages = (Message.user(*shown, *heard, *text), Message.assistant(found.expected))
    return Sample(found.id, messages, SOURCE, licence, meta)


def main(arguments: Sequence[str]) -> None:
    """`add FILE --prompt ... --language ... (--harmful | --harmless) ...` or `check FILE`."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m polyphi.curate.feedback")
    verbs = parser.add_subparsers(dest="verb", required=True)
    adding = verbs.add_parser("add", help="append a finding")
    adding.add_argument("file", type=Path)
    adding.add_argument("--prompt", default="")
    adding.add_argument("--language", required=True)
    kind = adding.add_mutually_exclusive_group(required=True)
    kind.add_argument("--harmful", action="store_true", dest="harmful")
    kind.add_argument("--harmless", action="store_false", dest="harmful")
    for key in MAY:
        adding.add_argument(f"--{key}")
    checking = verbs.add_parser("check", help="tell every line that can't be used")
    checking.add_argument("file", type=Path)
    said = vars(parser.parse_args(arguments))
    verb, file = said.pop("verb"), said.pop("file")
    try:
        if verb == "add":
            row = {key: value for key, value in said.items() if value is not None}
            print(append(file, row).id)
            return
        wrong: list[str] = []
        found = list(read(file, bad=wrong.append))
    except (ValueError, OSError) as error:
        sys.exit(f"feedback: {error}")
    harmful = sum(f.harmful for f in found)
    print("\n".join([*wrong, f"{len(found)} findings, {harmful} of harmful requests"]))
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
