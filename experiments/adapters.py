"""What the adapters add to image and speech tasks, in one or several runs of the recipe (report 2.2): the lead of a run

    over no adapter    the same model without its adapters: how much it depends on them
    over the control   encoders and projectors trained on the same data for the same steps, with the adapters held at
                       zero: how much the adapters help
    over no alignment  the run trained again without the auxiliary losses of images and speech [ours]: how much those
                       help (with `alignment`)

    python -m experiments adapters runs/nano runs/nano-1 runs/nano-2

`RUN/changed/NAME` has the stages that were trained again and the answers of their model. The same command resumes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.claim import Effect, contrast, paired
from experiments.trial import link_stages, score, trial
from polyphi.api import Phi
from polyphi.runtime.files import sha256, write_json
from polyphi.runtime.plots import subplots
from polyphi.runtime.rendering import environment
from polyphi.train.checkpoint import MANIFEST
from polyphi.train.stage import Stage
from polyphi.train.state import code_revision
from polyphi_eval.baselines import sample_vectors
from polyphi_eval.benchmark import Benchmark
from polyphi_eval.heldout import TASKS
from polyphi_eval.report.heldout import MODALITIES, number
from polyphi_eval.statistics import rates
from polyphi_recipe import stages
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.graph.models import dtype_for
from polyphi_recipe.stages.sizes import NANO

LAST = "joint_1_vision_speech"
Vectors = dict[str, list[float]]


@dataclass(frozen=True)
class Change:
    """A change of stages; tensors that match `untrained` keep their initial values."""

    name: str
    changed: Callable[[Stage], Stage]
    untrained: tuple[str, ...] = ()

    @property
    def stages(self) -> list[str]:
        """The stages that are trained again: those that change below `full`, and those after them."""
        names: list[str] = []
        for name in stages.ORDER:
            stage = stages.at_size(name, NANO)
            if self.changed(stage) != stage or not set(names).isdisjoint(stage.parents):
                names.append(name)
        return names


def _without_adapters(stage: Stage) -> Stage:
    rates_of = {glob: rate for glob, rate in stage.trainable.items() if ".lora." not in glob}
    return replace(stage, trainable=rates_of)


CONTROL = Change("control", _without_adapters, ("*.lora.*",))
NO_ALIGNMENT = Change("no_alignment", stages.without_auxiliary)


def measure(runs: Sequence[Run], *, alignment: bool = False) -> dict[str, Any]:
    """Train and evaluate what is missing, and return the table, which is written to the first run as adapters.json,
    adapters.md and adapters.png. Raises ValueError for an unfinished run."""
    changes = (CONTROL, NO_ALIGNMENT) if alignment else (CONTROL,)
    tasks = [task for task in TASKS if task.modality in ("vision", "speech", "joint")]
    for run in runs:
        if (
            not (run.folder.stages / LAST / MANIFEST).exists()
            or not (run.folder.path / "eval").exists()
        ):
            raise ValueError(
                f"expected a finished run, found no evaluation of {LAST} in {run.folder.path}; "
                f"`polyphi reproduce {run.recipe.size.name} --out {run.folder.path}` completes it"
            )
    answers: dict[str, list[Path]] = {"with": [run.folder.path / "eval" for run in runs]}
    for change in changes:
        answers[change.name] = [_answers(run, change, tasks) for run in runs]
    table = {
        "runs": [str(run.folder.path) for run in runs],
        "code": code_revision(),
        **compare(tasks, answers),
    }
    folder = runs[0].folder.path
    write_json(folder / "adapters.json", table)
    (folder / "adapters.md").write_text(markdown(table), encoding="utf-8")
    draw(table, folder / "adapters.png")
    return table


def _answers(run: Run, change: Change, tasks: Sequence[Benchmark]) -> Path:
    """The folder with the answers of a run's changed model to all tasks. Raises ValueError where its stages were
    trained beside other weights of the run."""
    folder = run.folder.path / "changed" / change.name
    runs, start = folder / "stages", folder / "run.json"
    weights = sha256(run.folder.stages / LAST / MANIFEST)
    if start.exists() and json.loads(start.read_text()) != weights:
        raise ValueError(f"{run.folder.path} was trained again after {folder}; remove {folder}")
    link_stages(
        run.folder.stages, runs, [name for name in stages.ORDER if name not in change.stages]
    )
    write_json(start, weights)
    for name in change.stages:
        stage = change.changed(stages.at_size(name, run.recipe.size))
        finished = (runs / name / MANIFEST).exists()
        with run.folder.exclusive(f"{change.name} {name}"):
            budget = run.recipe.size.budget(stage)
            options: dict[str, Any] = {"runs": runs, "untrained": change.untrained}
            trial(run, stage, budget, runs / name, seed=run.seed, **options)
        if not finished:
            run.folder.report(f"{run.folder.path}, {change.name}: {name} is trained")
    stage = run.recipe.lineage.after(LAST)
    config = run.recipe.lineage.configuration(stage, run.recipe.size.model, run.processor.tokenizer)
    model, _ = run.recipe.lineage.assemble(
        stage, config, runs, run.seed, untrained=change.untrained
    )
    if (dtype := dtype_for(model, None)) is not None:  # as the run's evaluation
        model = model.to(dtype)
    phi, fingerprint = Phi(model.eval(), run.processor), sha256(runs / LAST / MANIFEST)
    for task in tasks:
        if (run.folder.data / task.corpus / "test").exists():
            score(run, phi, task, folder / "answers", fingerprint=fingerprint)
    run.folder.report(f"{run.folder.path}, {change.name}: answers to {len(tasks)} tasks")
    return folder / "answers"


# ------------------------------------------------------------------------------ results


def compare(tasks: Sequence[Benchmark], answers: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Scores and leads of each task, and the mean leads of each modality, ready for JSON. `answers` has a folder for
    each run: "with" those of the runs' evaluations, the others those of changed models."""
    rows, by_modality = [], dict[str, dict[str, list[Any]]]()
    for task in tasks:
        own = [_read(folder, task) for folder in answers["with"]]
        if not all(own):
            continue
        others = {"no_adapter": [_read(f, task, "no_adapter") for f in answers["with"]]}
        others |= {n: [_read(f, task) for f in fs] for n, fs in answers.items() if n != "with"}
        leads: dict[str, Any] = {}
        for name, vectors in others.items():
            if all(vectors):
                # Runs with different seeds have different samples.
                runs = [
                    paired([first], [second]) for first, second in zip(vectors, own, strict=True)
                ]
                pair = (task.metric, runs)
                leads[name] = _row(contrast(task.title, pair))
                by_modality.setdefault(task.modality, {}).setdefault(name, []).append(pair)
        scores = {"with": _score(task, own)} | {n: _score(task, others[n]) for n in leads}
        rows.append(
            {
                "task": task.name,
                "title": task.title,
                "modality": task.modality,
                "metric": task.metric,
                "scores": scores,
                "leads": leads,
            }
        )
    means = {
        modality: {
            name: _row(contrast(f"mean of {modality}", *pairs)) for name, pairs in leads.items()
        }
        for modality, leads in by_modality.items()
    }
    return {"tasks": rows, "means": means}


