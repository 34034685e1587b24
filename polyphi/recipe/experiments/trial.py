"""A stage of a run trained apart from it: with another seed, mix, objective, model or data, from where the run stands
before it; and its scores. What claims (claims/) and compared mixes (ablation.py) are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyphi.engine.engine import Engine
from polyphi.eval.baselines import Result, evaluate
from polyphi.eval.benchmark import Benchmark
from polyphi.eval.sources import Data
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.recipe.graph import Run
from polyphi.stages import lineage
from polyphi.train.loop import train
from polyphi.train.options import TrainOptions
from polyphi.train.stage import Budget, Stage


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
) -> tuple[PhiModel, dict[str, Any]]:
    """(the trained model, the manifest in `out`); a finished trial is only loaded. `runs` holds its parents, `data` its
    corpora (the run's own, both, if not given; fresh samples are drawn only beside the run's own corpora).
    `build(model, seed)` makes another model around the one it starts from. Raises ValueError as the loop does."""
    config = lineage.configuration(stage, run.size.model, run.tokenizer)
    model, origins = lineage.assemble(stage, config, runs or run.runs, seed)
    if build is not None:
        model = build(model, seed)
    manifest = train(
        stage,
        budget,
        model,
        processor or run.processor,
        data or run.data,
        out,
        options=TrainOptions(
            seed=seed,
            precision=run.choice,
            fresh={} if data else run.fresh(stage, seed),
            origins=origins,
            report=_silence,
        ),
        machine=run.machine,
    )
    return model.eval(), manifest


def score(
    run: Run,
    engine: Engine,
    task: Benchmark,
    folder: Path,
    *,
    fingerprint: str,
    limit: int | None = None,
) -> Result:
    """What a trained model scores on the run's held-out rows of a task (`limit` of them, or as many as the size says),
    asked with their media only. Answers go to `folder`; those of the same weights (`fingerprint`) stay."""
    return evaluate(
        engine,
        task,
        task.load(Data(run.data)),
        folder,
        limit=limit or run.size.test_rows,
        seed=run.seed,
        conditions=("with",),
        fingerprint=fingerprint,
    )


def _silence(_: Any) -> None:
    """The caller reports a trial in one line."""
