"""Fine-tuning a published checkpoint on own data by one command (docs/finetune.md).

    polyphi finetune vision --model microsoft/Phi-4-multimodal-instruct --data mine.jsonl --out runs/mine
    polyphi train my_stage.py --model microsoft/Phi-4-multimodal-instruct --data mine.jsonl --out runs/mine

The stage is a built-in one (stages.py), or that of a file, like those of the recipe.
Parameters that its `trainable` doesn't match keep their values and dtype, which the hashes in the manifest prove;
trained parameters are float32. The exported model has the dtype of the checkpoint's decoder. The folder then holds::

    DIR/data/CORPUS/{train,eval}/  own data as shards
    DIR/{manifest.json,metrics.jsonl,evaluations.jsonl,loss.png}
    DIR/checkpoints/            the last one stays, so that the run can get more steps
    DIR/trained.safetensors     the trained tensors, in float32
    DIR/report.html             losses, answers and counts
    DIR/model/                  the whole model in a public layout: `polyphi chat DIR/model`
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from shlex import quote

import rich
import torch
from safetensors.torch import load_file
from torch import Tensor

from polyphi.checkpoints.modalities import create, folders, load, with_modalities
from polyphi.checkpoints.names import PUBLISHED_ADAPTERS
from polyphi.checkpoints.processor import make_processor
from polyphi.checkpoints.read import (
    files_beside,
    load_checkpoint,
    read_config,
    read_layout,
    read_quantization,
    stored_types,
)
from polyphi.checkpoints.write import write_checkpoint
from polyphi.data import own
from polyphi.data.sample import Sample
from polyphi.data.shards import Shards
from polyphi.devices import placement
from polyphi.devices.memory import free_memory
from polyphi.devices.precision import Choice, pinned, products
from polyphi.finetuning import page
from polyphi.finetuning.monitor import evaluations, fixed_samples
from polyphi.finetuning.stages import check_model, for_rows, named_stage
from polyphi.hub import model_card
from polyphi.hub.location import locate
from polyphi.model.adapters import add_adapter
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.item_reader import ItemReader
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization.quantize import EMBEDDING, frozen_parts, quantize_frozen
from polyphi.runtime import distributed, progress
from polyphi.runtime.files import locked
from polyphi.runtime.heap import give_back
from polyphi.train.context import Print, RunContext
from polyphi.train.epochs import RowTokens, check_parts, row_tokens, steps_of
from polyphi.train.evaluation import SPLIT
from polyphi.train.loss import head_of
from polyphi.train.optimizer import with_default_lrs
from polyphi.train.options import FinetuneOptions, TrainOptions
from polyphi.train.stage import Budget, Stage
from polyphi.train.state import METRICS, TRAINED, choose_precision, earlier_model
from polyphi.train.trainer import train
from polyphi.types.modality import Modality, ModalityEntry, run_file
from polyphi.types.routing import modalities_of
from polyphi.types.transcript import TRANSCRIBE


@dataclass(frozen=True)
class FinetunePlan:
    """A run whose rows are read and whose weights aren't. `stage` has its learning rates and `config` its adapters;
    `data` holds the corpora, `precision` is "bf16" or "fp32"."""

    stage: Stage
    config: ModelConfig
    processor: Processor
    data: Path
    out: Path
    precision: str
    finetuning: FinetuneOptions
    options: TrainOptions
    report: Print

    @cached_property
    def rows(self) -> dict[str, RowTokens]:
        """Tokens of the rows of each corpus."""
        return row_tokens(self.stage, self.processor, self.data)

    def budget(self, finetuning: FinetuneOptions) -> Budget:
        """The budget by these options; what they don't have is the stage's."""
        batch = finetuning.batch_tokens or self.stage.batch_tokens
        steps = finetuning.steps or self.stage.steps
        if finetuning.epochs is not None:
            steps = steps_of(finetuning.epochs, self.rows, batch)
        return Budget(steps, batch, self.stage.context, finetuning.lr_factor)


Choose = Callable[[FinetunePlan], tuple[FinetuneOptions, TrainOptions]]
"""Decides on the length of a run and its use of the machine, or only reports them; raises ValueError where the machine
is too small. The first process calls it for all."""


def as_requested(plan: FinetunePlan) -> tuple[FinetuneOptions, TrainOptions]:
    """The options as they are."""
    return plan.finetuning, plan.options


def finetune(
    stage: Stage | Path | str,
    data: Sequence[str],
    out: Path | None = None,
    *,
    checkpoint: str | Path | None = None,
    finetuning: FinetuneOptions = FinetuneOptions(),  # noqa: B008 - frozen
    options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    modalities: Sequence[Modality] = (),
    choose: Choose = as_requested,
    report: Print = rich.print,
) -> Path:
    """Train `stage` from a published checkpoint; returns the folder of the exported model. A `Path` is a stage file, a
    text the name of a built-in stage (stages.py), such as "vision".

    `data`: sources (`data/own.py`), as CORPUS=SOURCE where the mix has several corpora. `checkpoint`, and `steps`,
    `epochs` and `batch_tokens` of `finetuning`, replace the values of the stage. `modalities` are users'
    (docs/modality.md): one that the checkpoint doesn't have is added with initial weights. With `options.base` the
    frozen weights are quantized for the training; the exported model has them as in the checkpoint. `choose` may change
    the options once the rows are read. `report` prints messages. Where the precision of `options` is "auto" and none is
    recorded in `out`, float32, which also casts frozen weights, is chosen only if they fit into free memory. The same
    call resumes an interrupted one; one with more steps continues it, whether it is finished or not.

    Raises ValueError for an error of the user: in the file, the data, names of tensors or adapters. A new folder is
    removed again where the call fails before its first step.
    """
    built_in = isinstance(stage, str)
    if isinstance(stage, str):
        stage = named_stage(stage)
    elif isinstance(stage, Path):
        stage = load_stage(stage)
    out = Path("runs") / stage.name if out is None else Path(out)
    distributed.start()
    first = distributed.rank() == 0
    sources = corpus_sources(stage, data)
    eval_sources = corpus_sources(stage, finetuning.eval_data, every=False)
    named = _columns(list(sources), finetuning.columns)
    source = _start(stage, checkpoint)
    folder = locate(source)
    device = distributed.device()
    if scheme := read_quantization(folder):
        raise ValueError(
            f"{folder} is quantized to {scheme} and can't be trained; start from the unquantized checkpoint"
        )
    files_beside(folder, read_layout(folder))  # raises before the training, not after it
    if built_in:
        check_model(stage, read_config(folder).adapters, source)
    else:  # raises before the rows are read, which may take long
        sketch_of(stage, _configuration(stage, folder, modalities))
    processor = make_processor(_configuration(stage, folder, modalities), Tokenizer.load(folder))
    with _removed_if_refused(out), _alone(out, report):
        if first:
            contents = [
                own.build(
                    out / "data" / corpus,
                    files,
                    columns=named[corpus],
                    skip_bad=finetuning.skip_bad,
                    allowed_media_path=finetuning.allowed_media_path,
                    encoding=finetuning.encoding,
                    media_dir=finetuning.media_dir,
                    split=split,
                    readers={m.name: ItemReader(m) for m in modalities},
                    check=partial(check_parts, stage, processor),
                    report=report,
                )
                for split, of_split in (("train", sources), (SPLIT, eval_sources))
                for corpus, files in of_split.items()
            ]
        distributed.wait()
        if built_in:
            parts = distributed.all_gather(contents[0]["parts"] if first else {})[0]
            stage = for_rows(stage, parts, read_config(folder).adapters)
        sketch = sketch_of(stage, _configuration(stage, folder, modalities))
        stage = with_default_lrs(stage, sketch.config.adapters)
        trainable = stage.learning_rates(n for n, _ in sketch.named_parameters())
        free = free_memory(device)
        needed = placement.size(stored_types(folder), torch.float32)
        quantized = frozen_parts(sketch, options.base, trainable, device) if options.base else []
        needed -= sum(4 * prod(part.shape) for part in quantized)
        choice = choose_precision(
            options.precision,
            out,
            device,
            lambda: products((p.shape, n in trainable) for n, p in sketch.named_parameters()),
            min(options.machine.micro_tokens, finetuning.batch_tokens or stage.batch_tokens),
            lambda choice: _fitting_choice(choice, needed, free),
        )
        if first:
            report(f"precision {choice}")
        plan = FinetunePlan(
            stage,
            sketch.config,
            processor,
            out / "data",
            out,
            choice.precision,
            finetuning,
            options,
            report,
        )
        chosen = choose(plan) if first else None
        budget = plan.budget(chosen[0]) if chosen else None
        (chosen, budget), *_ = distributed.all_gather((chosen, budget))
        assert chosen is not None and budget is not None
        finetuning, options = chosen

        model, origins = _load(stage, folder, source, processor, modalities, options, device)
        dtype = model.decoder.dtype
        if options.base is not None:
            with progress.progress(
                f"frozen weights to {options.base}", len(quantized), quiet=not first
            ) as advance:
                quantize_frozen(model, options.base, trainable, lambda count: advance(count, ""))
        for name, parameter in model.named_parameters():
            lookup = name == EMBEDDING and not isinstance(head_of(model), Tensor)  # quantized copy
            if (choice.precision == "fp32" and not lookup) or name in trainable:
                parameter.data = parameter.data.float()
        train(
            stage,
            budget,
            model,
            processor,
            out / "data",
            out,
            options=options,
            context=RunContext(
                precision=choice,
                origins=origins,
                evaluation=evaluations(
                    finetuning, stage, budget.steps, list(eval_sources), out / "data", processor
                ),
                exported=out / "model",
                rows_reach_trainable=built_in,
                report=report,
            ),
        )
    if first and not (out / "model").exists():
        config, tensors = model.config, dict(model.state_dict())
        if options.machine.fsdp > 1:  # this process has parts of the layers
            tensors = load_file(out / TRAINED)
        del model  # with its quantized weights
        give_back()
        layout = _export(config, tensors, dtype, folder, out / "model")
        shutil.rmtree(earlier_model(out / "model"), ignore_errors=True)
        command = usage(out / "model", stage, trainable, out / "data", processor, modalities)
        report(f"wrote {out / 'model'} ({layout} layout); use it: {command}")
    if first:
        samples = list(fixed_samples(stage, list(eval_sources), out / "data", processor))
        report(f"wrote {page.write(out, stage, samples)}")
    return out / "model"


@contextmanager
def _alone(out: Path, report: Print) -> Iterator[None]:
    """Waits, with a message, while another process trains in the folder; the first process of a torchrun has the lock
    for all of them."""
    if distributed.rank() > 0:
        yield
        return
    with locked(
        out / ".lock", report=lambda h: report(f"{out}: waits for {h}, which trains there")
    ):
        yield


@contextmanager
def _removed_if_refused(out: Path) -> Iterator[None]:
    """Remove what a call wrote to a new or empty folder where it fails before its first step, and the folder."""
    absent = [path for path in (out, *out.parents) if not path.exists()]
    is_new = bool(absent) or not any(out.iterdir())
    try:
        yield
    except Exception:
        if is_new and distributed.rank() == 0 and not (out / METRICS).exists():
            for path in out.iterdir() if out.exists() else ():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in absent:
                with suppress(OSError):
                    path.rmdir()
        raise


def _configuration(stage: Stage, folder: Path, modalities: Sequence[Modality]) -> ModelConfig:
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


def _load(
    stage: Stage,
    folder: Path,
    source: str,
    processor: Processor,
    modalities: Sequence[Modality],
    options: TrainOptions,
    device: torch.device,
) -> tuple[PhiModel, dict[str, str]]:
    """The checkpoint's model with users' modalities, which are added to the processor, and the stage's adapters; and
    where each tensor's values come from."""
    model = load_checkpoint(folder, device=device, apart=options.base is not None)
    origins = dict.fromkeys((n for n, _ in model.named_parameters()), source)
    stored_modalities = folders(folder)
    for modality in modalities:
        name = modality.name
        if name in stored_modalities:
            load(model, processor, modality, folder)
            known = [n for n, _ in model.named_parameters() if n not in origins]
            origins |= dict.fromkeys(known, source)
        else:
            adapter = stage.adapters.get(name, modality.adapter)
            assert not isinstance(adapter, str)  # `sketch_of` raises
            create(model, processor, modality, adapter, options.seed)
    for name, like in stage.adapters.items():
        if name in model.config.further:
            continue
        add_adapter(model, name, like, options.seed)
        if isinstance(like, str):
            copied = [n for n, _ in model.named_parameters() if f".lora.{name}." in n]
            origins |= dict.fromkeys(copied, f"copy of {like}")
    return model, origins


