"""Loss of quality in fewer bits: perplexity, KL and flips of any checkpoint on any text.

    python benchmarks/perplexity.py runs/larger/model runs/larger/data/held_out/test \\
        --calibrate runs/larger/data/text/train [--rows 100]

Prints two tables in Markdown. The first is of the model as it runs: each value of `--quant`, activations rounded as the
kernels do, bfloat16, and with its KV cache in 8 bits. The second rounds weights alone, those of the decoder's linears
or those of its head, and computes in float32: each form in which weights are stored, and 4 bits calibrated
(quantization/rounding.py). Both are compared with the checkpoint in float32: the mean
Kullback-Leibler divergence of the next token's distribution from its own, in nats, and the share of positions where
another token comes first (flips). In conversations the answers are measured, in documents every token.

`benchmarks/small_language_model.py` trains a checkpoint for it; of the nano run, runs/nano/data/instructions/test is
such a text.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

import polyphi
from polyphi.api import Phi
from polyphi.data import calibration
from polyphi.data.shards import Shards
from polyphi.engine.cache import BLOCK, BlockPool, BlockTable, Memory, StepCache
from polyphi.model.lora import LoraLinear
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare
from polyphi.quantization.accuracy import compare
from polyphi.quantization.calibration import calibrate
from polyphi.quantization.integer_weights import (
    EIGHT,
    FOUR,
    LEVELS,
    PER_OUTPUT,
    SIX,
    Form,
    Quantized,
    pieces,
    shape_2d,
)
from polyphi.quantization.quantize import quantize
from polyphi.types.batch import Batch

ROUNDED = {"8, per output": PER_OUTPUT, "8": EIGHT, "6": SIX, "4, not rotated": LEVELS, "4": FOUR}
SCHEMES = ("bf16", "int8", "int4", "int4, calibrated")


class Reader:
    """The text, and the whole model, which others are compared with."""

    def __init__(self, phi: Phi, text: Sequence[Shards], most: int) -> None:
        make = partial(phi.processor.row, supervise="answers", context=1024, truncate=True)
        samples = [shards[i] for shards in text for i in range(min(most, len(shards)))]
        self.rows = [make(sample.messages) for sample in samples]
        self.whole = phi.model

    def line(self, model: PhiModel, *names: str, kv: str | None = None) -> str:
        other = cast(PhiModel, Cached(model, kv)) if kv else model
        result = compare(self.whole, other, self.rows).whole
        cells = (*names, f"{result.perplexity:.4f}", f"{result.kl:.6f}")
        return f"| {' | '.join(cells)} | {1 - result.same_token:.2%} |"


class Cached:
    """A model whose keys and values are read from a cache in the format `kv`."""

    def __init__(self, model: PhiModel, kv: str) -> None:
        self.decoder, self.config, self.logits = model.decoder, model.config, model.logits
        self._model, self._kv = model, kv

    def __call__(self, row: Batch) -> Tensor:
        return self._model(row, stored(self._model, row, self._kv))


def stored(model: PhiModel, row: Batch, kv: str) -> StepCache:
    """An empty KV cache for a row."""
    (tokens,) = row.seq_lens
    blocks = -(-tokens // BLOCK)
    table = BlockTable(BlockPool(blocks))
    table.grow(tokens)
    memory = Memory(model.config.decoder, blocks, torch.float32, model.decoder.device, kv)
    return StepCache(memory, [table], [tokens])


def numbers(weight: Tensor, form: Form, hessian: Tensor | None = None) -> Tensor:
    """The values of a weight in fewer bits."""
    levels = pieces(weight, form, hessian)
    quantized = Quantized.stored(levels, shape_2d(weight.shape), weight.device)
    return quantized.rows(torch.arange(len(weight)))


@torch.no_grad()
def rounded(model: PhiModel, form: Form, rows: Sequence[Batch] = ()) -> PhiModel:
    """`model` with the values that its linears' weights have in fewer bits, calibrated with `rows` if there are any."""
    if rows:
        calibrate(model, rows, lambda one, sums: one.weight.copy_(numbers(one.weight, form, sums)))
    else:
        for linear in model.decoder.modules():
            if isinstance(linear, LoraLinear):
                linear.weight.copy_(numbers(linear.weight, form))
    return model


@torch.no_grad()
def rounded_head(model: PhiModel, form: Form) -> PhiModel:
    """`model` with the values that its head's weight has in fewer bits; the table of embeddings stays as it is."""
    weight = numbers(model.decoder.embed_tokens.weight, form)
    prepare(model.decoder).head = partial(F.linear, weight=weight)
    return model


def tables(
    folder: Path, text: Sequence[Shards], sources: Sequence[Shards], most: int
) -> Iterator[str]:
    load = partial(polyphi.load, folder)
    phi = load(dtype="float32")
    reader, rows = Reader(phi, text, most), calibration.rows(phi.processor, sources)
    tokens = sum(len(row.supervised) for row in reader.rows), sum(map(len, rows))
    yield "{:,} tokens measured, {:,} to calibrate with\n".format(*tokens)
    yield "| quant | perplexity | KL, nats | flips |\n|---|---|---|---|"
    yield reader.line(phi.model, "float32, cache in 8 bits", kv="int8")
    for scheme in SCHEMES:
        if scheme in ("bf16", "int8", "int4"):
            model = load(quant=scheme).model
        else:
            model = quantize(load(dtype="bfloat16").model, "int4", rows)
        yield reader.line(model, scheme)
        yield reader.line(model, f"{scheme}, cache in 8 bits", kv="int8")
    yield "\n| linears | head | perplexity | KL, nats | flips |\n|---|---|---|---|---|"
    yield reader.line(load(dtype="float32").model, "as stored", "as stored")
    for bits, form in ROUNDED.items():
        yield reader.line(rounded(load(dtype="float32").model, form), bits, "")
    yield reader.line(rounded(load(dtype="float32").model, FOUR, rows), "4, calibrated", "")
    for bits, form in ROUNDED.items():
        yield reader.line(rounded_head(load(dtype="float32").model, form), "", bits)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Perplexity, KL and flips in 16, 8 and 4 bits.")
    parser.add_argument("model", type=Path, help="folder of a checkpoint")
    parser.add_argument("text", type=Path, nargs="+", help="folders of shards")
    parser.add_argument("--calibrate", type=Path, nargs="+", required=True, help="others")
    parser.add_argument("--rows", type=int, default=100, help="of each text")
    args = parser.parse_args(arguments)
    text, sources = (list(map(Shards, folders)) for folders in (args.text, args.calibrate))
    for line in tables(args.model, text, sources, args.rows):
        print(line, flush=True)


if __name__ == "__main__":
    main()
