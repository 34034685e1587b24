"""Manifests of speech data: NeMo, Lhotse, Common Voice, FLEURS and CoVoST, as rows of `formats.py`.

A row has `audio` (a path relative to the manifest), `answer` (the transcript or translation), `language`, and for a
segment of a longer recording its `start` and `seconds`.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from polyphi.messages import LANGUAGES, TRANSLATE

Open = Callable[[], AbstractContextManager[Any]]
FLEURS_COLUMNS = 7
"""Number, file, transcript as written, transcript, characters, samples, gender; without a header."""


def manifest_format(path: str, head: str) -> str | None:
    """The format of a manifest by its first lines, None for other files."""
    line = head.partition("\n")[0]
    if path.endswith((".jsonl", ".jsonl.gz", ".json")):
        try:
            row = json.loads(line)
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
    is_fleurs = (
        len(columns) == FLEURS_COLUMNS and columns[0].isdigit() and columns[1].endswith(".wav")
    )
    return "fleurs" if is_fleurs else None


def _lines(path: str, open_manifest: Open) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_manifest() as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            location = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{location}: expected JSON, {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{location}: expected an object, found {type(row).__name__}")
            yield location, row


def nemo(path: str, open_manifest: Open) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows {"audio_filepath", "text", "offset", "duration", "lang"}; `answer`, where it is there, is another target."""
    for location, row in _lines(path, open_manifest):
        yield (
            location,
            _clean(
                audio=row.get("audio_filepath"),
                answer=row.get("answer", row.get("text")),
                question=row.get("question"),
                language=row.get("lang", row.get("source_lang")),
                start=row.get("offset"),
                seconds=row.get("duration") if row.get("offset") is not None else None,
            ),
        )


def lhotse(path: str, open_manifest: Open) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cuts with their recording and supervisions; a cut is a segment of its recording, its texts are joined."""
    for location, cut in _lines(path, open_manifest):
        recording, supervisions = cut.get("recording"), cut.get("supervisions") or []
        sources = (recording or {}).get("sources") or [{}]
        whole = not cut.get("start") and (
            cut.get("duration") is None or cut["duration"] >= (recording or {}).get("duration", 0)
        )
        yield (
            location,
            _clean(
                id=cut.get("id"),
                audio=sources[0].get("source"),
                answer=" ".join(s["text"] for s in supervisions if s.get("text")) or None,
                language=_code(
                    next((s["language"] for s in supervisions if s.get("language")), None)
                ),
                start=None if whole else cut.get("start", 0),
                seconds=None if whole else cut.get("duration"),
            ),
        )


def _tsv(path: str, open_manifest: Open) -> Iterator[tuple[str, list[str]]]:
    with open_manifest() as stream:
        text = io.TextIOWrapper(stream, "utf-8", newline="")
        for number, row in enumerate(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            yield f"{path}, line {number}", row


def _named(path: str, open_manifest: Open) -> Iterator[tuple[str, dict[str, str]]]:
    lines = _tsv(path, open_manifest)
    _, names = next(lines, ("", []))
    for location, row in lines:
        if len(row) != len(names):
            raise ValueError(f"{location}: expected {len(names)} columns, found {len(row)}")
        yield location, dict(zip(names, row, strict=True))


def common_voice(path: str, open_manifest: Open) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a .tsv; audio lies in the folder clips beside it."""
    for location, row in _named(path, open_manifest):
        yield (
            location,
            _clean(
                audio=f"clips/{row['path']}",
                answer=row["sentence"],
                language=_code(row.get("locale")),
            ),
        )


def covost(path: str, open_manifest: Open) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a .tsv of CoVoST 2; the name covost_v2.de_en.tsv has the target language."""
    match = re.search(r"\.([a-z]{2})(?:-\w+)?_([a-z]{2})(?:-\w+)?[.]", Path(path).name)
    if match is None or match[2] not in LANGUAGES:
        raise ValueError(
            f"{path}: expected a name with both languages, such as covost_v2.de_en.train.tsv, found {Path(path).name}"
        )
    for location, row in _named(path, open_manifest):
        yield (
            location,
            _clean(
                audio=f"clips/{row['path']}",
                question=TRANSLATE.format(LANGUAGES[match[2]]),
                answer=row["translation"],
                transcript=row["sentence"],
                spoken=match[1],
                language=match[2],
            ),
        )


def fleurs(path: str, open_manifest: Open) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a .tsv; audio lies in audio/SPLIT beside it, and the folder's name begins with the language."""
    split = Path(path).name.split(".")[0]
    language = _code(Path(path).resolve().parent.name.replace("_", "-"))
    for location, row in _tsv(path, open_manifest):
        if len(row) != FLEURS_COLUMNS:
            raise ValueError(f"{location}: expected {FLEURS_COLUMNS} columns, found {len(row)}")
        yield location, _clean(audio=f"audio/{split}/{row[1]}", answer=row[2], language=language)


def _code(language: str | None) -> str | None:
    """The code of a language in eight: "de" of "de-AT", "zh" of "cmn-hans"; None for another text."""
    code = (language or "").lower().split("-")[0].split("_")[0]
    code = {"cmn": "zh", "english": "en", "german": "de", "french": "fr"}.get(code, code)
    return code if len(code) in (2, 3) else None


def _clean(**columns: Any) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if value is not None}


MANIFESTS: dict[str, Callable[[str, Open], Iterator[tuple[str, dict[str, Any]]]]] = {
    "nemo": nemo,
    "lhotse": lhotse,
    "commonvoice": common_voice,
    "covost": covost,
    "fleurs": fleurs,
}
