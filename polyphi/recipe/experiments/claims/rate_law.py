"""C7: the best peak rate falls with the number of tokens, LR*(D) = B * D^-0.32 (report 2.1).

polyphi claims C7 --out runs/nano
"""

import json
from collections.abc import Iterator

from polyphi.recipe.experiments.claims.claim import Claim, Effect, seen
from polyphi.recipe.experiments.claims.laboratory import Laboratory
from polyphi.recipe.experiments.scaling import EXPONENT

NEAR = 0.16  # half of the report's exponent


def run(lab: Laboratory) -> Iterator[Effect]:
    """Text 1 at several rates and lengths, but for the longest; the exponent that fits their best rates."""
    lengths, seeds = lab.run.size.sweep[:4], max(1, lab.seeds - 1)  # by far the dearest of the ten
    free = json.loads(lab.run.scaling(seeds, lengths).read_text())["free"]
    value, (low, high) = free["exponent"], free["exponent_interval"]
    smallest = seen(low, high)
    span = f"over {max(lengths) / min(lengths):.0f} times in D"
    yield Effect(
        f"the best rate falls: minus the exponent, {span}", -value, -high, -low, "", 0.0, smallest
    )
    # |exponent - (-0.32)| < 0.16, as one effect that must be above: the nearer of the two bounds.
    off = sorted(abs(x - EXPONENT) for x in (low, high))
    nearest = 0.0 if low <= EXPONENT <= high else off[0]
    yield Effect(
        f"it is near {EXPONENT}: {NEAR} less the distance",
        NEAR - abs(value - EXPONENT),
        NEAR - off[1],
        NEAR - nearest,
        "",
        0.0,
        smallest,
    )


claim = Claim(
    name="C7",
    title="The law of the peak rate",
    says="The best peak rate is B * D^-0.32 for D tokens.",
    where="2.1",
    experiment=(
        "Text 1 at four lengths that span eightfold, five or more rates each, with one seed fewer than the "
        "others; the free exponent of the best rates, with a 95 % interval by bootstrap over runs"
    ),
    run=run,
)
