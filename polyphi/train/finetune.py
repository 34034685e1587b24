"""Fine-tuning a published checkpoint on own data: one stage file, one command (docs/finetune.md).

    polyphi train my_stage.py --model microsoft/Phi-4-multimodal-instruct --data mine.jsonl --out runs/mine

The file defines a `Stage`, like those of the recipe. Parameters that its `trainable` doesn't match keep their values
and dtype, which the hashes in the manifest prove; trained parameters are float32. The folder then holds::

    DIR/data/CORPUS/{train,eval}/  own data as shards
    DIR/{manifest.json,metrics.jsonl,evaluations.jsonl,loss.png}
    DIR/trained.safetensors     the trained tensors, in float32
    DIR/report.html             losses, answers and counts
    DIR/model/                  the whole model in a public layout: `polyphi chat DIR/model`
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import rich
import torch
from safetensors.torch import load_file
from torch import Tensor

from polyphi.checkpoints import model_card
from polyphi.checkpoints.modalities import create, folders, load
from polyphi.checkpoints.names import PUBLISHED_ADAPTERS
from polyphi.checkpoints.processor import make_processor
from polyphi.checkpoints.read import (
    files_beside,
    load_checkpoint,
    locate,
    read_layout,
    read_quantization,
    stored_types,
)
from polyphi.checkpoints.write import write_checkpoint
from polyphi.data import own
from polyphi.engine import placement
from polyphi.engine.memory import free_memory
from polyphi.modality import Modality, run_file
from polyphi.model.adapters import add_adapter
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization.quantize import EMBEDDING, frozen_parts, quantize_frozen
from polyphi.runtime import distributed, progress
from polyphi.runtime.heap import give_back
from polyphi.runtime.precision import Choice, pinned, products
from polyphi.train.evaluation import SPLIT
from polyphi.train.loss import head_of
from polyphi.train.monitor import evaluations, fixed_samples
from polyphi.train.optimizer import with_default_lrs
from polyphi.train.options import FinetuneOptions, TrainOptions
from polyphi.train.report import finetune as page
from polyphi.train.stage import Budget, Stage
from polyphi.train.state import TRAINED, choose_precision
from polyphi.train.trainer import Caller, Report, train


def finetune(
    stage: Stage | Path,
    data: Sequence[str],
    out: Path | None = None,
    *,
    checkpoint: str | Path | None = None,
    finetuning: FinetuneOptions = FinetuneOptions(),  # noqa: B008 - frozen
    options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    modalities: Sequence[Modality] = (),
    report: Report = rich.print,
) -> Path:
    """Train `stage` (or that of a file) from a published checkpoint; returns the folder of the exported model.

    `data`: sources (`data/own.py`), as CORPUS=SOURCE where the mix has several corpora. `checkpoint`, and `steps` and
    `batch_tokens` of `finetuning`, replace the values of the stage. `modalities` are users' (docs/modality.md): one
    that the checkpoint doesn't have is added with initial weights. With `options.base` the frozen weights are quantized
    for the training; the exported model has them as in the checkpoint. `report` prints messages. Where the precision of
    `options` is "auto" and none is recorded in `out`, float32, which also casts frozen weights, is chosen only if they
    fit into free memory. The same call resumes an interrupted one.

    Raises ValueError for an error of the user: in the file, the data, names of tensors or adapters.
    """
    stage = load_stage(stage) if isinstance(stage, Path) else stage
    out = Path("runs") / stage.name if out is None else Path(out)
    distributed.start()
    sources = _sources(stage, data)
    eval_sources = _sources(stage, finetuning.eval_data, every=False)
    named = _columns(list(sources), finetuning.columns)
    source = _start(stage, checkpoint)
    folder = locate(source)
    device = distributed.device()
    if scheme := read_quantization(folder):
        raise ValueError(
            f"{folder} is quantized to {scheme} and can't be trained; start from the unquantized checkpoint"
        )
    files_beside(folder, read_layout(folder))  # raises before the training, not after it
    free = free_memory(device)
    needed = placement.size(stored_types(folder), torch.float32)
    model = load_checkpoint(folder, device=device, apart=options.base is not None)
    processor = make_processor(model.config, Tokenizer.load(folder))
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
            if isinstance(adapter, str):
                raise ValueError(f"{stage.name}: the adapter of {name} is new and can't be a copy")
            create(model, processor, modality, adapter, options.seed)
    for name, like in stage.adapters.items():
        if name in model.config.further:
            continue
        add_adapter(model, name, like, options.seed)
        if isinstance(like, str):
            copied = [n for n, _ in model.named_parameters() if f".lora.{name}." in n]
            origins |= dict.fromkeys(copied, f"copy of {like}")
    stage = with_default_lrs(stage, model.config.adapters)
    trainable = stage.learning_rates(n for n, _ in model.named_parameters())
    _check_routes(stage, model, trainable)
    batch = finetuning.batch_tokens or stage.batch_tokens
    quantized = frozen_parts(model, options.base, trainable, device) if options.base else []
    needed -= sum(4 * prod(part.shape) for part in quantized)
    choice = choose_precision(
        options.precision,
        out,
        device,
        lambda: products((p.shape, name in trainable) for name, p in model.named_parameters()),
        min(options.machine.micro_tokens, batch),
        lambda choice: _fitting_choice(choice, needed, free),
    )
    if distributed.rank() == 0:
        report(f"precision {choice}")
    stored = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    if options.base is not None:
        with progress.progress(
            f"frozen weights to {options.base}", len(quantized), quiet=distributed.rank() > 0
        ) as advance:
            quantize_frozen(model, options.base, trainable, lambda count: advance(count, ""))
    for name, parameter in model.named_parameters():
        lookup = name == EMBEDDING and not isinstance(head_of(model), Tensor)  # a quantized copy
        if (choice.precision == "fp32" and not lookup) or name in trainable:
            parameter.data = parameter.data.float()

    if distributed.rank() == 0:
        for split, of_split in (("train", sources), (SPLIT, eval_sources)):
            for corpus, corpus_sources in of_split.items():
                own.build(
                    out / "data" / corpus,
                    corpus_sources,
                    columns=named[corpus],
                    skip_bad=finetuning.skip_bad,
                    split=split,
                    readers={name: processor.readers[name] for name in model.config.further},
                    report=report,
                )
    distributed.wait()
    steps = finetuning.steps or stage.steps
    train(
        stage,
        Budget(steps, batch, stage.context, finetuning.lr_factor),
        model,
        processor,
        out / "data",
        out,
        options=options,
        caller=Caller(
            precision=choice,
            origins=origins,
            evaluation=evaluations(
                finetuning, stage, steps, list(eval_sources), out / "data", processor
            ),
            report=report,
        ),
    )
    if distributed.rank() == 0 and not (out / "model").exists():
        config, tensors = model.config, dict(model.state_dict())
        if options.machine.fsdp > 1:  # this process has parts of the layers
            tensors = load_file(out / TRAINED)
        del model  # with its quantized weights
        give_back()
        layout = _export(config, tensors, stored, folder, out / "model")
        report(f"wrote {out / 'model'} ({layout} layout); talk to it: polyphi chat {out / 'model'}")
    if distributed.rank() == 0:
        samples = list(fixed_samples(stage, list(eval_sources), out / "data", processor))
        report(f"wrote {page.write(out, stage, samples)}")
    return out / "model"


def _export(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    types: Mapping[str, torch.dtype],
    source: Path,
    folder: Path,
) -> str:
    """Write the model with these tensors, and all others of the checkpoint `source`, in their `types`; returns the
    layout, that of `source` if it supports the adapters."""
    layout = read_layout(source)
    adapters = set(config.without_further().adapters)
    if adapters - set(PUBLISHED_ADAPTERS) and layout == "original":
        layout = "native"
    remaining = {**load_checkpoint(source, apart=True).state_dict(), **tensors}
    write_checkpoint(
        config,
        lambda name: remaining.pop(name).to(types[name]),  # only once: its mapping can go
        folder,
        layout,
        files=files_beside(source, layout),
    )
    model_card.write(folder, layout)
    return layout


def _fitting_choice(choice: Choice, needed: int, free: int) -> Choice:
    """The measured choice, or bf16 where the weights don't fit into memory in float32."""
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


def _sources(stage: Stage, data: Sequence[str], every: bool = True) -> dict[str, list[str]]:
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
