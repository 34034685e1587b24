"""The law of the peak rate: LR*(D) = B * D^-0.32 for a run of D tokens, B measured (report 2.1, after Bjorck et al.,
arXiv 2409.19913).

    runs over a grid of D and peak rates: the ordinary loop, the stage's own mix and schedule, held-out loss at the end
        -> best rate of each D: the lowest point of a parabola in log rate
        -> B with the report's exponent; B and exponent both free; 95 % intervals by bootstrap over the runs
        -> the law that the stage goes by: the report's exponent, through the best rate of the longest runs

Each run is a finished folder, so a sweep goes on where it stopped.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import rich
import torch
from jaxtyping import Float

from polyphi.data.fresh import Fresh
from polyphi.data.loader import Loader
from polyphi.data.packing import Capacity, Pack, pack_step
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.runtime.files import write_json
from polyphi.runtime.plots import panels
from polyphi.runtime.precision import Choice, Requested, products
from polyphi.runtime.progress import read_metrics
from polyphi.train.checkpoint import write_tensors
from polyphi.train.guard import Diverged
from polyphi.train.loop import code_revision, train
from polyphi.train.objective import Objective
from polyphi.train.options import Report, TrainOptions
from polyphi.train.resume import MANIFEST, METRICS, TRAINED, choose_precision
from polyphi.train.stage import Budget, Stage

EXPONENT = -0.32
"""Report 2.1."""
FROM, STEP, REACH = 1e-4, math.sqrt(2), 2
"""[ours] Rates of a sweep are 1e-4 times powers of 1.4, two on either side of the best one. Farther out the loss is no
parabola in log rate: it rises faster on the side of high rates."""
HELD_OUT_TOKENS = 32_768
"""[ours] Held-out rows of the mix that every run is measured on, in tokens."""
BOOTSTRAPS = 4000


@dataclass(frozen=True)
class Law:
    """Peak rate = factor * tokens ** exponent."""

    factor: float
    exponent: float = EXPONENT

    def rate(self, tokens: float) -> float:
        """The peak rate for a run of so many tokens."""
        return self.factor * tokens**self.exponent


@dataclass(frozen=True)
class Point:
    """One run: its tokens, peak rate, seed and held-out loss (nats per supervised token; infinite if it diverged)."""

    tokens: int
    rate: float
    seed: int
    loss: float


# ------------------------------------------------------------------------------ runs


def sweep(
    stage: Stage,
    budget: Budget,
    make_model: Callable[[int], PhiModel],
    processor: Processor,
    data: Path,
    out: Path,
    *,
    fresh: Callable[[int], Mapping[str, Fresh]] = lambda seed: {},
    tokens: Sequence[int],
    seeds: int = 2,
    precision: Requested | Choice = "auto",
    report: Report = rich.print,
) -> list[Point]:
    """Run `stage` for each of `tokens`, rates and seeds, each in a folder of `out`; returns all that was run.

    All runs have one `precision`, as in `train`. `make_model(seed)` gives initial weights, `fresh(seed)` the corpora
    with fresh samples (data/fresh.py), `budget` is the size's own: its rate is where the search begins, and the corpora
    that join late do so after the same share of a shorter run. Each D is searched from the best rate of the one before
    (or of the seeds before) until the best one has its neighbours. Raises ValueError as the loop does.
    """
    top = max(stage.learn.values())
    choice = _precision(precision, out, make_model, budget)
    measure = _held_out(stage, budget, processor, data, choice.precision)
    points: dict[tuple[int, int, int], Point] = {}

    def run(size: int, step: int, seed: int) -> None:
        if (size, step, seed) in points:
            return
        rate = FROM * STEP**step
        folder = out / f"{size}_{rate:.2e}_{seed}"
        scaled, short = shorter(stage, budget, round(size / budget.batch_tokens))
        short = replace(short, rate=rate / top)
        try:
            train(
                scaled,
                short,
                make_model(seed),
                processor,
                data,
                folder,
                options=TrainOptions(
                    seed=seed,
                    precision=choice,
                    fresh=fresh(seed),
                    watch=measure,
                    watch_steps=short.steps,
                    report=lambda _: None,
                ),
            )
            # A run's loss is all that it is for: its weights make room.
            write_tensors(folder / TRAINED, {})
            loss = float(read_metrics(folder / METRICS)[-1]["watch"]["held_out_loss"])
        except Diverged:
            loss = math.inf
        points[size, step, seed] = Point(size, rate, seed, loss)
        report(f"{size:>14,} tokens, peak rate {rate:.1e}, seed {seed}: held-out loss {loss:.3f}")

    around = round(math.log(top * budget.rate / FROM, STEP))
    for seed in range(seeds):  # a sweep cut short is then whole for its first seeds
        for size in tokens:
            best = None
            if any(length == size for length, _, _ in points):
                around = _best_step(points, size)
            while best != around:
                best = around
                for step in range(best - REACH, best + REACH + 1):
                    run(size, step, seed)
                around = _best_step(points, size)
    return sorted(points.values(), key=lambda p: (p.tokens, p.rate, p.seed))


def _precision(
    requested: Requested | Choice,
    out: Path,
    make_model: Callable[[int], PhiModel],
    budget: Budget,
) -> Choice:
    """One precision for all runs of a sweep: that of the runs in `out`, where there are any."""
    if requested != "auto":
        return choose_precision(requested, out)
    folder = next((path.parent for path in sorted(out.glob(f"*/{MANIFEST}"))), out)
    model = make_model(0)
    return choose_precision(
        requested,
        folder,
        next(model.parameters()).device,
        lambda: products((p.shape, True) for p in model.parameters()),
        budget.batch_tokens,
    )


def shorter(stage: Stage, budget: Budget, steps: int) -> tuple[Stage, Budget]:
    """The stage in so many steps: corpora that join late do so after the same share of them."""
    late = {name: round(n * steps / budget.steps) for name, n in stage.data.late.items()}
    return replace(stage, data=replace(stage.data, late=late)), replace(budget, steps=steps)


def _best_step(points: Mapping[tuple[int, int, int], Point], size: int) -> int:
    """The best rate of one D."""
    losses: defaultdict[int, list[float]] = defaultdict(list)
    for (length, step, _), point in points.items():
        if length == size:
            losses[step].append(point.loss)
    return min(losses, key=lambda step: _order(losses[step]))


def _order(losses: Sequence[float]) -> tuple[int, float]:
    """Rates are compared by their mean loss where they had as many seeds; those with fewer come after them."""
    return -len(losses), sum(losses) / len(losses)


def _held_out(
    stage: Stage, budget: Budget, processor: Processor, data: Path, precision: str
) -> Callable[[PhiModel], dict[str, float]]:
    """Loss per supervised token on rows of the mix's test splits, the same ones for every run."""
    step = Loader(
        stage.data.weights,
        data,
        lambda corpus, sample: stage.objective.rows(
            sample, processor, budget.context, stage.data.adapter.get(corpus, "auto")
        ),
        batch_tokens=HELD_OUT_TOKENS,
        seed=0,
        split="test",
    ).step()
    packs = pack_step(step.samples, Capacity(8192))
    return lambda model: {"held_out_loss": mean_loss(stage.objective, model, packs, precision)}


