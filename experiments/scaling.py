"""The scaling law of the peak learning rate: LR*(D) = B * D^-0.32 for a run of D tokens, B measured (report 2.1, after
Bjorck et al., arXiv 2409.19913). In this file "rate" is a peak learning rate.

    runs over a grid of D and peak rates: the ordinary loop, the stage's own mix and schedule, held-out loss at the end
        -> best rate of each D: the lowest point of a parabola in log rate
        -> B with the report's exponent; B and exponent both free; 95 % intervals by bootstrap over the runs
        -> the law that the stage uses: the report's exponent, through the best rate of the longest runs

Each run has its own folder, so the same command resumes an interrupted sweep.
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

from polyphi.data.generated import GeneratedSamples
from polyphi.data.loader import Loader
from polyphi.data.packing import Capacity, Pack, pack_step
from polyphi.devices.precision import Choice, Requested, products
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.runtime.files import write_json
from polyphi.runtime.plots import subplots
from polyphi.runtime.progress import read_metrics
from polyphi.train.checkpoint import MANIFEST, TRAINED, write_tensors
from polyphi.train.context import Print, RunContext
from polyphi.train.options import TrainOptions
from polyphi.train.stage import Budget, Objective, Stage
from polyphi.train.state import (
    METRICS,
    Diverged,
    choose_precision,
    code_revision,
)
from polyphi.train.trainer import row_maker, train
from polyphi_recipe import stages
from polyphi_recipe.graph.graph import Run

EXPONENT = -0.32
"""The report's exponent (2.1)."""
BASE_RATE, STEP, REACH = 1e-4, math.sqrt(2), 2
"""[ours] Rates of a sweep are 1e-4 times powers of 1.4, two on either side of the best one. Farther away the loss isn't
a parabola in log rate: it rises faster on the side of high rates."""
HELD_OUT_TOKENS = 32_768
"""[ours] Held-out rows of the mix that every run is measured on, in tokens."""
BOOTSTRAPS = 4000


@dataclass(frozen=True)
class Law:
    """Peak rate = factor * tokens ** exponent."""

    factor: float
    exponent: float = EXPONENT

    def rate(self, tokens: float) -> float:
        """The peak rate for a run of `tokens` tokens."""
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
    fresh: Callable[[int], Mapping[str, GeneratedSamples]] = lambda seed: {},
    tokens: Sequence[int],
    seeds: int = 2,
    precision: Requested | Choice = "auto",
    report: Print = rich.print,
) -> list[Point]:
    """Run `stage` for each number of `tokens`, rate and seed, each in a folder of `out`; returns all runs.

    All runs have one `precision`, as in `train`. `make_model(seed)` returns initial weights, `fresh(seed)` generators
    of fresh samples (data/generated.py). `budget` is that of the size: the search begins at its rate, and corpora with
    a late start join after the same share of a shorter run. The search for each D begins at the best rate of the D (or
    seed) before and ends when the best rate has `REACH` neighbours on both sides. Raises ValueError as `train` does.
    """
    stage_peak = max(stage.trainable.values())
    choice = _precision(precision, out, make_model, budget)
    measure = _held_out(stage, budget, processor, data, choice.precision)
    points: dict[tuple[int, int, int], Point] = {}

    def run(size: int, step: int, seed: int) -> None:
        if (size, step, seed) in points:
            return
        rate = BASE_RATE * STEP**step
        folder = out / f"{size}_{rate:.2e}_{seed}"
        scaled, short = shorter(stage, budget, round(size / budget.batch_tokens))
        short = replace(short, lr_factor=rate / stage_peak)
        try:
            train(
                scaled,
                short,
                make_model(seed),
                processor,
                data,
                folder,
                options=TrainOptions(seed=seed, watch_every=short.steps),
                context=RunContext(
                    precision=choice,
                    generated=fresh(seed),
                    watch=measure,
                    report=lambda _: None,
                ),
            )
            # Only the loss of a run is needed: its weights are deleted to save space.
            write_tensors(folder / TRAINED, {})
            loss = float(read_metrics(folder / METRICS)[-1]["watch"]["held_out_loss"])
        except Diverged:
            loss = math.inf
        points[size, step, seed] = Point(size, rate, seed, loss)
        report(f"{size:>14,} tokens, peak rate {rate:.1e}, seed {seed}: held-out loss {loss:.3f}")

    center = round(math.log(stage_peak * budget.lr_factor / BASE_RATE, STEP))
    for seed in range(seeds):  # an interrupted sweep is then complete for its first seeds
        for size in tokens:
            best = None
            if any(length == size for length, _, _ in points):
                center = _best_step(points, size)
            while best != center:
                best = center
                for step in range(best - REACH, best + REACH + 1):
                    run(size, step, seed)
                center = _best_step(points, size)
    return sorted(points.values(), key=lambda p: (p.tokens, p.rate, p.seed))