def _read(folder: Path, task: Benchmark, condition: str = "with") -> Vectors:
    return sample_vectors(folder / f"{task.name}.jsonl", condition)


def _score(task: Benchmark, vectors: Sequence[Vectors]) -> float:
    """The mean score over the runs."""
    return float(np.mean([rates(task.metric, np.array([*v.values()]).sum(0)) for v in vectors]))


def _row(effect: Effect) -> dict[str, Any]:
    return asdict(effect) | {"verdict": effect.verdict}


def markdown(table: Mapping[str, Any]) -> str:
    """The table of tasks and the means as Markdown."""
    names = list(next(iter(table["means"].values())))
    template = environment("experiments").get_template("adapters.md")
    return template.render(
        **table, names=names, MODALITIES=MODALITIES, number=number, lead=_lead_text
    )


def _lead_text(lead: Mapping[str, Any]) -> str:
    value = f"{lead['value']:+.1f}"
    bold = f"**{value}**" if lead["verdict"] == "holds" else value
    return f"{bold} ({lead['low']:+.1f} to {lead['high']:+.1f})"


def draw(table: Mapping[str, Any], path: Path) -> None:
    """The leads of all tasks with their intervals, a subplot for each comparison, as a PNG."""
    names = list(next(iter(table["means"].values())))
    rows = table["tasks"][::-1]
    size = (3 + 2.5 * len(names), 1 + 0.2 * len(rows))
    with subplots(path, len(names), size=size, sharey=True) as (figure, every):
        for axes, name in zip(every, names, strict=True):
            for y, row in enumerate(rows):
                if lead := row["leads"].get(name):
                    axes.plot(lead["value"], y, "o", color="#1f5fa8", markersize=4)
                    axes.plot([lead["low"], lead["high"]], [y, y], color="#1f5fa8")
            axes.axvline(0, color="#999", linewidth=1)
            axes.set_title(name.replace("_", " "), fontsize=9)
            axes.tick_params(labelsize=8)
        every[0].set_yticks(range(len(rows)), [row["title"] for row in rows], fontsize=7)
        figure.supxlabel("lead in points, 95 % interval", fontsize=9)
