"""Training a stage of a run, whose parents, corpora and tokenizer exist."""

import json
from dataclasses import replace

from polyphi.devices.precision import Precision
from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost
from polyphi.planning.devices import peak_flops
from polyphi.processing.processor import Processor
from polyphi.quantization.quantize import quantize_frozen
from polyphi.runtime import distributed
from polyphi.runtime.heap import give_back
from polyphi.train import trainer
from polyphi.train.checkpoint import MANIFEST
from polyphi.train.context import RunContext
from polyphi.train.options import Base, TrainOptions
from polyphi.train.stage import Budget, Stage
from polyphi_recipe.graph import frozen_text, plan
from polyphi_recipe.graph.corpora import Corpora
from polyphi_recipe.graph.folder import RunFolder
from polyphi_recipe.recipe.recipe import Recipe


def check_batch(folder: RunFolder, name: str, batch_tokens: int | None) -> None:
    """Raise ValueError for a finished stage that was trained with another number of tokens of a step."""
    trained = json.loads((folder.stages / name / MANIFEST).read_text())["budget"]["batch_tokens"]
    if batch_tokens not in (None, trained):
        raise ValueError(
            f"{name} is finished, with {trained:,} tokens of a step; expected --batch-tokens {trained} or none, "
            f"found {batch_tokens}: for a new run choose another --out"
        )


def train(
    recipe: Recipe,
    folder: RunFolder,
    corpora: Corpora,
    processor: Processor,
    stage: Stage,
    budget: Budget,
    *,
    options: TrainOptions,
    context: RunContext,
) -> None:
    """Train a stage from the weights of its parents. `context` has the run's precision and what is watched; the rest of
    it is added here. `options.base` quantizes the frozen weights. Raises RuntimeError for a stage of adapters that
    changed the text logits of the frozen language model."""
    assert context.precision is not None
    config = recipe.lineage.configuration(stage, recipe.size.model, processor.tokenizer)
    model, origins = recipe.lineage.assemble(
        stage, config, folder.stages, options.seed, distributed.device()
    )
    parts = recipe.parts
    origins = {n: parts[o].source if o in parts else o for n, o in origins.items()}
    _set_dtypes(model, stage, options.base, context.precision.precision)
    adapters_only = not any(
        glob.startswith("decoder.") and ".lora." not in glob for glob in stage.trainable
    )
    before = frozen_text.text_logits(model, processor) if adapters_only else None
    target = plan.stage_model(stage.name, recipe)
    folder.report(f"\n[bold]{stage.name}[/bold]")
    with folder.timings.clock(stage.name):
        trainer.train(
            stage,
            budget,
            model,
            processor,
            folder.data,
            folder.stages / stage.name,
            options=options,
            context=replace(
                context,
                generated=corpora.generated(stage),
                origins=origins,
                title=f"{recipe.name} {stage.name}",
                flops=lambda pack: sum(
                    cost.flops(target, cost.work([pack], target.config)).values()
                ),
                peak_flops=peak_flops(next(model.parameters()).device),
                checkpoint_seconds=recipe.size.seconds_between_checkpoints,
                report=folder.report,
            ),
        )
    if before is not None:
        after = frozen_text.text_logits(model, processor)
        frozen_text.record(folder.path / "freeze.json", stage.name, before, after)
    give_back()


def _set_dtypes(model: PhiModel, stage: Stage, base: Base | None, precision: Precision) -> None:
    """Quantize a model's frozen weights where there is a `base`, and make its trainable ones float32."""
    trainable = set(stage.trained(n for n, _ in model.named_parameters()))
    if base is not None:
        quantize_frozen(model, base, trainable)
    for name, parameter in model.named_parameters():  # frozen ones of parts may stay in bf16
        if precision == "fp32" or name in trainable:
            parameter.data = parameter.data.float()
