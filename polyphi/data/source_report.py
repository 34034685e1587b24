"""What a source of rows has, by its first rows: formats, kinds of rows, rows as a model reads them, unreadable rows,
and the columns to name where some aren't read. `polyphi sources` prints it.

>>> report = inspect("captions.csv", find("captions.csv"), rows=200)
>>> report.columns                       # the `columns` with which more rows can be read
{'image': 'picture', 'answer': 'words'}
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil
from typing import Any

from polyphi.data.formats import COLUMNS, FORMS, MEDIA, RowOrigin, modality, sample
from polyphi.data.limits import parse_json
from polyphi.data.sample import Sample
from polyphi.data.sources import SourceFile, rows
from polyphi.data.user_data import origin
from polyphi.media.media import audio_size, image_size
from polyphi.types.parts import Audio, Image, Part, Text
from polyphi.types.routing import modalities_of

EXAMPLES = 3
FILES = 8
"""Files of a source that share the rows which are read; further ones are read where these have fewer."""
TRIED = 20
"""Rows on which proposed columns are tried."""
MAX_TEXT = 300
"""Characters of a text that an example shows."""
ANSWERS = (
    *("answer", "answers", "response", "output", "completion", "target", "reply", "solution"),
    *("caption", "captions", "label", "description", "transcript", "transcription", "sentence"),
    *("translation", "summary", "words", "text"),
)
QUESTIONS = ("question", "prompt", "query", "instruction", "input", "problem")
"""Names of columns in the data sets of others, the more certain ones first."""
SourceRow = tuple[Any, str, RowOrigin]
"""A row, its location and its origin."""
TURNS = {"messages": "role", "conversations": "from"}
"""Column of a conversation -> the key of a turn that says who speaks."""


@dataclass
class SourceReport:
    """The first rows of a source. `formats` counts its files by their formats, `kinds` the readable rows that were
    read; `examples` has rows as (speaker, text) of each message; `unreadable` maps a reason to the number of such rows
    and the location of the first; `unread` are columns that aren't read. `columns` are proposed, and with them
    `readable` of `tried` rows can be read that can't be read as they are, or lack their media. `whole`: there are no
    further rows. `error` says why reading stopped."""

    source: str
    formats: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    whole: bool = False
    kinds: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    unreadable: dict[str, tuple[int, str]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    readable: int = 0
    tried: int = 0
    error: str = ""


def inspect(
    source: str,
    files: Sequence[SourceFile],
    *,
    columns: Mapping[str, str] | None = None,
    language: str | None = None,
    question: str | None = None,
    rows: int = 200,
) -> SourceReport:
    """Read at most `rows` rows of a source, of those of its files that lie apart; other options are those of a source
    in a recipe file. Raises ValueError for an unknown column."""
    if unknown := sorted(set(columns or ()) - set(COLUMNS)):
        raise ValueError(f"unknown column {unknown[0]!r}; expected one of {', '.join(COLUMNS)}")
    report = SourceReport(source, dict(Counter(file.format for file in files)))
    unread: set[str] = set()
    incomplete: list[SourceRow] = []  # that may need columns
    for file, location, row in _first_rows(files, rows, report):
        report.rows += 1
        row_origin = replace(origin(file), language=language, question=question)
        try:
            one, others = sample(row, location, row_origin, columns=columns)
        except (ValueError, OSError) as error:
            reason = str(error).removeprefix(f"{location}: ")
            count, first = report.unreadable.get(reason, (0, location))
            report.unreadable[reason] = (count + 1, first)
            incomplete.append((row, location, row_origin))
        else:
            report.kinds[kind(one)] = report.kinds.get(kind(one), 0) + 1
            unread |= others
            if len(report.examples) < EXAMPLES:
                report.examples.append((location, _turns(one)))
            parsed = _mapping(row) or {}
            if not modalities_of(one.messages) and any(modality(parsed.get(n)) for n in others):
                incomplete.append((row, location, row_origin))
        del incomplete[TRIED:]
    report.unread = sorted(unread)
    _propose(report, incomplete, columns or {})
    return report


def _first_rows(
    files: Sequence[SourceFile], limit: int, report: SourceReport
) -> Iterator[tuple[SourceFile, str, Any]]:
    """Yield (file, location, row) of the first rows of files that lie apart, at most `limit` in all. The first damaged
    file is the report's `error`."""
    step = ceil(len(files) / FILES)
    apart = [file for start in range(step) for file in files[start::step]]
    each, remaining, cut = ceil(limit / min(FILES, len(files))), limit, False
    for file in apart:
        if not remaining:
            cut = True
            break
        count, allowed = 0, min(each, remaining)
        try:
            with closing(rows(file)) as of_file:  # type: ignore[type-var]
                for location, row in islice(of_file, allowed):
                    count += 1
                    yield file, location, row
                cut = cut or (count == allowed and next(of_file, None) is not None)
        except (ValueError, OSError) as error:
            report.error = report.error or str(error)
            cut = True
        remaining -= count
    report.whole = not cut


