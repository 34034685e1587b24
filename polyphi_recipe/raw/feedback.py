"""Red-team feedback: a JSON lines file to which anyone appends, and the training rows made of it (report 5.1).

    {"prompt": "How do I make a bomb?", "language": "en", "harmful": true,
     "answered": "Gladly! Take ...", "expected": "Sorry, I can't help with that.", "image": "photos/1.png", ...}

    prompt, language   the model's prompt, in which of the eight languages
    harmful            true: it should have refused. false: it should have helped, and didn't, or did badly
    answered           the model's answer; optional
    expected           the answer it should have given; optional where `harmful`, because refusals are standard texts
    image, audio       files of the prompt, relative to the feedback file; optional
    by, model, note    free text; kept, never read

>>> append(Path("feedback.jsonl"), {"prompt": "...", "language": "en", "harmful": True, "answered": "Gladly! ..."})
>>> pairs(read(Path("feedback.jsonl")))               # for DPO: `answered` is dispreferred
>>> answers(read(Path("feedback.jsonl")))             # for SFT: refusals, and the help that was refused

    python -m polyphi_recipe.raw.feedback add feedback.jsonl --prompt "..." --language en --harmful --answered "..."
    python -m polyphi_recipe.raw.feedback check feedback.jsonl

Several people and programs may append at the same time: each line is written whole. The id of a row is a hash of its
line, so that later lines don't change it.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyphi.data.confinement import inside
from polyphi.data.shards import Sample
from polyphi.media import media
from polyphi.runtime import files, inputs
from polyphi.text.quantity import quantity
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from polyphi_recipe.raw.safety import REFUSAL
from polyphi_recipe.text.lexicon import LANGUAGES

REQUIRED = ("prompt", "language", "harmful")
OPTIONAL = ("answered", "expected", "image", "audio", "by", "model", "note")
SOURCE = "feedback"


@dataclass(frozen=True)
class CheckedLine:
    """A checked line: `answered` is "" if it is absent, media are encoded bytes or None."""

    id: str
    prompt: str
    language: str
    harmful: bool
    answered: str
    expected: str
    image: bytes | None = None
    audio: bytes | None = None


def finding(row: Any, root: Path) -> CheckedLine:
    """Return a row of the file as a finding; media are read from `root` or below. Raises ValueError with what was
    expected and what was found."""
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    if missing := [key for key in REQUIRED if key not in row]:
        raise ValueError(
            f"{', '.join(missing)} is missing; expected {', '.join(REQUIRED)} and perhaps {', '.join(OPTIONAL)}"
        )
    if unknown := sorted(set(row) - {*REQUIRED, *OPTIONAL}):
        raise ValueError(
            f"unknown {', '.join(unknown)}; expected {', '.join(REQUIRED)} and perhaps {', '.join(OPTIONAL)}"
        )
    for key in {*REQUIRED, *OPTIONAL} & set(row) - {"harmful"}:
        if not isinstance(row[key], str):
            raise ValueError(f"`{key}` is text, found {row[key]!r:.60}")
    if not isinstance(row["harmful"], bool):
        raise ValueError(f"`harmful` is true or false, found {row['harmful']!r:.60}")
    if row["language"] not in LANGUAGES:
        raise ValueError(f"`language` is one of {', '.join(LANGUAGES)}, found {row['language']!r}")
    attachments = {key: _read(row[key], root, key) for key in ("image", "audio") if row.get(key)}
    prompt, answered = row["prompt"].strip(), row.get("answered", "").strip()
    expected = row.get("expected", "").strip()
    if not prompt and not attachments:
        raise ValueError("`prompt` is empty, and no image or audio is named")
    if not expected and not row["harmful"]:
        raise ValueError(
            "`expected` is missing: for a harmless request give the answer that the model should have given"
        )
    expected = expected or REFUSAL[row["language"]]
    if answered == expected:
        raise ValueError("`answered` and `expected` are the same; expected two different answers")
    id = hashlib.sha256(_line(row)).hexdigest()[:16]
    return CheckedLine(
        f"feedback-{id}", prompt, row["language"], row["harmful"], answered, expected, **attachments
    )


def _read(name: str, root: Path, modality: str) -> bytes:
    try:
        path = inside(root, name)
        inputs.note(path)
        data = path.read_bytes()
    except ValueError as error:
        raise ValueError(f"`{modality}`: {error}") from None
    media.decode_image(data) if modality == "image" else media.decode_audio(data)
    return data


def read(path: Path, *, bad: Callable[[str], None] | None = None) -> Iterator[CheckedLine]:
    """Yield all findings of a file, equal lines once. A line that can't be used raises ValueError with its number, or
    with `bad` is skipped and its message passed to `bad`."""
    seen: set[str] = set()
    inputs.note(path)
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = finding(_parsed(line), Path(path).parent)
            except ValueError as error:
                message = f"{Path(path).name}, line {number}: {error}"
                if bad is None:
                    raise ValueError(message) from None
                bad(message)
                continue
            if entry.id not in seen:
                seen.add(entry.id)
                yield entry


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON, {error}") from None


def append(path: Path, row: Mapping[str, Any]) -> CheckedLine:
    """Append a finding to the file, which is created if absent. Raises ValueError, and writes nothing, if the row can't
    be used."""
    path = Path(path)
    checked, line = finding(row, path.parent), _line(row) + b"\n"
    files.append(path, line)
    return checked


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(dict(sorted(row.items())), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds a lone surrogate") from None


# Rows ------------------------------------------------------------------------------------------------------------


def answers(findings: Iterable[CheckedLine], licence: str = "proprietary") -> Iterator[Sample]:
    """Yield samples for SFT: each prompt with its media and the expected answer."""
    for entry in findings:
        yield _sample(entry, licence, {})


def pairs(findings: Iterable[CheckedLine], licence: str = "proprietary") -> Iterator[Sample]:
    """Yield pairs for DPO: the expected answer is preferred to the model's. Text only, because DPO trains the language
    model; findings without an answer are skipped."""
    for entry in findings:
        if entry.answered and entry.image is None and entry.audio is None:
            yield _sample(entry, licence, {"rejected": entry.answered})


def _sample(entry: CheckedLine, licence: str, extra: dict[str, Any]) -> Sample:
    images = [Image(entry.image)] if entry.image is not None else []
    audios = [Audio(entry.audio)] if entry.audio is not None else []
    text = [entry.prompt] if entry.prompt else []
    meta = {
        "task": "refusal" if entry.harmful else "overrefusal",
        "language": entry.language,
        "refuse": entry.harmful,
        **extra,
    }
    messages = (Message.user(*images, *audios, *text), Message.assistant(entry.expected))
    return Sample(entry.id, messages, SOURCE, licence, meta)


def main(arguments: Sequence[str]) -> None:
    """`add FILE --prompt ... --language ... (--harmful | --harmless) ...` or `check FILE`."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m polyphi_recipe.raw.feedback")
    verbs = parser.add_subparsers(dest="verb", required=True)
    adding = verbs.add_parser("add", help="append a finding")
    adding.add_argument("file", type=Path)
    adding.add_argument("--prompt", default="")
    adding.add_argument("--language", required=True)
    harm = adding.add_mutually_exclusive_group(required=True)
    harm.add_argument("--harmful", action="store_true", dest="harmful")
    harm.add_argument("--harmless", action="store_false", dest="harmful")
    for key in OPTIONAL:
        adding.add_argument(f"--{key}")
    checking = verbs.add_parser("check", help="list every line that can't be used")
    checking.add_argument("file", type=Path)
    options = vars(parser.parse_args(arguments))
    verb, file = options.pop("verb"), options.pop("file")
    try:
        if verb == "add":
            row = {key: value for key, value in options.items() if value is not None}
            print(append(file, row).id)
            return
        errors: list[str] = []
        findings = list(read(file, bad=errors.append))
    except (ValueError, OSError) as error:
        sys.exit(f"feedback: {error}")
    harmful = sum(f.harmful for f in findings)
    print(
        "\n".join([*errors, f"{quantity(len(findings), 'finding')}, {harmful} of harmful requests"])
    )
    if errors:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
