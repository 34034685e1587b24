"""The checked arguments of a fine-tune: a stage, sources of rows and a checkpoint that fit each other."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import rich
import torch

from polyphi.checkpoints.headers import files_beside, read_config, read_layout, read_quantization
from polyphi.checkpoints.modalities import folders, with_modalities
from polyphi.checkpoints.names import PUBLISHED_ADAPTERS
from polyphi.checkpoints.processor import make_processor
from polyphi.finetuning.stages import check_model, load_stage, named_stage
from polyphi.hub.location import locate
from polyphi.model.adapters import add_adapter
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime import distributed
from polyphi.train.context import Print
from polyphi.train.optimizer import with_default_lrs
from polyphi.train.options import FinetuneOptions, TrainOptions
from polyphi.train.stage import Stage
from polyphi.types.modality import Modality, ModalityEntry


@dataclass(frozen=True)
class FinetuneJob:
    """The checked arguments of a fine-tune. `is_built_in`: the stage is one of stages.py, whose trainable parameters
    depend on the rows. `sources`, `eval_sources` and `columns` are those of each corpus. `checkpoint` is a folder or
    hub id as the user named it, `checkpoint_folder` the folder that it is in."""

    stage: Stage
    is_built_in: bool
    out: Path
    sources: Mapping[str, Sequence[str]]
    eval_sources: Mapping[str, Sequence[str]]
    columns: Mapping[str, Mapping[str, str]]
    checkpoint: str
    checkpoint_folder: Path
    processor: Processor
    finetuning: FinetuneOptions
    options: TrainOptions
    modalities: Sequence[Modality]
    report: Print

    @property
    def data(self) -> Path:
        """The folder of the corpora."""
        return self.out / "data"


def check(
    stage: Stage | Path | str,
    data: Sequence[str],
    out: Path | None = None,
    *,
    checkpoint: str | Path | None = None,
    finetuning: FinetuneOptions = FinetuneOptions(),  # noqa: B008 - frozen
    options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    modalities: Sequence[Modality] = (),
    report: Print = rich.print,
) -> FinetuneJob:
    """Return the job of a fine-tune with these arguments, those of `finetune` (run.py). Writes nothing to `out`. Raises
    ValueError for an error of the user that is known before the rows are read: in the stage, names of corpora, columns,
    tensors or adapters, the checkpoint."""
    is_built_in = isinstance(stage, str)
    if isinstance(stage, str):
        stage = named_stage(stage)
    elif isinstance(stage, Path):
        stage = load_stage(stage)
    distributed.start()
    sources = corpus_sources(stage, data)
    eval_sources = corpus_sources(stage, finetuning.eval_data, every=False)
    columns = _columns(list(sources), finetuning.columns)
    source = _start(stage, checkpoint)
    folder = locate(source)
    if scheme := read_quantization(folder):
        raise ValueError(
            f"{folder} is quantized to {scheme} and can't be trained; start from the unquantized checkpoint"
        )
    files_beside(folder, read_layout(folder))  # raises before the training, not after it
    if is_built_in:
        check_model(stage, read_config(folder).adapters, source)
    else:  # raises before the rows are read, which may take long
        sketch_of(stage, configuration(stage, folder, modalities))
    return FinetuneJob(
        stage,
        is_built_in,
        Path("runs") / stage.name if out is None else Path(out),
        sources,
        eval_sources,
        columns,
        source,
        folder,
        make_processor(configuration(stage, folder, modalities), Tokenizer.load(folder)),
        finetuning,
        options,
        modalities,
        report,
    )


def configuration(stage: Stage, folder: Path, modalities: Sequence[Modality]) -> ModelConfig:
    """The configuration of a checkpoint with users' modalities, those that it has and new ones."""
    config, stored_modalities = read_config(folder), folders(folder)
    for modality in modalities:
        name = modality.name
        if name in stored_modalities:
            config = with_modalities(config, [modality], folder)
            continue
        adapter = stage.adapters.get(name, modality.adapter)
        if isinstance(adapter, str):
            raise ValueError(f"{stage.name}: the adapter of {name} is new and can't be a copy")
        config = replace(
            config,
            further={**config.further, name: ModalityEntry(modality, modality.config(), 0)},
            adapters={**config.adapters, name: adapter},
        )
    return config


