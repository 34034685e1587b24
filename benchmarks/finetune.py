"""Fine-tuning a LoRA against transformers + PEFT + TRL's SFTTrainer (peers/sft.py): the same checkpoint, rows, steps,
adapter, learning rates and AdamW.

    polyphi bench finetune runs/nano [--only text image audio] [--base int8] [--base int4] [--threads N] [--json]
    polyphi bench finetune runs/nano --setup                    # once: TRL's environment

The checkpoint is the run's model in bfloat16, rows are its corpora's, the adapter is a fresh one of rank 16 on every
linear of the language model, the only trainable parameters; its schedule is linear with a warm-up. Ours trains in the
precision that `polyphi train` chooses on this machine, the peer in the one that is faster in a short run. Rows are
tokenized, and images and audio clips decoded, before both. Steps per second leave out the first; memory is the peak of
a process; the loss is the mean of the last ten steps. `--base` adds rows with our side on a quantized base.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from planned_rows import image_values, objective, read_batches, same_work, write_steps
from sidebyside import (
    ENVIRONMENTS,
    HERE,
    Row,
    alternate,
    console,
    install,
    median,
    peak_bytes,
    peer_precision,
    show,
)

from polyphi.checkpoints.processor import make_processor
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.data.draws import Unfit
from polyphi.data.shards import Shards
from polyphi.devices import precision
from polyphi.model.adapters import add_adapter
from polyphi.model.config import AdapterConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.matrix_products import matrix_products
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization.quantize import quantize_frozen
from polyphi.runtime.progress import read_metrics
from polyphi.train.context import RunContext
from polyphi.train.loss import NextToken
from polyphi.train.options import TrainOptions
from polyphi.train.stage import Budget, Mix, Schedule, Stage
from polyphi.train.trainer import train
from polyphi.types.batch import Batch
from polyphi.types.inputs.audio import AudioInput
from polyphi.types.inputs.image import ImageInput

ADAPTER = "own"
BASES = ("int8", "int4")
LAST = 10
"""Steps at the end whose mean loss is reported; the 50th alone has few rows."""


@dataclass(frozen=True)
class Work:
    """One comparison: rows of a corpus of the run. Text needs the language model alone."""

    name: str
    corpus: str
    layout: str
    batch_tokens: int = 1024
    steps: int = 50
    context: int = 512


WORKS = (
    Work("text", "instructions", "mini"),
    Work("image", "image_qa", "native", batch_tokens=2048),
    Work("audio", "asr", "native"),
)


def stage(batches: Sequence[Batch] = ()) -> Stage:
    """The stage with `batches` as its data, in their order."""
    return Stage(
        name="finetune",
        start={"*": "the checkpoint"},
        trainable={f"decoder.*.lora.{ADAPTER}.*": 1e-3},
        data=Mix({"rows": 1.0}, curriculum=("rows",)),
        objective=objective(batches),
        schedule=Schedule(warmup=0.1, decay="linear"),
    )


# ------------------------------------------------------------------------------ files, the same for both sides


def write_model(run: Path, layout: str, folder: Path) -> PhiModel:
    """Write the run's model in bfloat16 with a fresh adapter; return it."""
    model = load_checkpoint(run / "model", adapters=False)
    if layout == "mini":
        model.config = replace(model.config, vision=None, audio=None)
        model.vision = model.audio = None
    add_adapter(model, ADAPTER, AdapterConfig(16, 32.0))
    files = [run / "model" / name for name in ("tokenizer.json", "tokenizer_config.json")]
    save_checkpoint(model, folder, layout, dtype=torch.bfloat16, files=files)
    return model


def stored_row(batch: Batch) -> dict[str, Any]:
    """A row of one sample as `rows.pt` has it: crops and log-mels as the encoders read them."""
    assert batch.labels is not None
    values: dict[str, Any] = {
        "ids": batch.ids.tolist(),
        "supervise": [False, *(batch.labels[:-1] != -100).tolist()],
    }
    if (images := batch.of(ImageInput)) is not None:
        values |= {**image_values(images), "slots": images.slots}
    if (audio := batch.of(AudioInput)) is not None:
        values |= {"mels": audio.mels, "slots": audio.slots}
    return values


def corpus_rows(
    work: Work, corpus: Path, processor: Processor, tokens: int
) -> list[dict[str, Any]]:
    """Rows of a corpus with `tokens` tokens in all, from its beginning again if it has fewer."""
    rows: list[dict[str, Any]] = []
    total = 0
    while total < tokens:
        start = len(rows)
        for sample in Shards(corpus):
            try:
                (batch,) = NextToken().rows(sample, processor, work.context)
            except Unfit:
                continue
            if any(len(inputs.layouts) > 1 for inputs in batch.inputs.values()):
                continue
            rows.append(stored_row(batch))
            total += len(batch)
            if total >= tokens:
                return rows
        if len(rows) == start:
            raise ValueError(
                f"{corpus}: expected rows of at most {work.context} tokens, found none"
            )
    return rows