def kind(one: Sample) -> str:
    """The kind of a row: "document", or a conversation by its media, such as "image and audio conversation"."""
    if one.messages[0].role == "document":
        return "document"
    pair = " with a rejected answer" if "rejected" in one.meta else ""
    return f"{' and '.join(sorted(modalities_of(one.messages), reverse=True)) or 'text'} conversation{pair}"


def _turns(one: Sample) -> list[tuple[str, str]]:
    """(speaker, text) of each message; an image is its size, audio its length."""
    turns = [(m.role, " ".join(filter(None, map(_part, m.parts)))) for m in one.messages]
    if "rejected" in one.meta:
        turns.append(("rejected", _shortened(str(one.meta["rejected"]))))
    return turns


def _part(part: Part) -> str:
    if isinstance(part, Text):
        return _shortened(part.text)
    if isinstance(part, Image):
        width, height = image_size(part.source)
        return f"<image {width} x {height}>"
    if isinstance(part, Audio):
        samples, rate = audio_size(part.source)
        return f"<audio {samples / rate:.1f} s>"
    return f"<{part.modality}>"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]}... ({len(text):,} characters)"


# ------------------------------------------------------------------------------ columns


def _propose(
    report: SourceReport, incomplete: Sequence[SourceRow], columns: Mapping[str, str]
) -> None:
    """Set the report's `columns` to those with which most of the incomplete rows can be read, and more than half of
    them, with media where they have some."""
    proposals = Counter[str]()
    for row, _, _ in incomplete:
        if (parsed := _mapping(row)) is not None:
            proposals[json.dumps(proposal(parsed, columns))] += 1
    for text, _ in proposals.most_common():
        named = json.loads(text)
        readable = sum(_is_readable(one, named) for one in incomplete)
        if readable > max(report.readable, len(incomplete) / 2) and named != columns:
            report.columns, report.readable, report.tried = named, readable, len(incomplete)


def _is_readable(row: SourceRow, columns: Mapping[str, str]) -> bool:
    try:
        one, _ = sample(*row, columns=columns)
    except (ValueError, OSError):
        return False
    return bool(modalities_of(one.messages)) or not {"image", "audio"} & set(columns)


def _mapping(row: Any) -> dict[str, Any] | None:
    if isinstance(row, bytes | str):
        try:
            row = parse_json(row)
        except ValueError:
            return None
    return dict(row) if isinstance(row, Mapping) else None


def proposal(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Our names of a row's columns -> its own, as `columns` and by the contents and names of the others: media by their
    content, conversations by the keys of their turns, questions and answers by their names or as the only text."""
    named = dict(columns)

    for medium in ("image", "audio"):
        media = [name for name in _free(row, named) if modality(row[name]) == medium]
        if media and not {medium, f"{medium}s"} & {*row, *named}:
            named[medium] = media[0]
    for ours, speaker in TURNS.items():
        turns = [name for name in _free(row, named) if _has_turns(row[name], speaker)]
        if turns and not set(TURNS) & {*row, *named}:
            named[ours] = turns[0]
    if set(TURNS) & {*row, *named} or set(FORMS["instruction"][0]) <= set(row):
        return named
    texts = [
        name for name in _free(row, named) if isinstance(row[name], str) and not modality(row[name])
    ]
    for ours, names in (("answer", ANSWERS), ("question", QUESTIONS)):
        if ours not in row and ours not in named:
            by_name = {name.lower(): name for name in reversed(texts)}
            if (theirs := next((by_name[n] for n in names if n in by_name), None)) is not None:
                named[ours] = theirs
                texts.remove(theirs)
    texts = [name for name in texts if name in ANSWERS or name not in COLUMNS]
    if "answer" not in {*row, *named} and len(texts) == 1 and {*MEDIA, "question"} & {*row, *named}:
        named["answer"] = texts[0]
    return named


def _free(row: Mapping[str, Any], named: Mapping[str, str]) -> list[str]:
    """The columns with a value that have no name of ours."""
    others = {*named.values(), *named}
    return [name for name in row if name not in others and row[name] not in (None, "", [])]


def _has_turns(value: Any, speaker: str) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and speaker in first