def mean_loss(
    objective: Objective, model: PhiModel, packs: Sequence[Pack], precision: str
) -> float:
    """Loss per supervised token (nats) of an objective that needs nothing beside the model."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    for dealt in packs:
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            loss, n, _ = objective.loss(model, None, None, dealt.batch.to(device))
        total, count = total + float(loss), count + n
    return total / count


# ------------------------------------------------------------------------------ fits


def fit(points: Sequence[Point], tokens: int, seed: int = 0) -> dict[str, Any]:
    """The best rate of each D, and the law with its exponent fixed and free (least squares of logs, each D by the
    certainty of its best rate), all with 95 % intervals; both laws' peak rate for a run of `tokens` tokens. `through`
    is the law with the report's exponent that goes through the longest runs' best rate: where shorter runs differ in
    kind, those nearest to the run to come say most. JSON as it stands.

    Raises ValueError where there are fewer than two D, or fewer than three finite losses of one.
    """
    random = np.random.default_rng(seed)
    sizes = sorted({p.tokens for p in points})
    if len(sizes) < 2:
        raise ValueError(f"a law needs runs of at least two lengths, found {len(sizes)}")
    found = [_best_rates([p for p in points if p.tokens == d], random) for d in sizes]
    log_d, logs = np.log(sizes), np.stack([log_rates for log_rates, _ in found])
    # One column per bootstrap, the measured runs first. A length whose losses are flat says little about the law; none
    # is known better than the rates' own distance.
    weight = 1 / (logs[:, 1:].var(1) + math.log(STEP) ** 2)
    exponent, free = np.polyfit(log_d, logs[:, 0], 1, w=np.sqrt(weight))
    if spare := len(sizes) - 2:
        # How far lengths lie off the line is uncertainty too: weights and order of samples move a whole curve.
        off = logs[:, 0] - free - exponent * log_d
        variance = (weight * off**2).sum() / weight.mean() / random.chisquare(spare, BOOTSTRAPS)
        logs[:, 1:] += np.sqrt(variance) * random.standard_normal((len(sizes), BOOTSTRAPS))
    fixed = np.average(logs - EXPONENT * log_d[:, None], axis=0, weights=weight)
    exponent, free = np.polyfit(log_d, logs, 1, w=np.sqrt(weight))
    at = math.log(tokens)
    inside = _interval(exponent)
    return {
        "runs": [
            [p.tokens, p.rate, p.seed, p.loss if math.isfinite(p.loss) else None] for p in points
        ],
        "best": [
            {"tokens": d, **_with_interval("rate", np.exp(log_rates)), "used": used}
            for d, (log_rates, used) in zip(sizes, found, strict=True)
        ],
        "law": {**_with_interval("factor", np.exp(fixed)), "exponent": EXPONENT},
        "free": {
            **_with_interval("factor", np.exp(free)),
            **_with_interval("exponent", exponent),
        },
        "through": {
            "tokens": sizes[-1],
            **_with_interval("factor", np.exp(logs[-1] - EXPONENT * log_d[-1])),
            "exponent": EXPONENT,
        },
        "exponent_holds": bool(inside[0] <= EXPONENT <= inside[1]),
        "at": {
            "tokens": tokens,
            "law": _with_interval("rate", np.exp(fixed + EXPONENT * at)),
            "free": _with_interval("rate", np.exp(free + exponent * at)),
        },
    }


def _best_rates(
    points: Sequence[Point], random: np.random.Generator
) -> tuple[Float[np.ndarray, " n"], int]:
    """Log of the best rate of one D, as measured and then as each bootstrap sees it; and the number of runs used.

    Losses of the rates around the best one are a parabola in log rate plus an offset per seed. A bootstrap puts drawn
    residuals, widened by the parameters spent, in the place of its own. Where the parabola has no lowest point among
    the rates, the better end of them stands for it.
    """
    by_rate = {
        rate: [p.loss for p in group]
        for rate, group in groupby(sorted(points, key=lambda p: p.rate), lambda p: p.rate)
    }
    best = min(by_rate, key=lambda rate: _order(by_rate[rate]))
    near = [
        p
        for p in points
        if math.isfinite(p.loss) and abs(math.log(p.rate / best, STEP)) < REACH + 0.5
    ]
    if len({p.rate for p in near}) < 3:
        raise ValueError(
            f"{points[0].tokens} tokens: a parabola needs finite losses at three rates around the best one, "
            f"found {len({p.rate for p in near})}"
        )
    x = np.log([p.rate for p in near]) - math.log(best)
    seeds = sorted({p.seed for p in near})
    design = np.stack([x**2, x, *(np.array([p.seed == s for p in near]) for s in seeds)], axis=1)
    losses = np.array([p.loss for p in near])
    solve = np.linalg.pinv(design)
    fitted = design @ solve @ losses
    spare = max(1, len(near) - design.shape[1])
    residuals = (losses - fitted) * math.sqrt(len(near) / spare)
    drawn = random.choice(residuals, (len(near), BOOTSTRAPS))
    a, b = (solve @ np.concatenate([losses[:, None], fitted[:, None] + drawn], axis=1))[:2]
    low, high = x.min(), x.max()
    ends = np.where(a * low**2 + b * low < a * high**2 + b * high, low, high)
    lowest = np.where(a > 0, -b / np.where(a > 0, 2 * a, 1), ends)
    return lowest.clip(low, high) + math.log(best), len(near)


def _interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return float(low), float(high)


def _with_interval(name: str, values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    return {name: float(values[0]), f"{name}_interval": list(_interval(values))}


# ------------------------------------------------------------------------------ picture


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Losses against rate for each D, and the best rates against D with both laws, as a PNG."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0.1, 0.85, len(found["best"])))
    with panels(path, 2, size=(10, 3.8)) as (_, (left, right)):
        for best, colour in zip(found["best"], colours, strict=True):
            runs = [r for r in found["runs"] if r[0] == best["tokens"] and r[3] is not None]
            rates = sorted({r[1] for r in runs})
            means = [np.mean([r[3] for r in runs if r[1] == rate]) for rate in rates]
            left.plot(rates, means, color=colour, label=f"{best['tokens']:,} tokens")
            left.plot([r[1] for r in runs], [r[3] for r in runs], ".", color=colour)
            left.axvline(best["rate"], color=colour, linestyle=":", linewidth=1)
            low, high = best["rate_interval"]
            right.plot([best["tokens"]] * 2, [low, high], color=colour)
            right.plot(best["tokens"], best["rate"], "o", color=colour)
        sizes = np.array(
            [*(b["tokens"] for b in found["best"]), found["at"]["tokens"]], dtype=float
        )
        span = np.geomspace(sizes.min(), sizes.max(), 50)
        for key, label, style in (
            ("law", "the report's exponent", "-"),
            ("free", "exponent", "--"),
        ):
            law = Law(found[key]["factor"], found[key]["exponent"])
            right.plot(
                span,
                [law.rate(d) for d in span],
                style,
                color="#444",
                label=f"{label} {law.exponent:.2f}, B = {law.factor:.3g}",
            )
        left.set(xscale="log", xlabel="peak rate", ylabel="held-out loss")
        right.set(xscale="log", yscale="log", xlabel="tokens", ylabel="best peak rate")
        for axes in (left, right):
            axes.legend(frameon=False, fontsize=8)


def told(found: Mapping[str, Any]) -> str:
    """The fit in words."""

    def between(values: Mapping[str, Any], name: str) -> str:
        low, high = values[f"{name}_interval"]
        return f"{values[name]:.3g} (95 % {low:.3g} to {high:.3g})"

    law, free, at = found["law"], found["free"], found["at"]
    verdict = "which holds" if found["exponent_holds"] else "which doesn't hold"
    return "\n".join(
        [f"  {b['tokens']:>14,} tokens: best rate {between(b, 'rate')}" for b in found["best"]]
        + [
            f"exponent {EXPONENT}: B = {between(law, 'factor')}",
            f"    at {at['tokens']:,} tokens {between(at['law'], 'rate')}",
            f"exponent free: {between(free, 'exponent')}, {verdict} {EXPONENT}; B = {between(free, 'factor')}",
            f"    at {at['tokens']:,} tokens {between(at['free'], 'rate')}",
        ]
    )


def write(fit: Mapping[str, Any], command: str, folder: Path) -> str:
    """Write a fit and its plot to `folder` as fit.json and fit.png; returns it in words. `command` is how to measure it
    again."""
    fit = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "code": code_revision(),
        **fit,
    }
    write_json(folder / "fit.json", fit)
    draw(fit, folder / "fit.png")
    return told(fit)
