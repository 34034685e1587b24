"""Custom data -> shards: sources (sources.py) whose rows are in any of the formats of `formats.py`.

>>> manifest = build(Path("runs/mine/data/cats"), ["cats.jsonl"])
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyphi.data import row_files, shards
from polyphi.data.addresses import is_remote
from polyphi.data.formats import COLUMNS, RowOrigin, sample
from polyphi.data.sample import Sample
from polyphi.data.sources import ERRORS, SourceFile, find, rows
from polyphi.runtime import progress
from polyphi.runtime.files import write_json
from polyphi.text.quantity import quantity
from polyphi.types.parts import PUBLISHED, Text

if TYPE_CHECKING:  # it imports torch
    from polyphi.processing.reader import Reader


def build(
    folder: Path,
    sources: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    allowed_media_path: Sequence[str] = (),
    encoding: str = "",
    media_dir: str | None = None,
    split: str = "train",
    readers: Mapping[str, "Reader"] = {},
    check: Callable[[Sample], None] = lambda _: None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write sources, in order, as a split of the corpus `folder`, unless it was made from the same files, and
    return its manifest, in which `left_out` is the number of unusable rows and `parts` the numbers of images, audio
    clips and other items. `columns` maps names of `COLUMNS` to those of the rows; `allowed_media_path`, `encoding` and
    `media_dir` are those of `sources.find`; `readers` are those of users' modalities. Raises ValueError for an unusable
    row; with `skip_bad` such rows are counted and left out. `check` raises ValueError for a row that is unusable for
    another reason."""
    columns = columns or {}
    known = (*COLUMNS, *readers)
    if unknown := sorted(set(columns) - set(known)):
        raise ValueError(f"there is no column {unknown[0]!r}; expected one of {', '.join(known)}")
    files_of = partial(
        find, allowed_media_path=allowed_media_path, encoding=encoding, media_dir=media_dir
    )
    path = folder / split / "manifest.json"
    options = [*filter(None, (encoding, media_dir)), *allowed_media_path]
    pipeline = _fingerprint(sources, files_of, columns, options)
    if path.exists():
        manifest: dict[str, Any] = json.loads(path.read_text())
        if manifest["pipeline"] == pipeline and "parts" in manifest:
            return manifest
    every = [file for source in sources for file in files_of(source)]
    local = [file.path for file in every if not is_remote(file.path)]
    if inside := [path for path in local if Path(path).resolve().is_relative_to(folder.resolve())]:
        raise ValueError(
            f"{inside[0]} lies in {folder}, which this run writes; choose another folder for it with --out"
        )
    left_out, first_error = 0, ""
    part_counts: Counter[str] = Counter()
    unread_columns: set[str] = set()

    def samples() -> Iterator[Sample]:
        nonlocal left_out, first_error
        count = 0
        with progress.progress(f"reading {folder.name}", _count(every)) as advance:
            for file in every:
                for location, row in rows(file):
                    count += 1
                    advance(count, "")
                    try:
                        parsed, unread = sample(
                            row, location, origin(file), columns=columns, readers=readers
                        )
                        try:
                            check(parsed)
                        except ValueError as error:
                            raise ValueError(f"{location}: {error}") from None
                    except ValueError as error:
                        if not skip_bad:
                            raise ValueError(f"{error} (--skip-bad leaves such rows out)") from None
                        left_out, first_error = left_out + 1, first_error or str(error)
                        continue
                    unread_columns.update(unread)
                    part_counts.update(
                        p.modality
                        for m in parsed.messages
                        for p in m.parts
                        if not isinstance(p, Text)
                    )
                    yield parsed

    manifest = shards.write(folder / split, samples(), pipeline=pipeline)
    manifest["left_out"] = left_out
    manifest["parts"] = dict(part_counts)
    write_json(path, manifest)
    loss = f"; {left_out} left out, the first: {first_error}" if left_out else ""
    if not manifest["rows"]:
        raise ValueError(f"{', '.join(sources)}: expected rows, found none{loss}")
    name = folder.name if split == "train" else f"{folder.name} ({split})"
    counts = "".join(f", {name} {part_counts[name]}" for name in (*PUBLISHED, *readers))
    report(f"{name}: {quantity(manifest['rows'], 'row')}{counts}{loss}")
    if unread_columns:
        report(f"  columns that are not read: {', '.join(sorted(unread_columns))}")
    return manifest


def read(
    *sources: Path | str,
    columns: Mapping[str, str] | None = None,
    licence: str = "",
    allowed_media_path: Sequence[str] = (),
    encoding: str = "",
    media_dir: str | None = None,
    bad: Callable[[str], None] | None = None,
) -> Iterator[Sample]:
    """Yield the samples of sources, as `build` writes them; `licence` is that of rows that name none, and
    `allowed_media_path`, `encoding` and `media_dir` are those of `sources.find`. An unusable row raises ValueError, or,
    with `bad`, is left out and `bad` is called with the message."""
    for file in (
        file
        for source in sources
        for file in find(
            str(source),
            allowed_media_path=allowed_media_path,
            encoding=encoding,
            media_dir=media_dir,
        )
    ):
        for location, row in rows(file):
            try:
                yield sample(
                    row, location, replace(origin(file), licence=licence), columns=columns
                )[0]
            except ValueError as error:
                if bad is None:
                    raise
                bad(str(error))


def origin(file: SourceFile) -> RowOrigin:
    """The origin of a file's rows; paths in those of the hub are forbidden."""
    if file.path.startswith(row_files.HUB):
        return RowOrigin(file.path)
    return RowOrigin(Path(file.path).name, file.root, file.allowed_media_path)


def _count(every: Sequence[SourceFile]) -> int | None:
    """The number of rows of files; None where counting them would mean to parse them, or a file is damaged, which
    `rows` reports."""
    if any(file.format != "rows" for file in every):
        return None
    try:
        return sum(row_files.count(file.path, file.encoding) for file in every)
    except (ValueError, *ERRORS):
        return None


def _fingerprint(
    sources: Sequence[str],
    files_of: Callable[[str], Sequence[SourceFile]],
    columns: Mapping[str, str],
    options: Sequence[str],
) -> str:
    """Return a hash of the options, and of the names, sizes and times of the files; their media and the hub are not
    included."""
    parts: list[Any] = [sorted(columns.items()), *sources, *options]
    for source in sources:
        hub = source.startswith("hf:")
        for file in [] if hub else [f for f in files_of(source) if not is_remote(f.path)]:
            stat = Path(file.path).stat()
            parts += [(file.path, stat.st_size, stat.st_mtime_ns)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
