"""Warnings about a split, and about each of its sources, that lost most of its samples.

>>> print(warning(Path("data/pages/train")))
warning: pages/train has 0 rows: of 12 samples 12 were dropped, most of them, 12, by Rules (9 for short). The first:
  8e1b...: short: Opening hours: Monday to Friday
  ...
"""

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from polyphi.text.quantity import quantity
from polyphi_recipe.pipeline import pipeline

MAX_DROP_SHARE = 0.5
"""Share of the samples of a split, or of one of its sources, beyond which dropping them is worth a warning."""
MIN_SOURCE_SAMPLES = 5
"""Samples from which on a source has a warning of its own: smaller ones may be single documents."""
MAX_SOURCES = 3
"""Sources that are named; others are counted."""
EXAMPLES = 3
EXCERPT_CHARACTERS = 160
"""Characters of an example's text."""
Excerpt = Callable[[Mapping[str, Any]], str]
"""The text of a dropped row (`pipeline.dropped`), of which an example shows the first characters."""


def _text(row: Mapping[str, Any]) -> str:
    return str(row["text"])


def warning(split: Path, excerpt: Excerpt = _text) -> str:
    """Return warnings, one below the other, about a built split that has no rows or whose steps dropped more than half
    of its samples, and about sources that lost more than half of theirs: which step dropped most, for which reason, and
    the first examples, each with its `excerpt`; "" for none, and for a split of an earlier version."""
    manifest = json.loads((split / "manifest.json").read_text(encoding="utf-8"))
    name, rows = f"{split.parent.name}/{split.name}", manifest["rows"]
    read, dropped = manifest.get("read", 0), manifest.get("dropped", {})
    total = sum(dropped.values())
    lines = []
    if total > MAX_DROP_SHARE * read:
        step = _worst(dropped)
        lines += [
            f"warning: {name} has {_losses(rows, '', read, dropped)}"
            f"{_reason(split, manifest['pipeline'], step)}. The first:",
            *(f"  {line}" for line in examples(split, manifest, step, excerpt=excerpt)),
        ]
    elif not rows:
        lines.append(f"warning: {name} has no rows: its `build` yielded none")
    if rows:
        lines += _of_sources(split, manifest, excerpt)
    return "\n".join(lines)


def _of_sources(split: Path, manifest: Mapping[str, Any], excerpt: Excerpt) -> Iterator[str]:
    """The lines about sources, where a split has several."""
    read, dropped = manifest.get("sources_read", {}), manifest.get("sources_dropped", {})
    lost = [
        source
        for source, by_step in dropped.items()
        if read.get(source, 0) >= MIN_SOURCE_SAMPLES
        and sum(by_step.values()) > MAX_DROP_SHARE * read[source]
    ]
    name = f"{split.parent.name}/{split.name}"
    for source in lost[:MAX_SOURCES] if len(read) > 1 else ():
        rows = manifest["sources"].get(source, 0)
        losses = _losses(rows, f" of {_printable(source)}", read[source], dropped[source])
        yield f"warning: {name} has {losses}. The first:"
        of_source = examples(split, manifest, _worst(dropped[source]), source, excerpt)
        yield from (f"  {line}" for line in of_source)
    if len(lost) > MAX_SOURCES and len(read) > 1:
        more = quantity(len(lost) - MAX_SOURCES, "other source")
        yield f"warning: {name} lost more than half of the samples of {more}"


def _losses(rows: int, origin: str, read: int, dropped: Mapping[str, int]) -> str:
    step = _worst(dropped)
    return (
        f"{quantity(rows, 'row')}{origin}: of {quantity(read, 'sample')} {sum(dropped.values()):,} were dropped, "
        f"most of them, {dropped[step]:,}, by {step}"
    )


def _worst(dropped: Mapping[str, int]) -> str:
    """The step that dropped most."""
    return max(dropped, key=lambda key: dropped[key])


def examples(
    split: Path,
    manifest: Mapping[str, Any],
    step: str,
    source: str | None = None,
    excerpt: Excerpt = _text,
) -> list[str]:
    """A line each for the first samples that a step dropped, of `source` if given."""
    rows = (
        row
        for row in pipeline.dropped(split, manifest["pipeline"], step)
        if source in (None, row["source"])
    )
    lines = []
    for row in islice(rows, EXAMPLES):
        reason = f"{row['reason']}: " if row["reason"] else ""
        text = excerpt(row)[:EXCERPT_CHARACTERS]
        lines.append(_printable(f"{row['id']}: {reason}{text}"))
    return lines


def _reason(split: Path, hashed: str, step: str) -> str:
    """Return the most frequent reason of a step and its number, " (12 for gopher_short_doc)", if it gives reasons."""
    reasons = {
        key.removeprefix("dropped_"): n
        for counted in pipeline.counts(split, hashed)
        if counted["step"] == step
        for key, n in counted.items()
        if key.startswith("dropped_")
    }
    if not reasons:
        return ""
    first = max(reasons, key=lambda key: reasons[key])
    return f" ({reasons[first]:,} for {_printable(first)})"


def _printable(text: str) -> str:
    """Return the text in one line, without characters that control a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
