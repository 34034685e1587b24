"""Trials: a stage of a run trained again with another seed, mix, objective, model or data, from the same start weights,
and its scores. Used by the claims (claims/) and by comparisons of mixes (ablation.py)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polyphi.api import Phi
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.train.context import RunContext
from polyphi.train.options import TrainOptions
from polyphi.train.stage import Budget, Stage
from polyphi.train.trainer import train
from polyphi_eval.baselines import TaskResult, evaluate
from polyphi_eval.benchmark import Benchmark
from polyphi_eval.sources import Data
from polyphi_recipe.graph.graph import Run


def trial(
    run: Run,
    stage: Stage,
    budget: Budget,
    out: Path,
    *,
    seed: int,
    runs: Path | None = None,
    build: Callable[[PhiModel, int], PhiModel] | None = None,
    data: Path | None = None,
    processor: Processor | None = None,
    untrained: Sequence[str] = (),
) -> tuple[PhiModel, dict[str, Any]]:
    """(the trained model, the manifest in `out`); a finished trial is loaded. `runs` holds its parent stages and `data`
    its corpora; None: those of the run, and only then fresh samples are used. `build(model, seed)` wraps the start
    model in another one. Tensors that match `untrained` are initial ones. Raises ValueError as `train` does."""
    config = run.recipe.lineage.configuration(stage, run.recipe.size.model, run.processor.tokenizer)
    model, origins = run.recipe.lineage.assemble(
        stage, config, runs or run.folder.stages, seed, untrained=untrained
    )
    if build is not None:
        model = build(model, seed)
    manifest = train(
        stage,
        budget,
        model,
        processor or run.processor,
        data or run.folder.data,
        out,
        options=TrainOptions(seed=seed, guard=run.options.guard, machine=run.options.machine),
        context=RunContext(
            precision=run.choice,
            generated={} if data else run.corpora.generated(stage, seed),
            origins=origins,
            checkpoint_seconds=run.recipe.size.seconds_between_checkpoints,
            report=lambda _: None,  # the caller reports a trial in one line
        ),
    )
    return model.eval(), manifest


def link_stages(runs: Path, folder: Path, names: Sequence[str]) -> None:
    """Make finished stages of a run the parents of stages that are trained again in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to((runs / name).resolve())


def score(
    run: Run,
    phi: Phi,
    task: Benchmark,
    folder: Path,
    *,
    fingerprint: str,
    limit: int | None = None,
) -> TaskResult:
    """The score of a trained model on the run's held-out rows of a task (`limit` of them, or the size's number),
    without the baselines. Answers are stored in `folder` and reused for the same weights (`fingerprint`)."""
    return evaluate(
        phi,
        task,
        task.load(Data(run.folder.data)),
        folder,
        limit=limit or run.recipe.size.test_rows,
        seed=run.seed,
        conditions=("with",),
        fingerprint=fingerprint,
    )