def sketch_of(stage: Stage, config: ModelConfig) -> PhiModel:
    """The model in training on the meta device, with the stage's adapters. Raises ValueError where the stage names
    tensors or adapters that it doesn't have, or trains an adapter that gets no data."""
    with torch.device("meta"):
        model = PhiModel(config)
        for name, like in stage.adapters.items():
            if name not in config.further:
                add_adapter(model, name, like)
    stage = with_default_lrs(stage, model.config.adapters)
    trainable = stage.learning_rates(n for n, _ in model.named_parameters())
    _check_routes(stage, model, trainable)
    return model


def _check_routes(stage: Stage, model: PhiModel, trainable: Mapping[str, float]) -> None:
    """Raise ValueError where a trainable adapter gets no data, or the mix names an adapter that isn't there."""
    known, routed = model.config.adapters, stage.data.adapter
    if unknown := sorted(set(routed.values()) - set(known)):
        raise ValueError(
            f"{stage.name} uses the adapter {unknown[0]!r} for its data; this model has: "
            f"{', '.join(known) or 'none'} (Stage.adapters adds new ones)"
        )
    reached = {*routed.values(), *PUBLISHED_ADAPTERS, *model.config.further}
    for name in known:
        if name not in reached and any(f".lora.{name}." in n for n in trainable):
            corpus = next(iter(stage.data.weights))
            raise ValueError(
                f"{stage.name} trains the adapter {name!r}, but no corpus uses it; name one: "
                f"Mix(..., adapter={{{corpus!r}: {name!r}}})"
            )


def _start(stage: Stage, checkpoint: str | Path | None) -> str:
    """The checkpoint to start from: `checkpoint`, or that of the stage's `start`."""
    if stage.copy:
        raise ValueError(
            f"{stage.name}: `copy` is for the recipe's stages; use adapters={{NEW: OLD}}"
        )
    if set(stage.start) - {"*"}:
        raise ValueError(
            f"{stage.name}: expected one checkpoint in `start`, {{'*': 'hf:owner/name'}}, found {dict(stage.start)}"
        )
    source = checkpoint or stage.start.get("*")
    if source is None:
        raise ValueError(
            f"{stage.name} has no checkpoint in `start`; give --model CHECKPOINT, a folder or a hub id"
        )
    return str(source)


def corpus_sources(stage: Stage, data: Sequence[str], every: bool = True) -> dict[str, list[str]]:
    """The sources of each corpus of the mix; with `every` a corpus without any raises ValueError."""
    names = list(stage.data.weights)
    sources: dict[str, list[str]] = defaultdict(list)
    for argument in data:
        name, sign, source = argument.partition("=")
        if sign and name in names:
            sources[name].append(source)
        elif len(names) == 1:
            sources[names[0]].append(argument)
        else:
            raise ValueError(
                f"the mix of {stage.name} has {len(names)} corpora; name the corpus of {argument!r}, such as "
                f"--data {names[0]}={argument} (the others: {', '.join(names[1:])})"
            )
    if every and (missing := [name for name in names if name not in sources]):
        raise ValueError(
            f"no data for {', '.join(missing)}; give --data {missing[0]}=SOURCE, or remove it from the mix"
        )
    return sources


def _columns(corpora: Sequence[str], columns: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The names of columns of each corpus: `CORPUS.answer` is for that one, `answer` for all."""
    columns_of: dict[str, dict[str, str]] = {corpus: {} for corpus in corpora}
    for ours, theirs in columns.items():
        corpus, _, name = ours.rpartition(".")
        if corpus and corpus not in columns_of:
            raise ValueError(
                f"--columns {ours}={theirs}: {corpus} is no corpus of the mix; it has {', '.join(columns_of)}"
            )
        for one in [corpus] if corpus else corpora:
            columns_of[one][name] = theirs
    return columns_of
