"""The learning rate of a fresh adapter at several ranks: the evaluation loss after a short training.

    python benchmarks/adapter_lr.py runs/nano --out runs/adapter_lr

RUN is a finished run of the recipe. An adapter of each rank, with alpha twice the rank, is trained on spoken rows of
its corpus `asr`, once for each rate; the rest of the model is frozen. Prints a Markdown table of the losses on rows
that are not trained on; docs/tables/finetuning.md has one.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from polyphi.finetuning.run import finetune
from polyphi.model.config import AdapterConfig
from polyphi.train.evaluation import EVALUATIONS
from polyphi.train.loss import NextToken
from polyphi.train.options import FinetuneOptions, TrainOptions
from polyphi.train.stage import Mix, Schedule, Stage

RANKS = (8, 32, 64)
RATES = (3e-4, 1e-3, 3e-3)
EVAL_ROWS, TRAIN_ROWS = 48, 652


def stage(rank: int, rate: float, steps: int) -> Stage:
    """The training of one adapter."""
    return Stage(
        name="rates",
        start={},
        adapters={"mine": AdapterConfig(rank=rank, alpha=2.0 * rank)},
        trainable={"decoder.*.lora.mine.*": rate},
        data=Mix({"rows": 1}, adapter={"rows": "mine"}),
        objective=NextToken(),
        schedule=Schedule(warmup=0.05, decay="linear"),
        context=2048,
        batch_tokens=600,
        steps=steps,
    )


def split(run: Path, out: Path) -> tuple[str, str]:
    """Files of training and evaluation rows, drawn from the run's first shard."""
    table = pq.read_table(sorted((run / "data" / "asr" / "train").glob("*.parquet"))[0])
    order = np.random.default_rng(0).permutation(len(table))
    train, evaluation = out / "train.parquet", out / "eval.parquet"
    pq.write_table(table.take(order[:EVAL_ROWS]), evaluation)
    pq.write_table(table.take(order[EVAL_ROWS : EVAL_ROWS + TRAIN_ROWS]), train)
    return str(train), str(evaluation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train, evaluation = split(options.run, options.out)
    print("| rank | " + " | ".join(f"{rate:g}" for rate in options.rates) + " |")
    print("|---" * (len(options.rates) + 1) + "|")
    for rank in options.ranks:
        losses = []
        for rate in options.rates:
            out = options.out / f"{rank}_{rate:g}"
            finetune(
                stage(rank, rate, options.steps),
                [train],
                out,
                checkpoint=options.run / "model",
                finetuning=FinetuneOptions(eval_data=(evaluation,), eval_every=options.steps),
                options=TrainOptions(precision="fp32"),
                report=lambda _: None,
            )
            lines = (out / EVALUATIONS).read_text().splitlines()
            losses.append(json.loads(lines[-1])["loss"])
        print(f"| {rank} | " + " | ".join(f"{loss:.3f}" for loss in losses) + " |", flush=True)


if __name__ == "__main__":
    main()
