"""Manifests of speech data: NeMo, Lhotse, Common Voice, FLEURS, CoVoST and LibriSpeech, as rows of `formats.py`.

A row has `audio` (a path relative to the manifest), `answer` (the transcript or translation), `language`, and for a
segment of a longer recording its `start` and `seconds`. A line that can't be parsed is the ValueError that says why.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from polyphi.data.addresses import ending, exists, join
from polyphi.data.limits import RowLines, encoding_error, parse_json
from polyphi.text.quantity import quantity
from polyphi.types.transcript import LANGUAGES, TRANSLATE

Open = Callable[[], AbstractContextManager[Any]]
Rows = Iterator[tuple[str, Any]]
LIBRISPEECH = (".flac", ".wav", ".mp3", ".ogg", ".opus")
TRANSCRIPT = ".trans.txt"
"""Ending of the names of LibriSpeech's transcript files."""
FLEURS_COLUMNS = 7
"""Number of columns of a FLEURS table, which has no header: number, file, transcript as written, transcript,
characters, samples, gender."""


def manifest_format(path: str, head: str) -> str | None:
    """The format of a manifest by its first lines, None for other files."""
    line = head.partition("\n")[0]
    if ending(path) in (".jsonl", ".json"):
        try:
            row = parse_json(line)
        except ValueError:
            return None
        if not isinstance(row, dict):
            return None
        if "audio_filepath" in row:
            return "nemo"
        return "lhotse" if "recording" in row and "supervisions" in row else None
    columns = line.split("\t")
    if {"path", "sentence"} <= set(columns):
        return "covost" if "translation" in columns else "commonvoice"
    is_fleurs = len(columns) == FLEURS_COLUMNS and columns[0].isdigit()
    return "fleurs" if is_fleurs and columns[1].endswith(".wav") else None


