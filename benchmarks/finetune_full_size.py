"""Fine-tuning at the published size by `polyphi train`: a random checkpoint of 5.6 billion bfloat16 parameters and a
third adapter of rank 64, on bases in bf16, int8 and int4.

    python benchmarks/finetune_full_size.py --out runs/published [--bases int4] [--steps 5]
    python benchmarks/finetune_full_size.py --out runs/tiny --tiny

Rows are two clips of 15 seconds. Prints a table in Markdown: tokens per second after the first step, peaks of memory in
the steps and of the whole command (loading, quantizing, export), and what `polyphi plan` computes for these rows
without Python and torch (0.4 GB). Needs 40 GB of disk and 24 GB of memory. `--tiny` is the same with a tiny model.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import torch
from random_checkpoint import make

from polyphi.checkpoints.headers import read_config
from polyphi.checkpoints.processor import make_processor
from polyphi.finetuning.stages import load_stage
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.progress import read_metrics
from polyphi.runtime.rendering import table
from polyphi.train.optimizer import groups
from polyphi.train.stage import Budget
from polyphi.types.batch import Batch
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Text
from polyphi_recipe.stages import sizes

BASES = ("bf16", "int8", "int4")
QUESTION, ANSWERS = "What is it?", ("two long notes", "three short ones")
SECONDS = 15
STAGE = """
from polyphi.model.config import AdapterConfig
from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="sibling",
    start={{}},
    adapters={{"sibling": AdapterConfig(rank=64, alpha=128.0)}},
    trainable={{"decoder.*.lora.sibling.*": 5e-4}},
    data=Mix({{"clips": 1}}, adapter={{"clips": "sibling"}}),
    objective=NextToken(),
    context=1024,
    batch_tokens={batch_tokens},
    steps={steps},
)
"""


@dataclass(frozen=True)
class Peak:
    """Largest resident bytes of a process: private ones, and with pages of mapped files."""

    private: int = 0
    resident: int = 0

    def with_(self, other: "Peak") -> "Peak":
        return Peak(max(self.private, other.private), max(self.resident, other.resident))


def write_checkpoint(folder: Path, config: ModelConfig) -> None:
    """A random checkpoint in transformers' layout, with a small tokenizer."""
    tokenizer = Tokenizer.train([" ".join([*ANSWERS, QUESTION])] * 4, 512)
    tokenizer.save(folder.parent / "tokenizer")
    assert config.vision is not None and config.audio is not None
    end = tokenizer.control("<|endoftext|>")
    ends = {"bos_token_id": end, "pad_token_id": end, "eos_token_ids": tuple(tokenizer.eos_ids)}
    config = replace(
        config,
        decoder=replace(config.decoder, **ends),
        vision=replace(config.vision, image_token_id=tokenizer.image_id),
        audio=replace(config.audio, audio_token_id=tokenizer.audio_id),
    )
    files = tuple(sorted((folder.parent / "tokenizer").iterdir()))
    make(config, folder, "native", shard_bytes=2_000_000_000, files=files)


def write_rows(out: Path, checkpoint: Path) -> list[Batch]:
    """Write `clips.jsonl`; return the rows as the training makes them."""
    processor = make_processor(read_config(checkpoint), Tokenizer.load(checkpoint))
    random, lines, batches = np.random.default_rng(0), [], []
    for number, answer in enumerate(ANSWERS):
        file = out / f"{number}.wav"
        at = np.arange(16_000 * SECONDS) / 16_000
        wave = sum(np.sin(2 * np.pi * f * at) for f in random.integers(100, 4000, 3))
        soundfile.write(file, 0.1 * wave, 16_000)
        lines.append(json.dumps({"audio": file.name, "question": QUESTION, "answer": answer}))
        messages = [Message.user(Audio(file), Text(QUESTION)), Message.assistant(answer)]
        batches.append(processor.row(messages, supervise="answers", adapter="sibling"))
    (out / "clips.jsonl").write_text("\n".join(lines) + "\n")
    return batches


def resident(process: psutil.Process) -> Peak:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    private, mapped = (int(values[key].split()[0]) << 10 for key in ("RssAnon", "RssFile"))
    return Peak(private, private + mapped)


def train(stage: Path, checkpoint: Path, out: Path, base: str) -> tuple[Peak, Peak, float]:
    """Run `polyphi train`; return the peaks in the steps and of the whole command, and tokens per second. The exported
    model, 11 GB, is removed."""
    command = [sys.executable, "-m", "polyphi.cli", "train", str(stage), "--model", str(checkpoint)]
    command += ["--data", f"clips={stage.parent / 'clips.jsonl'}", "--out", str(out)]
    command += ["--precision", "bf16", "--workers", "0", *(["--base", base] * (base != "bf16"))]
    metrics, steps, whole = out / "metrics.jsonl", Peak(), Peak()
    with out.with_suffix(".log").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        process = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                now = resident(process)
            except (OSError, KeyError):  # it ends
                break
            whole = whole.with_(now)
            if metrics.exists() and not (out / "manifest.json").exists():
                steps = steps.with_(now)
            time.sleep(0.1)
    if code := child.wait():
        end = out.with_suffix(".log").read_text()[-2000:]
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{end}")
    timed = read_metrics(metrics)[1:]
    seconds = sum(record["tokens"] / record["tokens_per_second"] for record in timed)
    shutil.rmtree(out)
    return steps, whole, sum(record["tokens"] for record in timed) / seconds


def planned(stage_file: Path, checkpoint: Path, rows: list[Batch], base: Any) -> float:
    """The peak that `polyphi plan` computes for a pack of `rows`."""
    stage, config = load_stage(stage_file), read_config(checkpoint)
    with torch.device("meta"):
        model = PhiModel(replace(config, adapters={**config.adapters, **stage.adapters}))
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    budget = Budget(stage.steps, stage.batch_tokens, stage.context, 1.0)
    target = cost.StageModel(stage, budget, model.config, tensors, groups(stage, tensors))
    work = cost.work(rows, config)
    return cost.memory(target, work, cost.Switches(base=base), cpu=True)["peak"]


def tiny() -> ModelConfig:
    """The micro size, with weights that have a form in 4 bits."""
    config = sizes.MICRO.model
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return replace(config, decoder=replace(config.decoder, vocab_size=1024, **shape))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=BASES)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a tiny model")
    args = parser.parse_args()
    out = args.out.resolve()
    checkpoint, stage = out / "checkpoint", out / "stage.py"
    if not checkpoint.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint, tiny() if args.tiny else ModelConfig())
    rows = write_rows(out, checkpoint)
    stage.write_text(STAGE.format(batch_tokens=sum(map(len, rows)), steps=args.steps))
    lines = []
    for base in args.bases:
        plan = planned(stage, checkpoint, rows, base)
        steps, whole, rate = train(stage, checkpoint, out / base, base)
        sizes_ = (steps.private, steps.resident, whole.resident, plan)
        lines.append([base, *(f"{size / 1e9:.2f}" for size in sizes_), f"{rate:.1f}"])
    titles = ("base", "steps: private, GB", "with mapped files", "whole command", "planned")
    print(table((*titles, "tokens/s"), lines))


if __name__ == "__main__":
    main()
