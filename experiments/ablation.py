"""Ablation of data mixes: train one stage with several mixes and compare the held-out loss of every corpus.

    the stage's own mix, and others -> each from the same start, with the same steps, order and seeds
        -> loss per supervised token on held-out rows of each corpus; scores of tasks, if any are given
        -> differences to the stage's own mix, paired by seed, with 95 % intervals

>>> run = Run("nano", Path("runs/nano"))
>>> table = ablate(run, "text_3_post", mixes(stage, ["tools=0", "tools=12"]), seeds=3)

Each arm is a folder with its checkpoints, weights and results: the same command resumes an interrupted one, and a
command with more arms, seeds or tasks runs only the new ones.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments import scaling
from experiments.trial import score, trial
from polyphi.api import Phi
from polyphi.data.packing import Capacity, Pack, pack_step
from polyphi.data.sample import Unfit
from polyphi.data.shards import Shards
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import TooLong
from polyphi.runtime.files import sha256, write_json
from polyphi.runtime.plots import subplots
from polyphi.runtime.rendering import environment
from polyphi.train.checkpoint import MANIFEST
from polyphi.train.loss import NextToken
from polyphi.train.stage import Budget, Mix, Stage
from polyphi.train.state import code_revision
from polyphi.train.trainer import row_maker
from polyphi_eval.benchmark import Benchmark
from polyphi_eval.heldout import find
from polyphi_recipe import stages
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.stages import sizes

OWN = "own mix"
"""The arm that the others are compared with: the stage with its own mix."""


@dataclass(frozen=True)
class NamedMix:
    """A mix, named by its difference to the stage's own."""

    name: str
    mix: Mix


def mixes(stage: Stage, changes: Sequence[str], leave_one_out: bool = False) -> list[NamedMix]:
    """The stage's own mix, one mix for each of `changes`, and with `leave_one_out` one without each corpus. A change is
    "NAME=WEIGHT,...": these corpora get that weight (0 removes a corpus), all others keep theirs; a corpus that isn't
    in the mix is added.

    Raises ValueError for a change that can't be parsed, changes nothing or leaves no corpus.
    """
    if leave_one_out and len(stage.data.weights) > 1:
        changes = [*changes, *(f"{name}=0" for name in stage.data.weights)]
    named = [NamedMix(OWN, stage.data)]
    for change in dict.fromkeys(changes):
        weights = dict(stage.data.weights)
        for part in change.split(","):
            name, _, weight = part.partition("=")
            try:
                weights[name.strip()] = float(weight)
            except ValueError:
                raise ValueError(
                    f"expected NAME=WEIGHT,... such as tools=0 or code=2,math=1, found {change!r}"
                ) from None
        if weights == dict(stage.data.weights):
            raise ValueError(f"{change} changes nothing: {stage.name} has these weights already")
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"a mix needs positive weights, found {weights} by {change}")
        nonzero = {name: weight for name, weight in weights.items() if weight}
        late = {name: draws for name, draws in stage.data.late.items() if name in nonzero}
        mix = Mix(
            nonzero,
            {name: adapter for name, adapter in stage.data.adapter.items() if name in nonzero},
            tuple(name for name in stage.data.curriculum if name in nonzero),
            late if set(late) != set(nonzero) else {},  # some corpus must come first
        )
        named.append(NamedMix(change, mix))
    return named


