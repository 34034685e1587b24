"""`polyphi sources`: what the files of a source are, before anything is trained on them."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from polyphi.cli.options import console
from polyphi.cli.printable import print_message, printable
from polyphi.text.quantity import quantity
from polyphi.train.options import parse_columns

if TYPE_CHECKING:
    from polyphi.data.source_report import SourceReport

MAX_REASONS = 5
"""Reasons of unreadable rows that are printed; --json has all."""


def sources(
    *paths: Annotated[
        str,
        Parameter(
            help="Files, folders, patterns with * or {000..122}, addresses, or hf:OWNER/NAME."
        ),
    ],
    format: Annotated[
        str | None,
        Parameter(help="Format of the files (docs/own_data.md); default: detected."),
    ] = None,
    columns: Annotated[
        Mapping[str, str] | None,
        Parameter(
            converter=parse_columns,
            n_tokens=1,
            accepts_keys=False,
            metavar="OURS=YOURS,...",
            help="Column names of the rows, such as answer=text,audio=clip.",
        ),
    ] = None,
    question: Annotated[str | None, Parameter(help="Question of rows that have none.")] = None,
    language: Annotated[str | None, Parameter(help="Language of all rows (en, de, ...).")] = None,
    allowed_media_path: Annotated[
        Sequence[str],
        Parameter(
            metavar="PATH",
            help="Folder or address whose files rows may name, beside those in the folder of the rows; repeatable.",
        ),
    ] = (),
    media_dir: Annotated[
        str | None,
        Parameter(help="Folder that paths in rows are relative to; default: that of their file."),
    ] = None,
    encoding: Annotated[
        str, Parameter(help="Encoding of texts that aren't UTF-8, such as cp1252.")
    ] = "",
    rows: Annotated[PositiveInt, Parameter(help="Most rows of a source that are read.")] = 200,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON list.")] = False,
) -> None:
    """Show how data would be read: format, kinds of rows, three rows, unreadable rows, proposed columns.

    The options are those of a source in a recipe file. Of many files, those that are read lie apart. Exits with 1 if a
    source has no files, is damaged or has no readable row.

    For example:

        polyphi sources captions.csv
        polyphi sources captions.csv --columns image=picture,answer=words
        polyphi sources "clips/*.tar" cv/de/train.tsv --rows 1000 --json
    """
    from polyphi.data.source_report import SourceReport, inspect
    from polyphi.data.sources import find

    if not paths:
        raise ValueError("expected files or folders, found none; write: polyphi sources data.jsonl")
    reports = []
    for path in paths:
        try:
            files = find(path, format, allowed_media_path, encoding, media_dir)
            report = inspect(
                path, files, columns=columns, language=language, question=question, rows=rows
            )
        except (ValueError, OSError) as error:
            report = SourceReport(path, error=str(error))
        reports.append(report)
        if as_json:
            continue
        for line in _lines(report):
            console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
        if report.error:
            print_message(report.error)
    if as_json:
        print(json.dumps([asdict(report) for report in reports], indent=1, ensure_ascii=False))
    if any(report.error or not report.kinds for report in reports):
        sys.exit(1)


def _lines(report: "SourceReport") -> Iterator[str]:
    """The lines of a report."""
    if not report.formats:
        return
    formats = (f"{name}, {quantity(n, 'file')}" for name, n in report.formats.items())
    yield f"{report.source}: {'; '.join(formats)}"
    kinds = ", ".join(quantity(n, name) for name, n in sorted(report.kinds.items()))
    which = "all" if report.whole else "the first"
    yield f"  {which} {quantity(report.rows, 'row')}: {kinds or 'none that can be read'}"
    for location, turns in report.examples:
        yield f"  {location}"
        yield from (f"    {speaker}: {text}" for speaker, text in turns)
    reasons = sorted(report.unreadable.items(), key=lambda item: -item[1][0])
    for reason, (count, location) in reasons[:MAX_REASONS]:
        first = f"{location}: " if count == 1 else f"the first {location}: "
        yield f"  {quantity(count, 'row')} can't be read, {first}{reason}"
    if further := sum(count for _, (count, _) in reasons[MAX_REASONS:]):
        yield f"  {quantity(further, 'further row')} can't be read, for other reasons (--json lists them)"
    if report.unread:
        yield f"  columns that are not read: {', '.join(report.unread)}"
    if report.columns:
        pairs = report.columns.items()
        yield f"  proposed: --columns {','.join(f'{ours}={theirs}' for ours, theirs in pairs)}"
        table = ", ".join(f"{ours} = {json.dumps(theirs)}" for ours, theirs in pairs)
        yield f"            columns = {{ {table} }} in a recipe file"
        yield f"            with them {report.readable} of {quantity(report.tried, 'row')} can be read"
