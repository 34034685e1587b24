"""How often rounding changes a greedy token because of other requests in the batch: a finished run's prompts, all
batched in an engine with small chunks and draft tokens, against each one alone and without a cache.

    python benchmarks/batch_invariance.py runs/nano [--prompts 4] [--tasks digit asr_digits ...]

Prints a table in Markdown for float32, bfloat16 and int8: of all tokens of the batch, the share where the model alone
prefers another one after the same tokens (flips); the largest margin between its two best there; and how far apart
single logits are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from quantization import PROMPTS, prompts
from rich.console import Console

import polyphi
from polyphi.api import Phi
from polyphi.engine.engine import Engine
from polyphi.engine.results import accept
from polyphi.engine.runner import extend
from polyphi.engine.scores import logits_many
from polyphi.types.sampling import SamplingParams
from polyphi_eval.heldout import find

PRECISIONS = {"float32": {"dtype": "float32"}, "bf16": {"quant": "bf16"}, "int8": {"quant": "int8"}}
console = Console(stderr=True)


class Watched(Engine):
    """Stores the logits of every sampled token."""

    def __init__(self, phi: Phi) -> None:
        super().__init__(phi.model, phi.processor, chunk=96, prefill=700)
        self.sampled_logits: dict[int, list[torch.Tensor]] = {}
        self.accept = self._accept

    def _accept(self, part, output, finite, best) -> None:
        before = len(part.request.tokens)
        accept(part, output, finite, best)
        if output.logits is not None:
            sampled = len(part.request.tokens) - before
            self.sampled_logits.setdefault(id(part.request), []).extend(
                output.logits[:sampled].clone()
            )


def compare(
    phi: Phi, conversations: Sequence[tuple], draft: int = 4
) -> tuple[int, int, float, float]:
    """(tokens, flips, largest margin of a flip, largest difference of a logit)."""
    engine = Watched(phi)
    sampling = [SamplingParams(max_tokens=most, draft=draft) for _, most in conversations]
    requests = [
        engine.submit(messages, sampling=params)
        for (messages, _), params in zip(conversations, sampling, strict=True)
    ]
    while any(not request.finish_reason for request in requests):
        engine.step(in_order=True)
    tokens, flips, margin, apart = 0, 0, 0.0, 0.0
    for request, (messages, _) in zip(requests, conversations, strict=True):
        batched = engine.sampled_logits.get(id(request))
        if not batched:
            continue
        prompt = engine.rows.row(messages)  # the request no longer holds its pictures and clips
        start = len(prompt)
        row = extend(prompt, request.tokens)
        alone = logits_many(engine, [row])[0][start - 1 : -1]
        apart = max(apart, float((torch.stack(batched) - alone).abs().max()))
        for token, logits in zip(request.tokens, alone, strict=True):
            if token != int(logits.argmax()):
                flips += 1
                best = logits.topk(2).values
                margin = max(margin, float(best[0] - best[1]))
        tokens += len(request.tokens)
    console.print(f"{len(requests)} requests in {engine.counters().steps} steps")
    return tokens, flips, margin, apart


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Flips of greedy tokens between batches.")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of each task")
    parser.add_argument("--tasks", nargs="+", default=[])
    args = parser.parse_args(arguments)
    tasks = [
        task
        for task in find(*args.tasks)
        if not task.corpus.startswith("reasoning")
        and (args.run / "data" / task.corpus / "test").exists()
    ]
    conversations = prompts(tasks, args.run, args.prompts)
    print(
        "| arithmetic | tokens | flips | largest margin of a flip | largest difference of a logit |"
    )
    print("|---|---|---|---|---|")
    for name, options in PRECISIONS.items():
        phi = polyphi.load(args.run / "model", **options)
        tokens, flips, margin, apart = compare(phi, conversations)
        print(
            f"| {name} | {tokens} | {flips} ({flips / max(1, tokens):.2%}) | {margin:.2g} | {apart:.2g} |"
        )


if __name__ == "__main__":
    main()
