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

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote

import rich
import torch
from torch import Tensor

from polyphi.checkpoints.headers import files_beside, read_layout
from polyphi.checkpoints.modalities import create, folders, load
from polyphi.checkpoints.names import PUBLISHED_ADAPTERS
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import write_checkpoint
from polyphi.data.sample import Sample
from polyphi.data.shards import Shards
from polyphi.finetuning import page
from polyphi.finetuning.job import check
from polyphi.finetuning.monitor import AnswerPrompts, evaluations, fixed_samples
from polyphi.finetuning.prepare import FinetunePlan, prepare, run_folder
from polyphi.hub import model_card
from polyphi.model.adapters import add_adapter
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.quantization.quantize import EMBEDDING, frozen_parts, quantize_frozen
from polyphi.runtime import distributed, progress
from polyphi.runtime.files import remove
from polyphi.runtime.heap import give_back
from polyphi.train.checkpoint import read_trained
from polyphi.train.context import Print, RunContext
from polyphi.train.loss import head_of
from polyphi.train.options import FinetuneOptions, TrainOptions
from polyphi.train.stage import Stage
from polyphi.train.state import earlier_model
from polyphi.train.trainer import train
from polyphi.types.modality import Modality
from polyphi.types.routing import modalities_of
from polyphi.types.transcript import TRANSCRIBE


def finetune(
    stage: Stage | Path | str,
    data: Sequence[str],
    out: Path | None = None,
    *,
    checkpoint: str | Path | None = None,
    finetuning: FinetuneOptions = FinetuneOptions(),  # noqa: B008 - frozen
    options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    modalities: Sequence[Modality] = (),
    report: Print = rich.print,
    answer_prompts: AnswerPrompts | None = None,
) -> Path:
    """Train `stage` from a published checkpoint; returns the folder of the exported model. A `Path` is a stage file, a
    text the name of a built-in stage (stages.py), such as "vision".

    `data`: sources (`data/own.py`), as CORPUS=SOURCE where the mix has several corpora. `checkpoint`, and `steps`,
    `epochs` and `batch_tokens` of `finetuning`, replace the values of the stage. `modalities` are users'
    (docs/modality.md): one that the checkpoint doesn't have is added with initial weights. With `options.base` the
    frozen weights are quantized for the training; the exported model has them as in the checkpoint. `report` prints
    messages. `answer_prompts`, such as `polyphi.engine.greedy.greedy_answers`, answers a few evaluation rows. Where the
    precision of `options` is "auto" and none is recorded in `out`, float32, which also casts frozen weights, is chosen
    only if they fit into free memory. The same call resumes an interrupted one; one with more steps continues it,
    whether it is finished or not.

    Raises ValueError for an error of the user: in the file, the data, names of tensors or adapters. A new folder is
    removed again where the call fails before its first step.
    """
    job = check(
        stage,
        data,
        out,
        checkpoint=checkpoint,
        finetuning=finetuning,
        options=options,
        modalities=modalities,
        report=report,
    )
    with run_folder(job):
        return run(prepare(job), answer_prompts)


def run(plan: FinetunePlan, answer_prompts: AnswerPrompts | None = None) -> Path:
    """Load the weights of a plan, train, export the model and write the page; returns the folder of the exported model.
    With `answer_prompts` answers to a few evaluation rows are recorded. All processes call this together."""
    job, out, exported = plan.job, plan.job.out, plan.job.out / "model"
    first = distributed.rank() == 0
    model, origins = _load(plan)
    dtype = model.decoder.dtype
    _quantize_and_cast(plan, model)
    train(
        plan.stage,
        plan.budget,
        model,
        job.processor,
        job.data,
        out,
        options=plan.options,
        context=RunContext(
            precision=plan.precision,
            origins=origins,
            evaluation=evaluations(plan, answer_prompts),
            exported=exported,
            rows_reach_trainable=job.is_built_in,
            report=job.report,
        ),
    )
    if first and not exported.exists():
        config, tensors = model.config, dict(model.state_dict())
        if plan.machine.fsdp > 1:  # this process has parts of the layers
            tensors = read_trained(out)
        del model  # with its quantized weights
        give_back()
        layout = _export(config, tensors, dtype, job.checkpoint_folder, exported)
        remove(earlier_model(exported))
        job.report(f"wrote {exported} ({layout} layout); use it: {_usage(plan, exported)}")
    if first:
        job.report(f"wrote {page.write(out, plan.stage, list(fixed_samples(plan)))}")
    return exported


def _load(plan: FinetunePlan) -> tuple[PhiModel, dict[str, str]]:
    """The checkpoint's model with users' modalities, which are added to the processor, and the stage's adapters; and
    where each tensor's values come from."""
    job, stage, folder = plan.job, plan.stage, plan.job.checkpoint_folder
    options, processor = plan.options, job.processor
    model = load_checkpoint(folder, device=distributed.device(), apart=options.base is not None)
    origins = dict.fromkeys((n for n, _ in model.named_parameters()), job.checkpoint)
    stored_modalities = folders(folder)
    for modality in job.modalities:
        name = modality.name
        if name in stored_modalities:
            load(model, processor, modality, folder)
            known = [n for n, _ in model.named_parameters() if n not in origins]
            origins |= dict.fromkeys(known, job.checkpoint)
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


def _quantize_and_cast(plan: FinetunePlan, model: PhiModel) -> None:
    """Quantize the frozen weights, if the options say so, and cast the trained ones to float32; in float32 all."""
    base, trainable = plan.options.base, plan.trainable
    if base is not None:
        count = len(frozen_parts(model, base, trainable, model.decoder.device))
        quiet = distributed.rank() > 0
        with progress.progress(f"frozen weights to {base}", count, quiet=quiet) as advance:
            quantize_frozen(model, base, trainable, lambda count: advance(count, ""))
    for name, parameter in model.named_parameters():
        lookup = name == EMBEDDING and not isinstance(head_of(model), Tensor)  # quantized copy
        if (plan.precision.precision == "fp32" and not lookup) or name in trainable:
            parameter.data = parameter.data.float()


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


def _usage(plan: FinetunePlan, model: Path) -> str:
    """The command that answers with the trained weights: inputs as in the first row of a trained adapter, or in the
    first one of all where no adapter was trained."""
    job = plan.job

    def rows() -> Iterator[tuple[str | None, Sample]]:
        for corpus in plan.stage.data.weights:
            adapter = plan.stage.data.adapter.get(corpus)
            yield from ((adapter, sample) for sample in Shards(job.data / corpus / "train"))

    def is_trained(adapter: str | None, sample: Sample) -> bool:
        name = adapter or job.processor.route(modalities_of(sample.messages))
        return any(f".lora.{name}." in parameter for parameter in plan.trainable)

    of_adapters = any(".lora." in name for name in plan.trainable)
    adapter, sample = next(
        (row for row in rows() if not of_adapters or is_trained(*row)), next(rows())
    )
    content = modalities_of(sample.messages)
    options = f"{quote(str(model))}{f' --adapter {adapter}' if adapter else ''}"
    if len(content) == 1 and sample.prompt[-1].text == TRANSCRIBE:
        return f"polyphi transcribe {options} FILE"
    files = {m.name: str(m.file or f"{m.name}.py") for m in job.modalities}
    for name in content:
        if name in files:
            options += f" --modality {quote(files[name])} --part {name}=FILE"
        else:
            options += f" --{name} FILE"
    return f"polyphi chat {options}" + (' "QUESTION"' if content else "")
