"""Tokens per second of answers by a JSON schema, one at a time and eight at once, beside answers of free text.

    python benchmarks/structured.py                                # this checkout
    python benchmarks/structured.py --other ../before              # and another one, in turns
    python benchmarks/structured.py --rows 200064                  # masks as long as the published vocabulary's

The model has the nano size's language model with random weights, so that masks count as much as they can: of a larger
model a step takes longer, and masks are computed meanwhile. Each side runs in its own process; reported are medians,
and `compile`, the seconds from a request to its first token in excess of those of free text.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 40, "maxLength": 60},
        "size": {"enum": ["small", "medium", "large"]},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 6, "maxItems": 8},
        "count": {"type": "integer", "minimum": 0, "maximum": 1000},
    },
    "required": ["name", "size", "tags", "count"],
    "additionalProperties": False,
}
TOKENS = 160
ROUNDS = 6


def measured(rows: int | None) -> dict[str, float]:
    """The figures of this process's package."""
    from dataclasses import replace

    import torch

    from polyphi.checkpoints.processor import make_processor
    from polyphi.engine.engine import Engine
    from polyphi.model.multimodal import PhiModel
    from polyphi.processing.tokenizer import Tokenizer
    from polyphi.types.messages import Message
    from polyphi.types.sampling import Grammar, SamplingParams
    from polyphi_recipe.stages import sizes

    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    tokenizer = Tokenizer.train(texts, vocab_size=4096)
    tokenizer = tokenizer.within(rows) if rows else tokenizer
    config = replace(sizes.NANO.model, vision=None, audio=None, adapters={})
    ids = {"vocab_size": tokenizer.vocab_size, "eos_token_ids": tokenizer.eos_ids}
    config = replace(config, decoder=replace(config.decoder, **ids))
    torch.manual_seed(0)
    model = PhiModel(config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" not in name:
                tensor.normal_(0, 0.05)
    engine = Engine(model, make_processor(config, tokenizer))
    question = [Message.user("Describe it.")]
    sampling = SamplingParams(
        temperature=1.0,
        # Random logits would choose whitespace as often as text.
        logit_bias=tuple((tokenizer.encode(c)[0], -20.0) for c in " \n\t"),
        max_tokens=TOKENS,
    )
    by_schema = replace(sampling, grammar=Grammar("json", json.dumps(SCHEMA)))

    def rate(one: Any, together: int) -> float:
        tokens, began = 0, time.monotonic()
        for number in range(ROUNDS):
            each = [replace(one, seed=number * together + i) for i in range(together)]
            answers = engine.generate_many([question] * together, sampling=each)
            tokens += sum(len(answer.tokens) for answer in answers)
        return tokens / (time.monotonic() - began)

    def first(one: Any) -> float:
        began = time.monotonic()
        for _ in range(ROUNDS):
            engine.generate(question, sampling=replace(one, max_tokens=1))
        return (time.monotonic() - began) / ROUNDS

    for warm in (sampling, by_schema):
        rate(warm, 2)
    return {
        "text alone": rate(sampling, 1),
        "schema alone": rate(by_schema, 1),
        "text eight": rate(sampling, 8),
        "schema eight": rate(by_schema, 8),
        "compile": first(by_schema) - first(sampling),
    }


def side(checkout: Path, rows: int | None) -> dict[str, float]:
    """The figures of another checkout's package, measured by this file."""
    command = [sys.executable, __file__, "--side", *(["--rows", str(rows)] if rows else [])]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--other", type=Path, help="another checkout, measured in turn with this one"
    )
    parser.add_argument("--rows", type=int, help="rows of the vocabulary")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measured(options.rows)))
        return
    checkouts = {"this checkout": ROOT}
    if options.other:
        checkouts[str(options.other)] = options.other.resolve()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(options.repeats):
        for name, checkout in checkouts.items():
            results[name].append(side(checkout, options.rows))
    for figure in results["this checkout"][0]:
        medians = [statistics.median(one[figure] for one in some) for some in results.values()]
        ratio = f"   ratio {medians[0] / medians[1]:.2f}" if options.other else ""
        print(f"{figure:14}" + "".join(f"{median:12.4g}" for median in medians) + ratio)


if __name__ == "__main__":
    main()
