"""Capacities of the built-in generators: rows until they end, and tokens of a row, as measured by
`experiments/curation/capacities.py`. They are for tests and the small sizes, and no training set for a real one."""

import json
from pathlib import Path

from polyphi_recipe.stages.sizes import Size

CAPACITIES: dict[str, dict[str, dict[str, float | None]]] = json.loads(
    Path(__file__).with_suffix(".json").read_text()
)
"""Size -> corpus -> {"rows": all rows that its generator has, None for one without end, "tokens": mean tokens of a
row}. Sizes are nano, for small vocabularies, and full; lab has more and shorter long documents than full."""
DEFAULT_ROWS = 1_000_000


def of(corpus: str, size: Size) -> tuple[int, float]:
    """(training rows of a built-in corpus at a size, their tokens)."""
    values = CAPACITIES["nano" if size.vocabulary else "full"][corpus]
    rows = size.rows.get(corpus, (DEFAULT_ROWS, 0))[0]
    if (limit := values["rows"]) is not None:
        rows = min(rows, int(limit))
    return rows, rows * float(values["tokens"] or 0)
