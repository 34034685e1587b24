"""Loss of quality in fewer bits: a finished run's own evaluation, at bfloat16 and quantized.

    python benchmarks/quantization.py runs/nano [--rows 30] [--tasks digit asr_digits ...] [--kinds int8 int4-all ...]

Prints a table in Markdown: every task's score with its 95 % interval at bfloat16, and its score in 8 and 4 bits,
rounded for training rows of the tasks' corpora ("calibrated"), with adapters and encoders whole or in 8 bits ("-all");
then, over the prompts of all tasks, the mean Kullback-Leibler divergence of the next token's distribution from
bfloat16's, in nats, and the share of positions of bfloat16's own greedy answers where another token would come first
(flips).

Reasoning tasks are left out: they are measured on another model of the run.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import polyphi
from polyphi.api import Phi
from polyphi.data import calibration
from polyphi.data.shards import Shards
from polyphi.quantization.accuracy import compare
from polyphi.quantization.quantize import quantize
from polyphi.runtime.rendering import table as markdown_table
from polyphi.types.accuracy import Difference
from polyphi.types.batch import Batch
from polyphi.types.batch import row as batch_row
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from polyphi_eval.baselines import TaskResult, evaluate, select
from polyphi_eval.benchmark import Benchmark
from polyphi_eval.heldout import find
from polyphi_eval.report.heldout import number
from polyphi_eval.sources import Data

VARIANTS = ("int8", "int4", "int4 calibrated", "int8-all", "int4-all")
PROMPTS = 4
"""Samples of a task that are compared token by token."""
console = Console(stderr=True)


def loaded(model: Path, variant: str, corpora: Sequence[Path] = ()) -> Phi:
    """A model in a variant: "calibrated" on rows of these corpora."""
    quant, _, how = variant.partition(" ")
    if not how:
        return polyphi.load(model, quant=quant)
    phi = polyphi.load(model, dtype="bfloat16")
    rows = calibration.rows(phi.processor, [Shards(corpus) for corpus in corpora])
    quantize(phi.model, quant, rows)
    return phi


def scores(phi: Phi, tasks: Sequence[Benchmark], run: Path, rows: int) -> dict[str, TaskResult]:
    """Each task's result; answers aren't stored."""
    with tempfile.TemporaryDirectory() as out:
        return {
            task.name: evaluate(
                phi,
                task,
                task.load(Data(run / "data")),
                Path(out),
                limit=rows,
                conditions=("with",),
            )
            for task in tasks
        }


def prompts(
    tasks: Sequence[Benchmark], run: Path, number: int = PROMPTS
) -> list[tuple[tuple[Message, ...], int]]:
    """Conversations of all tasks, each with `max_tokens` of its answer."""
    results = []
    for task in tasks:
        samples = select(task, task.load(Data(run / "data")), number, seed=1)
        results += [(sample.prompt, task.max_tokens) for sample in samples]
    return results


def answered(phi: Phi, conversations: Sequence[tuple[tuple[Message, ...], int]]) -> list[Batch]:
    """Prompts with the model's own greedy answers behind them, which are their labels."""
    out = []
    for messages, most in conversations:
        answer = phi.generate(messages, sampling=SamplingParams(max_tokens=most)).tokens
        prompt = phi.engine.rows.row(messages)
        supervise = [False] * len(prompt) + [True] * len(answer)
        ids, inputs = [*prompt.ids.tolist(), *answer], prompt.inputs.values()
        out.append(batch_row(ids, *inputs, supervise=supervise, adapter=prompt.adapters[0]))
    return out


def table(results: dict[str, dict[str, TaskResult]], apart: dict[str, Difference]) -> str:
    variants = list(apart)
    rows: list[list[Any]] = []
    for name, whole in results["bf16"].items():
        if not whole.n:
            continue
        low, high, *cells = (
            number(whole.metric, x)
            for x in (
                whole.low,
                whole.high,
                *(results[variant][name].score for variant in ("bf16", *variants)),
            )
        )
        first = f"{cells[0]} ({low} to {high})"
        rows.append([name, whole.metric, whole.n, first, *cells[1:]])
    kl = [f"{apart[variant].kl:.5f}" for variant in variants]
    flips = [f"{1 - apart[variant].same_token:.2%}" for variant in variants]
    rows.append(["KL from bf16, nats", "", "", "", *kl])
    rows.append(["greedy tokens that flip", "", "", "", *flips])
    return markdown_table(["task", "metric", "n", "bf16 (95 %)", *variants], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Quality at bfloat16, and in fewer bits.")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--rows", type=int, default=30, help="of each task")
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--kinds", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    args = parser.parse_args(arguments)
    data = args.run / "data"
    tasks = [
        task
        for task in find(*args.tasks)
        if not task.corpus.startswith("reasoning") and (data / task.corpus / "test").exists()
    ]
    if not tasks:
        parser.error(f"{data} holds no held-out rows of these tasks")
    variants = ("bf16", *args.kinds)
    corpora = [data / corpus / "train" for corpus in sorted({task.corpus for task in tasks})]
    models = {variant: loaded(args.run / "model", variant, corpora) for variant in variants}
    results = {}
    for variant, phi in models.items():
        results[variant] = scores(phi, tasks, args.run, args.rows)
        console.print(f"{variant}: {len(tasks)} tasks measured", highlight=False)
    rows = answered(models["bf16"], prompts(tasks, args.run))
    whole = models["bf16"].model
    apart = {variant: compare(whole, models[variant].model, rows).whole for variant in args.kinds}
    print(table(results, apart))


if __name__ == "__main__":
    main()
