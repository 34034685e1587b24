"""What a quantized base costs in quality: an adapter of rank 64, trained on the nano run's speech with the language
model in bf16, int8 and int4, from several seeds.

    python benchmarks/quantized_bases.py runs/nano --out runs/bases [--steps 300] [--seeds 3] [--corpus asr]

Each adapter is evaluated on the base that it was trained on and on the unquantized one: loss per token of the held-out
answers, and the share of answers whose every token is the most likely one, as in a greedy answer. Prints a table in
Markdown: means over the seeds with their 95 % interval. Runs that are complete in OUT aren't repeated.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import polyphi
from polyphi.checkpoints.headers import read_config
from polyphi.checkpoints.processor import make_processor
from polyphi.checkpoints.read import load_checkpoint
from polyphi.data.shards import Shards
from polyphi.model.adapters import add_adapter, put_adapter
from polyphi.model.config import AdapterConfig
from polyphi.model.lora import Factors
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization.quantize import quantize_frozen
from polyphi.runtime.rendering import table
from polyphi.train.context import RunContext
from polyphi.train.loss import NextToken
from polyphi.train.options import TrainOptions
from polyphi.train.stage import Budget, Mix, Stage
from polyphi.train.trainer import train
from polyphi.types.batch import Batch, pack

BASES = ("bf16", "int8", "int4")
NAME = "sibling"
LORA = AdapterConfig(rank=64, alpha=128.0)
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t of a 95 % interval, by the number of values."""


def scheme(base: str) -> str | None:
    return None if base == "bf16" else base


def train_adapter(
    run: Path, out: Path, base: str, seed: int, corpus: str, budget: Budget, rate: float
) -> None:
    """Train the adapter in `out`, unless that was done."""
    stage = Stage(
        name=NAME,
        start={},
        trainable={f"decoder.*.lora.{NAME}.*": rate},
        data=Mix({corpus: 1}, adapter={corpus: NAME}),
        objective=NextToken(),
    )
    model = load_checkpoint(run / "model", apart=True)
    processor = make_processor(model.config, Tokenizer.load(run / "model"))
    add_adapter(model, NAME, LORA, seed)
    names = stage.learning_rates(n for n, _ in model.named_parameters())
    if base != "bf16":
        quantize_frozen(model, base, names)
    for name in names:
        model.get_parameter(name).data = model.get_parameter(name).data.float()
    options = TrainOptions(seed=seed, precision="bf16", base=scheme(base))
    context = RunContext(report=lambda _: None)
    train(stage, budget, model, processor, run / "data", out, options=options, context=context)


def with_adapter(run: Path, trained: Path, base: str) -> PhiModel:
    """The model on a base, as it is served, with a trained adapter."""
    model = polyphi.load(run / "model", dtype="bfloat16", quant=scheme(base)).model
    tensors, ends = load_file(trained / "trained.safetensors"), f".lora.{NAME}."
    paths = {name.partition(ends)[0] for name in tensors}
    factors = {
        path: Factors(tensors[f"{path}{ends}a"], tensors[f"{path}{ends}b"], LORA.alpha / LORA.rank)
        for path in paths
    }
    put_adapter(model, NAME, LORA, factors)
    return prepare(model)


def in_packs(rows: Sequence[Batch], size: int = 16) -> Iterator[Batch]:
    for start in range(0, len(rows), size):
        yield pack(list(rows[start : start + size]))


@torch.inference_mode()
def evaluate(model: PhiModel, rows: Sequence[Batch]) -> dict[str, float]:
    """Mean loss of the answers' tokens, and the share of answers that are right as a whole."""
    loss = tokens = right = 0.0
    for batch in in_packs(rows):
        assert batch.labels is not None and batch.supervised is not None
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(model(batch)[batch.supervised]).float()
        labels = batch.labels[batch.supervised]
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        tokens += len(labels)
        row_of = torch.bucketize(batch.supervised, torch.tensor(batch.cu_seqlens[1:]), right=True)
        wrong = torch.zeros(batch.sequences).index_add(
            0, row_of, (logits.argmax(-1) != labels) + 0.0
        )
        right += int((wrong == 0).sum())
    return {"loss": loss / tokens, "right": right / len(rows)}


def interval(values: Sequence[float], percent: bool = False) -> str:
    """Mean and half of the 95 % interval of the mean."""
    mean, factor = statistics.mean(values), 100 if percent else 1
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{factor * mean:.{1 if percent else 3}f} ± {factor * half:.{1 if percent else 3}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished run of the recipe, runs/nano")
    parser.add_argument("--out", type=Path, default=Path("runs/bases"))
    parser.add_argument("--corpus", default="asr")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, choices=list(T_95), default=3)
    parser.add_argument("--rows", type=int, default=300, help="held-out rows")
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args(arguments)
    budget = Budget(args.steps, batch_tokens=1024, context=1024)
    processor = make_processor(read_config(args.run / "model"), Tokenizer.load(args.run / "model"))
    make = partial(processor.row, supervise="answers", adapter=NAME, context=1024)
    held_out = Shards(args.run / "data" / args.corpus / "test")
    rows = [make(held_out[i].messages) for i in range(min(args.rows, len(held_out)))]
    scores: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        for base in BASES:
            out = args.out / f"{base}-{seed}"
            train_adapter(args.run, out, base, seed, args.corpus, budget, args.rate)
            for target in dict.fromkeys((base, "bf16")):
                file = out / f"scores-{target}.json"
                if not file.exists():
                    file.write_text(json.dumps(evaluate(with_adapter(args.run, out, target), rows)))
                scores.setdefault((base, target), []).append(json.loads(file.read_text()))
    rows = []
    for (base, target), results in scores.items():
        loss, right = ([r[key] for r in results] for key in ("loss", "right"))
        rows.append((base, target, interval(loss), interval(right, percent=True)))
    print(table(("trained on", "evaluated on", "loss", "right answers (%)"), rows))


if __name__ == "__main__":
    main()