def ablate(
    run: Run,
    name: str,
    arms: Sequence[NamedMix],
    *,
    seeds: int = 3,
    steps: int | None = None,
    tasks: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a stage with each mix, after its parents and corpora, and compare the results; returns the table that is
    written to `ablation/STAGE_STEPS` as table.json, table.md and table.png after each seed. `steps` replaces the number
    of the size.

    Raises ValueError for a stage with another objective than the next token, an unknown corpus or task, and folders of
    other runs.
    """
    stage, evaluated_tasks = stages.at_size(name, run.recipe.size), find(*tasks) if tasks else []
    if not isinstance(stage.objective, NextToken):
        raise ValueError(
            f"mixes are compared by the loss of the next token; {name} has the objective "
            f"{type(stage.objective).__name__}"
        )
    for parent in stage.parents:
        run.train(parent)
    corpora = list(dict.fromkeys(corpus for arm in arms for corpus in arm.mix.weights))
    for corpus in (*corpora, *(task.corpus for task in evaluated_tasks)):
        _make(run, corpus)
    budget = run.recipe.size.budget(stage)
    stage, budget = scaling.shorter(stage, budget, steps or budget.steps)
    folder = run.folder.path / "ablation" / f"{name}_{budget.steps}"
    results: list[dict[str, dict[str, float]]] = []
    for seed in range(run.seed, run.seed + seeds):
        by_arm = {}
        for arm in arms:
            late = {n: stage.data.late[n] for n in arm.mix.late}
            trial = replace(stage, data=replace(arm.mix, late=late))
            out = folder / arm.name / f"seed_{seed}"
            by_arm[arm.name] = _run(run, trial, budget, seed, out, corpora, evaluated_tasks)
        results.append(by_arm)
        table = {
            "stage": name,
            "size": run.recipe.size.name,
            "steps": budget.steps,
            "date": time.strftime("%Y-%m-%d"),
            "code": code_revision(),
            "mixes": {arm.name: dict(arm.mix.weights) for arm in arms},
            **compare(results),
        }
        write_json(folder / "table.json", table)
        (folder / "table.md").write_text(markdown(table), encoding="utf-8")
        draw(table, folder / "table.png")
    return table


def _make(run: Run, corpus: str) -> None:
    """Build a corpus of the recipe. Raises ValueError for another corpus that isn't in the run's folder."""
    if corpus in sizes.CORPORA:
        run.build(corpus)
    elif not (run.folder.data / corpus / "train" / MANIFEST).exists():
        raise ValueError(
            f"{run.folder.path} has no corpus {corpus!r}; build it first (polyphi curate FILE.py --out "
            f"{run.folder.path}), or choose one of {', '.join(sizes.CORPORA)}"
        )


def _run(
    run: Run,
    stage: Stage,
    budget: Budget,
    seed: int,
    out: Path,
    corpora: Sequence[str],
    tasks: Sequence[Benchmark],
) -> dict[str, float]:
    """Train and measure one arm with one seed, where that isn't done; returns all its measurements."""
    start = {p: sha256(run.folder.stages / p / MANIFEST) for p in stage.parents}
    path = out / "measured.json"
    measured: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"start": start}
    if measured["start"] != start:
        raise ValueError(
            f"{out} started from another {', '.join(stage.parents)} than {run.folder.path} has now; remove it to run "
            "it again"
        )
    manifests = {
        c: run.folder.data / c / "test" / MANIFEST for c in (*corpora, *(t.corpus for t in tasks))
    }
    row_hashes = {f"loss {c}": sha256(manifests[c]) for c in corpora if manifests[c].exists()}
    row_hashes |= {f"score {t.name}": sha256(manifests[t.corpus]) for t in tasks}
    missing = [name for name, rows in row_hashes.items() if measured.get(name, [None])[0] != rows]
    if missing or not (out / MANIFEST).exists():
        model, _ = trial(run, stage, budget, out, seed=seed)
        phi = Phi(model, run.processor)
        for name in missing:
            quantity, _, source = name.partition(" ")
            if quantity == "loss":
                packs = _held_out(stage, budget, model, run, source)
                value = scaling.mean_loss(stage.objective, model, packs, run.precision)
            else:
                (task,) = (t for t in tasks if t.name == source)
                fingerprint = sha256(out / MANIFEST)
                value = score(run, phi, task, out / "eval", fingerprint=fingerprint).score
            measured[name] = [row_hashes[name], value]
            write_json(path, measured)
    run.folder.console.print(
        f"{stage.name}, {out.parent.name}, seed {seed}: measured", highlight=False
    )
    return {name: measured[name][1] for name in row_hashes}