def _precision(
    requested: Requested | Choice,
    out: Path,
    make_model: Callable[[int], PhiModel],
    budget: Budget,
) -> Choice:
    """The precision of all runs of a sweep: that of finished runs in `out`, if there are any."""
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
    """The stage with `steps` steps; corpora with a late start join after the same share of them."""
    late = {name: round(n * steps / budget.steps) for name, n in stage.data.late.items()}
    return replace(stage, data=replace(stage.data, late=late)), replace(budget, steps=steps)


def _best_step(points: Mapping[tuple[int, int, int], Point], size: int) -> int:
    """The step (exponent of STEP) of the best rate of one D."""
    losses: defaultdict[int, list[float]] = defaultdict(list)
    for (length, step, _), point in points.items():
        if length == size:
            losses[step].append(point.loss)
    return min(losses, key=lambda step: _order(losses[step]))


def _order(losses: Sequence[float]) -> tuple[int, float]:
    """Sort key of a rate: more seeds first, then the lower mean loss."""
    return -len(losses), sum(losses) / len(losses)


def _held_out(
    stage: Stage, budget: Budget, processor: Processor, data: Path, precision: str
) -> Callable[[PhiModel], dict[str, float]]:
    """A function that returns a model's loss per supervised token on fixed rows of the mix's test splits, made as in
    training."""

    packs: list[Pack] = []  # equal for all models of the sweep, so the first one makes them

    def measure(model: PhiModel) -> dict[str, float]:
        if not packs:
            step = Loader(
                stage.data.weights,
                data,
                row_maker(stage, budget, model, processor),
                batch_tokens=HELD_OUT_TOKENS,
                seed=0,
                split="test",
            ).step()
            packs.extend(pack_step(step.samples, Capacity(8192)))
        return {"held_out_loss": mean_loss(stage.objective, model, packs, precision)}

    return measure


def mean_loss(
    objective: Objective, model: PhiModel, packs: Sequence[Pack], precision: str
) -> float:
    """Loss per supervised token (nats) of an objective without auxiliary head and reference."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    for one in packs:
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            loss, n, _ = objective.loss(model, None, None, one.batch.to(device))
        total, count = total + float(loss), count + n
    return total / count


# ------------------------------------------------------------------------------ fits


def fit(points: Sequence[Point], tokens: int, seed: int = 0) -> dict[str, Any]:
    """The best rate of each D, and the law with its exponent fixed and free (least squares of logs, weighted by the
    certainty of each best rate), all with 95 % intervals; both laws' peak rate for a run of `tokens` tokens. `through`
    is the law with the report's exponent through the best rate of the longest runs: where shorter runs behave
    differently, the longest are the best guide to a still longer one. The result is ready for JSON.

    Raises ValueError where there are fewer than two D, or fewer than three finite losses of one.
    """
    random = np.random.default_rng(seed)
    sizes = sorted({p.tokens for p in points})
    if len(sizes) < 2:
        raise ValueError(f"a law needs runs of at least two lengths, found {len(sizes)}")
    best_rates = [_best_rates([p for p in points if p.tokens == d], random) for d in sizes]
    log_d, logs = np.log(sizes), np.stack([log_rates for log_rates, _ in best_rates])
    # One column per bootstrap, the measured runs first. A length with flat losses gets little weight; no best rate is
    # more certain than the distance between rates.
    weight = 1 / (logs[:, 1:].var(1) + math.log(STEP) ** 2)
    exponent, free = np.polyfit(log_d, logs[:, 0], 1, w=np.sqrt(weight))
    if degrees_of_freedom := len(sizes) - 2:
        # Deviations of lengths from the line are uncertainty too: initial weights and the order of samples shift a
        # whole curve.
        residual = logs[:, 0] - free - exponent * log_d
        variance = (
            (weight * residual**2).sum()
            / weight.mean()
            / random.chisquare(degrees_of_freedom, BOOTSTRAPS)
        )
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
            for d, (log_rates, used) in zip(sizes, best_rates, strict=True)
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
    """(log of the best rate of one D, as measured and then for each bootstrap; number of runs used).

    Losses of the rates around the best one are fitted by a parabola in log rate plus an offset per seed. A bootstrap
    replaces the residuals by drawn ones, scaled up for the fitted parameters. Where the parabola has no minimum between
    the rates, the better end of the range is used.
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
    degrees_of_freedom = max(1, len(near) - design.shape[1])
    residuals = (losses - fitted) * math.sqrt(len(near) / degrees_of_freedom)
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


