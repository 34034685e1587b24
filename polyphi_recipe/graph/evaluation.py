"""Evaluation of a run's models: held-out tasks, the report's benchmarks, and what a stage in training watches."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from polyphi.api import Phi
from polyphi.runtime.files import sha256
from polyphi.train.stage import Stage
from polyphi_eval import evaluation, heldout
from polyphi_eval.baselines import evaluate as evaluate_task
from polyphi_eval.benchmark import Benchmark, benchmarks
from polyphi_eval.eval_options import EvalOptions
from polyphi_eval.report.heldout import line
from polyphi_eval.sources import Data
from polyphi_recipe.graph.folder import RunFolder
from polyphi_recipe.graph.models import Models
from polyphi_recipe.imports.sources import imported
from polyphi_recipe.recipe.recipe import Recipe

WATCHED_ROWS = 32
"""Held-out rows of a task (synthetic samples of a benchmark) that are evaluated periodically while a stage trains."""
BENCHMARK_ROWS = 2
"""Synthetic samples of each benchmark on which the finished model is evaluated."""


def tasks_of(recipe: Recipe, folder: RunFolder, names: Sequence[str] = ()) -> list[Benchmark]:
    """The held-out tasks of a run, or the named ones: those of built-in corpora, and one for each corpus with sources.
    Raises ValueError with the nearest name for an unknown one."""
    imported_tasks = [
        task
        for name in recipe.imported_names
        if (own := imported(recipe, name)) is not None and (task := own.task()) is not None
    ]
    by_name = {task.name: task for task in imported_tasks}
    if not names:
        tasks = [t for t in heldout.find() if recipe.imported(t.corpus) is None]
        return [t for t in (*tasks, *imported_tasks) if _can_answer(t, recipe, folder)]
    return [by_name[name] if name in by_name else heldout.find(name)[0] for name in names]


def _can_answer(task: Benchmark, recipe: Recipe, folder: RunFolder) -> bool:
    """Whether the run's final model takes the inputs of a task, and the run has its corpus: that of a recipe file may
    have neither."""
    if recipe.is_built_in:
        return True
    stage = _stage_for(task, recipe)
    if stage is None or stage not in recipe.order:
        return False
    has = recipe.lineage.parts_of(recipe.stages[stage])
    needed = {"vision": {"vision"}, "speech": {"audio"}, "joint": {"vision", "audio"}}
    built = (folder.data / task.corpus / "test").exists()
    return built and needed.get(task.modality, set()) <= has


def _stage_for(task: Benchmark, recipe: Recipe) -> str | None:
    """The stage whose model answers a task: the last one of reasoning, or of all others."""
    return "reasoning_3_dpo" if task.corpus.startswith("reasoning") else recipe.final


def evaluate(
    recipe: Recipe,
    folder: RunFolder,
    models: Models,
    names: Sequence[str] = (),
    quant: str | None = None,
) -> None:
    """Evaluate all tasks, or the named ones, on their held-out rows, unless they have results: the reasoning model on
    reasoning corpora, the final model on all others. With `quant` the models are quantized, and the answers are written
    to a separate folder, such as `eval-int8`."""
    out = folder.path / (f"eval-{quant}" if quant else "eval")
    by_stage: dict[str, Phi] = {}
    for task in tasks_of(recipe, folder, names):
        test = folder.data / task.corpus / "test"
        if not test.exists():
            folder.report(f"{task.name}: skipped, no held-out rows at {test}")
            continue
        stage = _stage_for(task, recipe)
        if stage is None or not folder.is_trained(stage):
            continue
        if stage not in by_stage:
            by_stage[stage] = models.phi(stage, quant)
        with folder.timings.clock("evaluation"):
            result = evaluate_task(
                by_stage[stage],
                task,
                task.load(Data(folder.data)),
                out,
                limit=recipe.size.test_rows,
                seed=models.seed,
                fingerprint=sha256(folder.stages / stage / "manifest.json") + (quant or ""),
            )
        folder.report(line(result))


def are_benchmarks_done(folder: RunFolder) -> bool:
    """Whether the benchmarks, the last step of a run before its page, have results."""
    return (folder.path / evaluation.RUNS / "results.json").exists()


def run_benchmarks(recipe: Recipe, folder: RunFolder) -> None:
    """Evaluate the final model on a few synthetic samples of each of the report's benchmarks that need no judge, which
    tests everything from the layout of the public data to the tables. `polyphi eval DIR --suite mini` uses all
    samples."""
    if are_benchmarks_done(folder) or "model" not in recipe.exports:
        return
    with folder.timings.clock("benchmarks"):
        evaluation.measure(
            evaluation.evaluated_model(str(folder.path)),
            ("mini",),
            folder.path / evaluation.RUNS,
            data=None,
            options=EvalOptions(limit=BENCHMARK_ROWS),
            console=folder.console,
        )


def watched_tasks(stage: Stage) -> list[Benchmark]:
    """The held-out tasks among what a stage watches."""
    names = set(stage.watch) - {benchmark.name for benchmark in benchmarks()}
    return heldout.find(*names) if names else []


def watched_scores(stage: Stage, phi: Phi, folder: RunFolder, seed: int) -> dict[str, float]:
    """Current scores of a stage's tasks on a few held-out rows, and of benchmarks on a few synthetic samples. The
    corpora of the tasks must be built."""
    scores: dict[str, float] = {}
    samples = folder.path / evaluation.RUNS / "mini-data"
    for benchmark in [b for b in benchmarks() if b.name in stage.watch]:
        score = evaluation.quick_score(phi, benchmark, samples, WATCHED_ROWS)
        if score is not None:
            scores[benchmark.name] = score
    for task in watched_tasks(stage):
        with tempfile.TemporaryDirectory() as answers:
            scores[task.name] = evaluate_task(
                phi,
                task,
                task.load(Data(folder.data)),
                Path(answers),
                limit=WATCHED_ROWS,
                seed=seed,
                conditions=("with",),
            ).score
    return scores