def _held_out(stage: Stage, budget: Budget, model: PhiModel, run: Run, corpus: str) -> list[Pack]:
    """Packs of the corpus's first held-out rows, made as in the stage, of about `scaling.HELD_OUT_TOKENS` tokens."""
    rows, tokens, samples_rows = row_maker(stage, budget, model, run.processor), 0, []
    for sample in Shards(run.folder.data / corpus / "test"):
        try:
            samples_rows.append(rows(corpus, sample))
        except (TooLong, Unfit):  # as in training
            continue
        tokens += sum(map(len, samples_rows[-1]))
        if tokens >= scaling.HELD_OUT_TOKENS:
            break
    if not samples_rows:
        raise ValueError(
            f"no held-out row of {corpus} fits into the {budget.context} tokens of a row of {stage.name}"
        )
    return pack_step(samples_rows, Capacity(8192))


# ------------------------------------------------------------------------------ results


def compare(results: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """The mean over the seeds of each measurement of each arm, and its difference to the own mix with a 95 % interval
    (None for one seed), ready for JSON. `results` has, for each seed, the measurements of each arm.

    "loss of all" is the mean over the corpora, each counted once.
    """
    rows: dict[str, dict[str, Any]] = {}
    with_means = [{arm: _with_mean(values) for arm, values in seed.items()} for seed in results]
    for arm in with_means[0]:
        rows[arm] = {}
        for what in with_means[0][arm]:
            values = np.array([seed[arm][what] for seed in with_means])
            row: dict[str, Any] = {"mean": float(values.mean()), "seeds": values.tolist()}
            if arm != OWN:
                differences = values - np.array([seed[OWN][what] for seed in with_means])
                row["difference"] = float(differences.mean())
                row["interval"] = interval(differences.tolist())
            rows[arm][what] = row
    return {"seeds": len(with_means), "arms": rows}


def _with_mean(values: Mapping[str, float]) -> dict[str, float]:
    losses = [value for what, value in values.items() if what.startswith("loss ")]
    return {"loss of all": float(np.mean(losses)), **values} if len(losses) > 1 else dict(values)


def interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean of normally distributed numbers (Student's t); None for a single one."""
    n = len(values)
    if n < 2:
        return None
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1)) / n**0.5
    mean = float(np.mean(values))
    return [mean - half, mean + half]


def markdown(table: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table: the own mix's numbers, and the differences of the others. A difference is
    bold where its interval doesn't include 0."""
    others = [arm for arm in table["arms"] if arm != OWN]
    template = environment("experiments").get_template("ablation.md")
    return template.render(**table, OWN=OWN, others=others)


def draw(table: Mapping[str, Any], path: Path) -> None:
    """Differences of all losses with their intervals, one arm per subplot, as a PNG."""
    others = [arm for arm in table["arms"] if arm != OWN]
    if not others:
        return
    rows = [what for what in table["arms"][OWN] if what.startswith("loss ")][::-1]
    size = (2 + 2.2 * len(others), 1 + 0.3 * len(rows))
    with subplots(path, len(others), size=size, sharey=True) as (figure, every):
        for axes, arm in zip(every, others, strict=True):
            for y, what in enumerate(rows):
                row = table["arms"][arm][what]
                axes.plot(row["difference"], y, "o", color="#1f5fa8", markersize=5)
                if row["interval"]:
                    axes.plot(row["interval"], [y, y], color="#1f5fa8")
            axes.axvline(0, color="#999", linewidth=1)
            axes.set_title(arm, fontsize=9)
            axes.tick_params(labelsize=8)
        every[0].set_yticks(range(len(rows)), [what.removeprefix("loss ") for what in rows])
        figure.supxlabel(f"held-out loss, difference to the {OWN}", fontsize=9)
