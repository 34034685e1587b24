"""A warning about a split that lost most of its samples.

>>> print(warning(Path("data/pages/train")))
warning: pages/train has 0 rows: of 12 samples 12 were dropped, most of them, 12, by Rules (9 for short). The first:
  8e1b...: short: Opening hours: Monday to Friday
  ...
"""

import json
from itertools import islice
from pathlib import Path

from polyphi.text.quantity import quantity
from polyphi_recipe.curate import pipeline

MAX_DROP_SHARE = 0.5
"""Share of a split's samples beyond which dropping them is worth a warning."""
EXAMPLES = 3
EXCERPT_CHARACTERS = 80
"""Characters of an example's text."""


def warning(split: Path) -> str:
    """Return a warning if a built split has no rows, or if its steps dropped more than half of its samples: which one
    dropped most, for which reason, and the first examples; "" otherwise, and for a split of an earlier version."""
    manifest = json.loads((split / "manifest.json").read_text(encoding="utf-8"))
    name, rows = f"{split.parent.name}/{split.name}", manifest["rows"]
    read, dropped = manifest.get("read", 0), manifest.get("dropped", {})
    total = sum(dropped.values())
    if total <= MAX_DROP_SHARE * read:
        return "" if rows else f"warning: {name} has no rows: its `build` yielded none"
    step = max(dropped, key=lambda key: dropped[key])
    lines = [
        f"warning: {name} has {quantity(rows, 'row')}: of {quantity(read, 'sample')} {total:,} were "
        f"dropped, most of them, "
        f"{dropped[step]:,}, by {step}{_reason(split, manifest['pipeline'], step)}. The first:"
    ]
    for example in islice(pipeline.dropped(split, manifest["pipeline"], step), EXAMPLES):
        reason = f"{example['reason']}: " if example["reason"] else ""
        lines.append(
            f"  {_printable(example['id'] + ': ' + reason + example['text'][:EXCERPT_CHARACTERS])}"
        )
    return "\n".join(lines)


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
