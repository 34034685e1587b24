"""`Claim`: a statement of the report, an experiment on a finished run, and its result.

    answers of two arms, [seeds, items, 2 arms, sums]  ->  contrast  ->  Effect: value, 95 % interval, verdict

An effect is always written so that the claim means "more than `above`". Its verdict is *holds* if the whole 95 %
interval is above, *doesn't* if the whole interval isn't, else *undecided*. A claim holds if all its effects hold, and
doesn't if one of them doesn't.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from polyphi_eval.statistics import direction, rates

DRAWS = 2000  # of a bootstrap
POWER = 2.8  # standard errors: an effect that large is significant (at 5 %, two-sided) in four of five experiments

Verdict = Literal["holds", "doesn't", "undecided"]
Vectors = Float[np.ndarray, "seeds items arms sums"]


@dataclass(frozen=True)
class Effect:
    """`value` in `unit` with its 95 % interval; the claim is that it is more than `above`. `smallest` is the smallest
    distance from `above` that this experiment detects in four of five cases."""

    what: str
    value: float
    low: float
    high: float
    unit: str
    above: float = 0.0
    smallest: float = 0.0

    @property
    def verdict(self) -> Verdict:
        if self.low > self.above:
            return "holds"
        return "doesn't" if self.high <= self.above else "undecided"


@dataclass(frozen=True)
class Claim:
    """A claim of the report: `says` is the statement in our words, `where` its sections; `run` performs the experiment
    and returns its effects."""

    name: str
    title: str
    says: str
    where: str
    experiment: str
    run: Callable[[Any], Iterable[Effect]]


def finding(claim: Claim, effects: Sequence[Effect], **more: Any) -> dict[str, Any]:
    """The result of a claim's experiment, ready for JSON."""
    verdicts = {effect.verdict for effect in effects}
    worst = next((v for v in ("doesn't", "undecided", "holds") if v in verdicts), "undecided")
    fields = {key: getattr(claim, key) for key in ("name", "title", "says", "where", "experiment")}
    results = [asdict(effect) | {"verdict": effect.verdict} for effect in effects]
    return {**fields, "verdict": worst, "effects": results, **more}


def contrast(
    what: str,
    *tasks: tuple[str, Vectors | Sequence[Vectors]],
    above: float = 0.0,
    unit: str = "points",
) -> Effect:
    """The lead of the second arm over the first, as the mean over tasks, in hundredths ("points"; for losses in nats
    set `unit`).

    Each task is (metric, sums per item: eval/run.py). The bootstrap resamples items, the same ones in both arms and all
    seeds; where the seeds are runs with other items, a task has an array for each of them. The variance between seeds
    is added by draws from Student's t with S - 1 degrees of freedom, because there are few seeds. Where all draws are
    equal, for example where both arms give the same answers, the interval is 3 / n to either side, which n items can't
    rule out.
    """
    random = np.random.default_rng(0)
    measured, drawn = zip(*(_differences(m, v, random, unit) for m, v in tasks), strict=True)
    by_seed = np.mean(measured, axis=0)  # [S]
    value, seeds = float(by_seed.mean()), len(by_seed)
    draws = np.mean(drawn, axis=0)  # [draws S]
    mean_draws = draws.mean(-1)
    if seeds > 1:
        # Variance between seeds, less the part that items alone explain.
        by_items = (draws - mean_draws[:, None]).var(0).sum() / (seeds - 1)
        spread = np.sqrt(max(0.0, by_seed.var(ddof=1) - by_items) / seeds)
        mean_draws = mean_draws + spread * random.standard_t(seeds - 1, DRAWS)
    if mean_draws.std() == 0:
        items = sum(np.shape(of_seed)[1] for _, v in tasks for of_seed in _arrays(v))
        least = 3 / items * (100 if unit == "points" else 1)
        return Effect(what, value, value - least, value + least, unit, above, least)
    return from_draws(what, value, mean_draws, above=above, unit=unit)


def from_draws(
    what: str, value: float, draws: Float[np.ndarray, " draws"], *, above: float, unit: str
) -> Effect:
    """An effect from its bootstrap draws."""
    low, high = (float(x) for x in np.percentile(draws, [2.5, 97.5]))
    return Effect(what, value, low, high, unit, above, detectable(low, high))


def detectable(low: float, high: float) -> float:
    """The smallest effect that an experiment with this 95 % interval detects in four of five cases."""
    return POWER * (high - low) / 3.92


def _arrays(vectors: Vectors | Sequence[Vectors]) -> Sequence[Vectors]:
    return [vectors] if isinstance(vectors, np.ndarray) else vectors


def _differences(
    metric: str, vectors: Vectors | Sequence[Vectors], random: np.random.Generator, unit: str
) -> tuple[Float[np.ndarray, " seeds"], Float[np.ndarray, "draws seeds"]]:
    """(lead of the second arm by seed, the same for each bootstrap draw of items)."""
    if not isinstance(vectors, np.ndarray):
        leads, draws = zip(*(_differences(metric, v, random, unit) for v in vectors), strict=True)
        return np.concatenate(leads), np.concatenate(draws, axis=1)
    seeds, items = vectors.shape[:2]
    scale = direction(metric) * (1 if metric == "bleu" or unit != "points" else 100)

    def lead(sums: np.ndarray) -> np.ndarray:
        scores = rates(metric, sums)
        if metric in ("wer", "cer"):  # an empty answer has 100 %
            scores = np.minimum(scores, 1.0)
        return scale * (scores[..., 1] - scores[..., 0])

    counts = random.multinomial(items, np.full(items, 1 / items), size=DRAWS)
    flat = vectors.swapaxes(0, 1).reshape(items, -1).astype(float)
    drawn = (counts @ flat).reshape(DRAWS, seeds, *vectors.shape[2:])
    return lead(vectors.sum(1)), lead(drawn)


def paired(
    first: Sequence[dict[str, list[float]]], second: Sequence[dict[str, list[float]]]
) -> Vectors:
    """Vectors by sample of two arms as one array: each arm has an entry per seed, or one for all of them; only samples
    of both arms are used."""
    seeds = max(len(first), len(second))
    ids = [i for i in first[0] if i in second[0]]
    arms = [[arm[s % len(arm)] for s in range(seeds)] for arm in (first, second)]
    return np.array([[[by_id[s][i] for by_id in arms] for i in ids] for s in range(seeds)])


def find(*names: str) -> list[Claim]:
    """The claims of this package's files in order, all or those with the given names. Raises ValueError for an unknown
    name."""
    from experiments import claims

    modules = [
        importlib.import_module(f"{claims.__name__}.{m.name}")
        for m in pkgutil.iter_modules(claims.__path__)
    ]
    known_claims = [
        module.claim for module in modules if isinstance(getattr(module, "claim", None), Claim)
    ]
    known_claims.sort(key=lambda claim: int(claim.name.removeprefix("C")))
    if unknown := {name.upper() for name in names} - {claim.name for claim in known_claims}:
        raise ValueError(
            f"no claim is called {', '.join(sorted(unknown))}; the claims are {', '.join(c.name for c in known_claims)}"
        )
    return [
        claim for claim in known_claims if not names or claim.name in {n.upper() for n in names}
    ]