def _export(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    source: Path,
    folder: Path,
) -> str:
    """Write the model with these tensors, and all others of the checkpoint `source`, in `dtype`; returns the layout,
    that of `source` if it supports the adapters."""
    layout = read_layout(source)
    adapters = set(config.without_further().adapters)
    if adapters - set(PUBLISHED_ADAPTERS) and layout == "original":
        layout = "native"
    remaining = {**load_checkpoint(source, apart=True).state_dict(), **tensors}
    write_checkpoint(
        config,
        remaining.pop,  # only once: its mapping can go
        folder,
        layout,
        dtype=dtype,
        files=files_beside(source, layout),
    )
    model_card.write(folder, layout)
    return layout


def usage(
    model: Path,
    stage: Stage,
    trainable: Collection[str],
    data: Path,
    processor: Processor,
    modalities: Sequence[Modality],
) -> str:
    """The command that answers with the trained weights: inputs as in the first row of a trained adapter, or in the
    first one of all where no adapter was trained."""

    def rows() -> Iterator[tuple[str | None, Sample]]:
        for corpus in stage.data.weights:
            adapter = stage.data.adapter.get(corpus)
            yield from ((adapter, sample) for sample in Shards(data / corpus / "train"))

    def is_trained(adapter: str | None, sample: Sample) -> bool:
        name = adapter or processor.route(modalities_of(sample.messages))
        return any(f".lora.{name}." in parameter for parameter in trainable)

    of_adapters = any(".lora." in name for name in trainable)
    adapter, sample = next(
        (row for row in rows() if not of_adapters or is_trained(*row)), next(rows())
    )
    content = modalities_of(sample.messages)
    options = f"{quote(str(model))}{f' --adapter {adapter}' if adapter else ''}"
    if len(content) == 1 and sample.prompt[-1].text == TRANSCRIBE:
        return f"polyphi transcribe {options} FILE"
    files = {m.name: str(m.file or f"{m.name}.py") for m in modalities}
    for name in content:
        if name in files:
            options += f" --modality {quote(files[name])} --part {name}=FILE"
        else:
            options += f" --{name} FILE"
    return f"polyphi chat {options}" + (' "QUESTION"' if content else "")


def _fitting_choice(choice: Choice, needed: int, free: int) -> Choice:
    """The choice, or bf16 where the weights don't fit into memory in float32."""
    if choice.precision == "bf16" or needed <= free or pinned() is not None:
        return choice
    return Choice(
        "bf16",
        f"the weights take {needed / 1e9:.1f} GB in float32, and {free / 1e9:.1f} GB are free ({choice.reason})",
    )


def load_stage(file: Path) -> Stage:
    """The `stage` of a file. Raises ValueError where there is none, or where running the file fails."""
    if not file.is_file():
        raise ValueError(f"{file}: expected a stage file, found no file")
    stage = getattr(run_file(file), "stage", None)
    if not isinstance(stage, Stage):
        raise ValueError(
            f"{file}: expected `stage = Stage(...)`, found "
            f"{'no stage' if stage is None else f'a {type(stage).__name__}'}"
        )
    return stage


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
