"""Loss of quality in fewer bits: perplexity, KL and flips of any checkpoint on any text.

    python benchmarks/perplexity.py runs/larger/model runs/larger/data/held_out/test \\
        --calibrate runs/larger/data/text/train [--rows 100]

Prints two tables in Markdown. The first is of the model as it runs: each value of `--quant`, activations rounded as the
kernels do, bfloat16, and with its KV cache in 8 bits. The second rounds weights alone and computes in float32, so that
ways of rounding can be compared separately: the decoder's linears, and its head, in 8 bits, and in 4 bits at the
nearest levels, searched, and calibrated (model/rounding.py). Both are compared with the checkpoint in float32: the mean
Kullback-Leibler divergence of the next token's distribution from its own, in nats, and the share of positions where
another token comes first (flips). In conversations the answers are measured, in documents every token.

`benchmarks/small_language_model.py` trains a checkpoint for it; of the nano run, runs/nano/data/instructions/test is
such a text.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
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
from polyphi.quantization.quantize import quantize
from polyphi.quantization.rounding import four_bits, nearest
from polyphi.types.batch import Batch


def eight_bits(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


ROUNDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "as stored": lambda weight, hessian: weight,
    "8": lambda weight, hessian: eight_bits(weight),
    "4, nearest": lambda weight, hessian: nearest(weight).weight(),
    "4, searched": lambda weight, hessian: four_bits(weight).weight(),
    "4, calibrated": lambda weight, hessian: four_bits(weight, hessian).weight(),
}
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


@torch.no_grad()
def rounded(model: PhiModel, rows: Sequence[Batch], linears: str, head: str) -> PhiModel:
    """`model` with the values that its weights have in fewer bits."""

    def put(linear: LoraLinear, hessian: Tensor) -> None:
        linear.weight.copy_(ROUNDED[linears](linear.weight, hessian))

    seen = calibrate(model, rows, put)
    weight = ROUNDED[head](model.decoder.embed_tokens.weight, seen)
    prepare(model.decoder).head = partial(F.linear, weight=weight)  # the lookup stays as it is
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
    for bits in ROUNDED:
        yield reader.line(rounded(load(dtype="float32").model, rows, bits, "as stored"), bits, "")
    for bits in list(ROUNDED)[1:]:
        yield reader.line(rounded(load(dtype="float32").model, rows, "as stored", bits), "", bits)


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
