"""The plan of a fine-tune, or of a user's stage file, on given devices: by the user's own rows, which are all read.

polyphi plan finetune vision --data rows.json --devices 1xRTX4090
polyphi plan my_stage.py --model runs/nano/model --data rows.json --devices 1xL4 --base int4
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from polyphi.checkpoints.headers import read_config
from polyphi.checkpoints.processor import make_processor
from polyphi.data import user_data
from polyphi.finetuning.job import corpus_sources, sketch_of
from polyphi.finetuning.plan import DEFAULT_EPOCHS, default_batch, load_of
from polyphi.finetuning.prepare import budget_of
from polyphi.finetuning.stages import CORPUS, MULTIMODAL, for_rows, load_stage, named_stage
from polyphi.hub.location import locate
from polyphi.planning import cost
from polyphi.planning.assumptions import Hardware, OwnRows
from polyphi.planning.cost import Switches, work
from polyphi.planning.example_rows import ROWS, example_rows
from polyphi.planning.load import Load
from polyphi.processing.tokenizer import Tokenizer
from polyphi.train.epochs import RowTokens, row_tokens, steps_of
from polyphi.train.optimizer import with_default_lrs
from polyphi.train.options import FinetuneOptions
from polyphi.train.stage import Budget, Stage
from polyphi_recipe.graph.plan import Plan, plan_of
from polyphi_recipe.stages import sizes


def plan(
    name: str,
    rows: OwnRows,
    hardware: Hardware,
    on: Switches = Switches(),  # noqa: B008 - frozen
    *,
    fit: bool = False,
    report: Callable[[str], None] = print,
) -> Plan:
    """The plan of a built-in fine-tune by its name, or of the stage of a .py file. Frozen weights are in bf16 unless
    they are quantized. Raises ValueError as `polyphi finetune` does for the stage, the rows and the model."""
    built_in = not name.endswith(".py")
    stage = named_stage(name) if built_in else load_stage(Path(name))
    on = replace(on, base="bf16") if on.base == "fp32" else on
    if not rows.data:
        if not built_in:
            raise ValueError(f"the plan of {name} needs its rows; expected --data FILE, found none")
        load = typical_load(stage, rows)
        size = f"on {TYPICAL_ROWS:,} typical rows"
        result = plan_of(load, hardware, on, size=size, fit=fit)
        return replace(result, parents=(rows.model or MULTIMODAL,))
    if rows.model is None:
        raise ValueError(
            "rows are counted by a model's tokenizer; expected --model CHECKPOINT beside --data, found none"
        )
    folder = locate(rows.model)
    config = read_config(folder)
    with TemporaryDirectory() as directory:
        data, parts = Path(directory), Counter[str]()
        for corpus, sources in corpus_sources(stage, rows.data).items():
            manifest = user_data.build(
                data / corpus,
                sources,
                allowed_media_path=rows.allowed_media_path,
                encoding=rows.encoding,
                media_dir=rows.media_dir,
                report=report,
            )
            parts += Counter(manifest["parts"])
        stage = for_rows(stage, parts, config.adapters) if built_in else stage
        config = sketch_of(stage, config).config
        stage = with_default_lrs(stage, config.adapters)
        processor = make_processor(config, Tokenizer.load(folder))
        tokens = row_tokens(stage, processor, data)
        length = FinetuneOptions(
            steps=rows.steps, epochs=rows.epochs, batch_tokens=rows.batch_tokens
        )
        length = _default_length(length, stage, tokens) if built_in else length
        target = cost.stage_model(stage, budget_of(stage, length, lambda: tokens), config)
        load = load_of(target, tokens, processor, data)
        result = plan_of(load, hardware, on, size="on own rows", fit=fit)
    return replace(result, parents=(rows.model,))


TYPICAL = {
    "vision": ROWS["image_qa"],
    "speech": ROWS["asr"],
    "both": ROWS["vision_speech"],
    "text": ROWS["instructions"],
    "preferences": ROWS["image_qa"],
}
"""Rows of a built-in stage where a user names none."""
TYPICAL_ROWS = 1000
"""Number of `TYPICAL` rows, by which the length of the run is chosen."""


def typical_load(stage: Stage, rows: OwnRows) -> Load:
    """The load of a built-in stage on `TYPICAL_ROWS` typical rows, at the published size or that of a checkpoint."""
    published = sizes.load("full").model if rows.model is None else read_config(locate(rows.model))
    config = sketch_of(stage, published).config
    stage = with_default_lrs(stage, config.adapters)
    target = cost.stage_model(stage, Budget(stage.steps, stage.batch_tokens, stage.context), config)
    amounts = {CORPUS: work(example_rows(target, CORPUS, TYPICAL[stage.name]), config)}
    tokens = {CORPUS: RowTokens([amounts[CORPUS]["tokens"]], TYPICAL_ROWS)}
    batch = rows.batch_tokens or default_batch(tokens, stage.batch_tokens)
    steps = rows.steps or steps_of(rows.epochs or DEFAULT_EPOCHS, tokens, batch)
    target = replace(target, budget=Budget(steps, batch, stage.context))
    return Load.of(target, amounts, amounts)


def _default_length(
    options: FinetuneOptions, stage: Stage, rows: Mapping[str, RowTokens]
) -> FinetuneOptions:
    """The length that `polyphi finetune` chooses, without its bound on the time."""
    batch = options.batch_tokens or default_batch(rows, stage.batch_tokens)
    epochs = options.epochs or (DEFAULT_EPOCHS if options.steps is None else None)
    return replace(options, batch_tokens=batch, epochs=epochs)