# ------------------------------------------------------------------------------ plot


def draw(fit: Mapping[str, Any], path: Path) -> None:
    """Losses against rate for each D, and the best rates against D with both laws, as a PNG."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0.1, 0.85, len(fit["best"])))
    with subplots(path, 2, size=(10, 3.8)) as (_, (left, right)):
        for best, colour in zip(fit["best"], colours, strict=True):
            runs = [r for r in fit["runs"] if r[0] == best["tokens"] and r[3] is not None]
            rates = sorted({r[1] for r in runs})
            means = [np.mean([r[3] for r in runs if r[1] == rate]) for rate in rates]
            left.plot(rates, means, color=colour, label=f"{best['tokens']:,} tokens")
            left.plot([r[1] for r in runs], [r[3] for r in runs], ".", color=colour)
            left.axvline(best["rate"], color=colour, linestyle=":", linewidth=1)
            low, high = best["rate_interval"]
            right.plot([best["tokens"]] * 2, [low, high], color=colour)
            right.plot(best["tokens"], best["rate"], "o", color=colour)
        sizes = np.array([*(b["tokens"] for b in fit["best"]), fit["at"]["tokens"]], dtype=float)
        span = np.geomspace(sizes.min(), sizes.max(), 50)
        for key, label, style in (
            ("law", "the report's exponent", "-"),
            ("free", "exponent", "--"),
        ):
            law = Law(fit[key]["factor"], fit[key]["exponent"])
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


def summary(fit: Mapping[str, Any]) -> str:
    """The fit as text."""

    def between(values: Mapping[str, Any], name: str) -> str:
        low, high = values[f"{name}_interval"]
        return f"{values[name]:.3g} (95 % {low:.3g} to {high:.3g})"

    law, free, at = fit["law"], fit["free"], fit["at"]
    verdict = "which holds" if fit["exponent_holds"] else "which doesn't hold"
    return "\n".join(
        [f"  {b['tokens']:>14,} tokens: best rate {between(b, 'rate')}" for b in fit["best"]]
        + [
            f"exponent {EXPONENT}: B = {between(law, 'factor')}",
            f"    at {at['tokens']:,} tokens {between(at['law'], 'rate')}",
            f"exponent free: {between(free, 'exponent')}, {verdict} {EXPONENT}; B = {between(free, 'factor')}",
            f"    at {at['tokens']:,} tokens {between(at['free'], 'rate')}",
        ]
    )


def write(fit: Mapping[str, Any], command: str, folder: Path) -> str:
    """Write a fit and its plot to `folder` as fit.json and fit.png; returns its summary. `command` is the command that
    repeats the measurement."""
    fit = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "code": code_revision(),
        **fit,
    }
    write_json(folder / "fit.json", fit)
    draw(fit, folder / "fit.png")
    return summary(fit)


def measure(run: Run, seeds: int = 2, tokens: Sequence[int] = ()) -> Path:
    """Measure the law of text 1's peak learning rate on runs of the size's lengths, or of `tokens`; returns
    `scaling/fit.json` (report 2.1)."""
    stage = stages.at_size("text_1_pretrain", run.recipe.size)
    budget, folder = run.recipe.size.budget(stage), run.folder.path / "scaling"
    for corpus in stage.data.weights:
        run.build(corpus)
    config = run.recipe.lineage.configuration(stage, run.recipe.size.model, run.processor.tokenizer)
    points = sweep(
        stage,
        budget,
        lambda seed: run.recipe.lineage.assemble(stage, config, run.folder.stages, seed)[0],
        run.processor,
        run.folder.data,
        folder,
        fresh=lambda seed: run.corpora.generated(stage, seed),
        tokens=tokens or run.recipe.size.sweep,
        seeds=seeds,
        precision=run.choice,
        report=run.folder.report,
    )
    command = (
        f"python -m experiments scaling --size {run.recipe.size.name} --out DIR --seeds {seeds}"
    )
    law = fit(points, budget.steps * budget.batch_tokens)
    run.folder.report(write(law, command, folder))
    return folder / "fit.json"