def write(work: Work, run: Path, folder: Path) -> None:
    """Write the files for both sides: `model`, `rows.pt`, `work.json` (learning rates, rows of each step) and `rows`, a
    corpus of their indices."""
    model = write_model(run, work.layout, folder / "model")
    processor = make_processor(model.config, Tokenizer.load(folder / "model"))
    corpus = run / "data" / work.corpus / "train"
    rows = corpus_rows(work, corpus, processor, work.steps * work.batch_tokens)
    steps = write_steps(rows, folder, ADAPTER, work.batch_tokens, work.steps)
    plan, decoder = stage(), model.config.decoder
    (peak,) = plan.trainable.values()
    settings = {
        "multimodal": work.layout == "native",
        "adapter": f"{ADAPTER}-lora",
        "rates": [peak * plan.schedule.factor(step, work.steps) for step in range(work.steps)],
        "betas": plan.betas,
        "weight_decay": plan.weight_decay,
        "clip_norm": plan.clip_norm,
        "steps": steps,
        "decoder": {"pad_token_id": decoder.pad_token_id},
    }
    (folder / "work.json").write_text(json.dumps(settings))


# ------------------------------------------------------------------------------ our side


def ours(
    work: Work, folder: Path, base: str | None, dtype: precision.Requested = "auto"
) -> dict[str, Any]:
    """Train as `polyphi train` does with a stage file; return the object that `sidebyside.alternate` reads."""
    model = load_checkpoint(folder / "model")
    plan = stage(read_batches(folder, ADAPTER))
    trainable = plan.learning_rates(n for n, _ in model.named_parameters())
    choice = precision.choose(dtype, "cpu", matrix_products(model.config), work.batch_tokens)
    if base:
        quantize_frozen(model, base, trainable)
    for name, parameter in model.named_parameters():
        lookup = (
            base is not None and name == "decoder.embed_tokens.weight"
        )  # the head is a quantized copy
        if name in trainable or (choice.precision == "fp32" and not lookup):
            parameter.data = parameter.data.float()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        manifest = train(
            plan,
            Budget(work.steps, work.batch_tokens, work.batch_tokens),
            model,
            make_processor(model.config, Tokenizer.load(folder / "model")),
            folder,
            Path(out),
            options=TrainOptions(base=base),
            context=RunContext(precision=choice, report=lambda _: None),
        )
        records = read_metrics(Path(out) / "metrics.jsonl")
    seconds = sum(r["tokens"] / r["tokens_per_second"] for r in records[1:])
    return {
        "speed": (len(records) - 1) / seconds,
        "memory": peak_bytes() / 2**30,
        "losses": [r["loss"] for r in records],
        "loss": mean(r["loss"] for r in records[-LAST:]),
        "supervised": sum(r["supervised"] for r in records),
        "trainable": sum(r["parameters"] for r in manifest["trainable"] if r["lr"]),
        "precision": choice.precision,
    }


# ------------------------------------------------------------------------------ both


def compare(work: Work, run: Path, bases: Sequence[str], repeats: int, threads: int) -> list[Row]:
    """Rows of one work: speed, memory and loss, then those of each quantized base."""
    console.print(f"[bold]{work.name}[/bold]")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(work, run, folder)
        us: list[str | Path] = [Path(__file__), run, "--side", work.name, "--folder", folder]
        python = ENVIRONMENTS / "trl" / "bin" / "python"
        peer: list[str | Path] = [python, HERE / "peers" / "sft.py", folder]
        peer_in = peer_precision(peer, threads)
        console.print(f"  the peer in {peer_in}", highlight=False)
        sides = {"ours": us, "peer": [*peer, "--precision", peer_in.precision]}
        sides |= {base: [*us, "--base", base] for base in bases}
        results = alternate(sides, repeats, threads)
    # Precisions differ, and a clip in transformers depends on longer ones in its batch (docs/choices.md).
    same_work(results, 0.05 * results["ours"][0]["losses"][0])
    peer_name = f"{results['peer'][0]['version']} {peer_in.precision}"
    rows = []
    for side in ("ours", *bases):
        label = "" if side == "ours" else f", {side} base"
        console.print(f"  {side} in {results[side][-1]['precision']}", highlight=False)
        for key, unit in (("speed", "steps/s"), ("memory", "GiB"), ("loss", "nats")):
            medians = median(results[side], key), median(results["peer"], key)
            rows.append(Row(f"{work.name} {key}{label}", *medians, peer_name, unit))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A LoRA against transformers + PEFT + TRL.")
    parser.add_argument("run", type=Path, help="a finished run, such as runs/nano")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows on stdout")
    parser.add_argument("--repeats", type=int, default=3)
    names = [work.name for work in WORKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--base", action="append", choices=BASES, default=[])
    parser.add_argument("--threads", type=int, help="of both sides; default: all cores")
    parser.add_argument("--setup", action="store_true", help="only make the peer's environment")
    parser.add_argument("--side", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    works = {work.name: work for work in WORKS}
    if args.side:
        print(json.dumps(ours(works[args.side], args.folder, next(iter(args.base), None))))
        return
    if args.setup:
        install("trl")
        return
    if not (ENVIRONMENTS / "trl").exists():
        parser.error("the peer has no environment: --setup makes it")
    threads = args.threads or len(os.sched_getaffinity(0))
    rows = [
        row
        for name in args.only
        for row in compare(works[name], args.run, args.base, args.repeats, threads)
    ]
    show(rows, as_json=args.json)


if __name__ == "__main__":
    main()
