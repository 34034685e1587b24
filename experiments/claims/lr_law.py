"""C7: the best peak learning rate decreases with the number of tokens, LR*(D) = B * D^-0.32 (report 2.1).

python -m experiments claims C7 --out runs/nano
"""

import json
from collections.abc import Iterator

from experiments.claims.claim import Claim, Effect, detectable
from experiments.claims.runner import ClaimRunner
from experiments.scaling import EXPONENT, measure

EXPONENT_TOLERANCE = 0.16  # half of the report's exponent


def run(runner: ClaimRunner) -> Iterator[Effect]:
    """Text 1 with several rates and lengths, without the longest; the exponent that fits their best rates."""
    lengths, seeds = (
        runner.run.recipe.size.sweep[:4],
        max(1, runner.seeds - 1),
    )  # by far the most expensive of the ten claims
    free = json.loads(measure(runner.run, seeds, lengths).read_text())["free"]
    value, (low, high) = free["exponent"], free["exponent_interval"]
    smallest = detectable(low, high)
    span = f"D over a factor of {max(lengths) / min(lengths):.0f}"
    yield Effect(
        f"the best rate decreases with D: the negated exponent, {span}",
        -value,
        -high,
        -low,
        "",
        0.0,
        smallest,
    )
    # |exponent - (-0.32)| < 0.16, as one effect that must be above: the nearer of the two bounds.
    off = sorted(abs(x - EXPONENT) for x in (low, high))
    nearest = 0.0 if low <= EXPONENT <= high else off[0]
    yield Effect(
        f"the exponent is near {EXPONENT}: {EXPONENT_TOLERANCE} minus their distance",
        EXPONENT_TOLERANCE - abs(value - EXPONENT),
        EXPONENT_TOLERANCE - off[1],
        EXPONENT_TOLERANCE - nearest,
        "",
        0.0,
        smallest,
    )


claim = Claim(
    name="C7",
    title="Scaling law of the peak learning rate",
    says="The best peak learning rate is B * D^-0.32 for D tokens.",
    where="2.1",
    experiment=(
        "Text 1 with four lengths (the longest is eight times the shortest), five or more rates each, with one seed "
        "fewer than the other claims; the fitted exponent of the best rates, with a bootstrap 95 % interval over runs"
    ),
    run=run,
)