def nemo(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row {"audio_filepath", "text", "offset", "duration", "lang"}; `answer`, where it is there, is another
    target."""
    return _clean(
        audio=row["audio_filepath"],
        answer=row.get("answer", row.get("text")),
        question=row.get("question"),
        language=row.get("lang", row.get("source_lang")),
        start=row.get("offset"),
        seconds=row.get("duration") if row.get("offset") is not None else None,
    )


def lhotse(cut: Mapping[str, Any]) -> dict[str, Any]:
    """A cut with its recording and supervisions: a segment of its recording, whose texts are joined."""
    recording, supervisions = cut["recording"], cut["supervisions"]
    seconds = cut.get("duration")
    whole = not cut.get("start") and (seconds is None or seconds >= recording.get("duration", 0))
    language = next((s["language"] for s in supervisions if s.get("language")), None)
    return _clean(
        id=cut.get("id"),
        audio=recording["sources"][0]["source"],
        answer=" ".join(s["text"] for s in supervisions if s.get("text")) or None,
        language=_code(language),
        start=None if whole else cut.get("start", 0),
        seconds=None if whole else seconds,
    )


def common_voice(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of a .tsv; audio lies in the folder clips beside it."""
    audio, language = f"clips/{row['path']}", _code(row.get("locale"))
    return _clean(audio=audio, answer=row["sentence"], language=language)


def _covost(path: str) -> Callable[[Mapping[str, str]], dict[str, Any]]:
    """A function from a row of CoVoST 2, whose name (covost_v2.de_en.tsv) has the target language."""
    match = re.search(r"\.([a-z]{2})(?:-\w+)?_([a-z]{2})(?:-\w+)?[.]", Path(path).name)
    if match is None or match[2] not in LANGUAGES:
        raise ValueError(
            f"{path}: expected a name with both languages, such as covost_v2.de_en.train.tsv, found {Path(path).name}"
        )
    return lambda row: _clean(
        audio=f"clips/{row['path']}",
        question=TRANSLATE.format(LANGUAGES[match[2]]),
        answer=row["translation"],
        transcript=row["sentence"],
        spoken=match[1],
        language=match[2],
    )


def _fleurs(path: str) -> Callable[[Sequence[str]], dict[str, Any]]:
    """A function from a row of FLEURS, whose audio lies in audio/SPLIT beside it, in a folder such as de_de."""
    split = Path(path).name.split(".")[0]
    language = _code(Path(path).resolve().parent.name.replace("_", "-"))
    return lambda row: _clean(audio=f"audio/{split}/{row[1]}", answer=row[2], language=language)


def _librispeech(folder: str) -> Callable[[str], dict[str, Any]]:
    """A function from a line, the name of an audio file beside it and what is said. The files are FLAC, or what they
    were converted to."""

    def parse(line: str) -> dict[str, Any]:
        name, _, answer = line.partition(" ")
        endings = (e for e in LIBRISPEECH if exists(join(folder, name + e)))
        return {"audio": name + next(endings, LIBRISPEECH[0]), "answer": answer}

    return parse


def rows(format: str, path: str, root: str, open_manifest: Open) -> Rows:
    """Yield (location, row or ValueError) of each line of a manifest, whose audio lies in `root`. Raises ValueError for
    a name without the languages of CoVoST."""
    parse: Callable[[Any], dict[str, Any]]
    if format in ("nemo", "lhotse"):
        lines, parse = _json(path, open_manifest), {"nemo": nemo, "lhotse": lhotse}[format]
    elif format == "librispeech":
        lines, parse = _lines(path, open_manifest), _librispeech(root)
    elif format == "fleurs":
        lines, parse = _columns(path, open_manifest, FLEURS_COLUMNS), _fleurs(path)
    else:
        lines = _named(path, open_manifest)
        parse = common_voice if format == "commonvoice" else _covost(path)
    for location, line in lines:
        if isinstance(line, ValueError):
            yield location, line
            continue
        try:
            yield location, parse(line)
        except KeyError as error:
            yield location, ValueError(f"{error} is missing")
        except (TypeError, AttributeError, IndexError) as error:
            yield location, ValueError(f"expected a row of {format} ({error})")


FORMATS = ("nemo", "lhotse", "commonvoice", "covost", "fleurs", "librispeech")


def _json(path: str, open_manifest: Open) -> Rows:
    with open_manifest() as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    row: Any = parse_json(line)
                    if not isinstance(row, dict):
                        row = ValueError(f"expected an object, found {type(row).__name__}")
                except UnicodeDecodeError as error:
                    row = ValueError(encoding_error(error))
                except ValueError as error:
                    row = ValueError(f"expected JSON, {error}")
                yield f"{path}, line {number}", row


def _lines(path: str, open_manifest: Open) -> Rows:
    with open_manifest() as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, "utf-8-sig"), 1):
            if line.strip():
                yield f"{path}, line {number}", line.strip()


def _columns(path: str, open_manifest: Open, count: int | None = None) -> Rows:
    """Rows of a .tsv with `count` columns (None: as many as the first line has)."""
    with open_manifest() as stream:
        lines = RowLines(io.TextIOWrapper(stream, "utf-8-sig", newline=""), path)
        for number, row in enumerate(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            lines.row_ends()
            count = len(row) if count is None else count
            matches = len(row) == count
            error = ValueError(f"expected {quantity(count, 'column')}, found {len(row)}")
            yield f"{path}, line {number}", row if matches else error


def _named(path: str, open_manifest: Open) -> Rows:
    lines = _columns(path, open_manifest)
    _, names = next(lines, ("", []))
    for location, row in lines:
        is_error = isinstance(row, ValueError)
        yield location, row if is_error else dict(zip(names, row, strict=True))


def _code(language: str | None) -> str | None:
    """The code of a language in eight: "de" of "de-AT", "zh" of "cmn-hans"; None for another text."""
    code = (language or "").lower().split("-")[0].split("_")[0]
    code = {"cmn": "zh", "english": "en", "german": "de", "french": "fr"}.get(code, code)
    return code if len(code) in (2, 3) else None


def _clean(**columns: Any) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if value is not None}
