"""A stage of a run trained apart from it: with another seed, mix, objective, model or data, from where the run stands
before it. What claims (claims/) and compared mixes (ablation.py) are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.recipe.graph import Run
from polyphi.stages import lineage
from polyphi.train.loop import train
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
        fresh={} if data else run.fresh(stage, seed),
        seed=seed,
        precision=run.choice,
        origins=origins,
        checkpoint_seconds=run.size.seconds_between_checkpoints,
        tell=_silence,
        **run.machine,
    )
    return model.eval(), manifest


def _silence(_: Any) -> None:
    """Trials are told of in a line each, by who makes them."""
