"""Linear layers of the published size, in 4 and 8 bits, against torch's.

    python benchmarks/matrix_products.py [--repeats 3] [--json]
    polyphi bench inference --parts products

The work is the four products of one decoder layer (3.84 G parameters have 32), by 1, 8 and 256 tokens. Weights of
several layers take turns, so that each product reads its own from memory, as decoding does. Sides alternate, products
one after another; medians are reported. The limit is the rate of reading memory (measured between them) where few
tokens are needed (bytes of weights that ours reads in its time), and of matrix products in bfloat16, or float32 where
that is faster, where many are. torch's plain linear has the faster of the two precisions too. On a CPU with AMX ours
also run without it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from sidebyside import (
    Row,
    Transformers,
    choose_transformers,
    console,
    product_limit,
    read_rate,
    show,
)
from torch import Tensor

from polyphi import kernels
from polyphi.kernels import native
from polyphi.quantization.integer_weights import (
    EIGHT,
    FOUR,
    Int4Pack,
    OneDnn,
    PerToken,
    Quantized,
)
from polyphi.quantization.rounding import nearest

SHAPES = {
    "qkv": (5120, 3072),
    "o": (3072, 3072),
    "gate and up": (16384, 3072),
    "down": (3072, 8192),
}
TOKENS = (1, 8, 256)
SCHEMES = {"int4": 4.5, "int8": 8}
"""Bits of a weight."""
LAYERS = 8
"""Whose weights take turns: more than any cache holds."""


def layer(make: Callable[[Tensor], Callable[[Tensor], Tensor]]) -> list[Callable[[Tensor], Tensor]]:
    """The products of one layer."""
    return [
        make(torch.randn(outputs, inputs, dtype=torch.bfloat16) * 0.02)
        for outputs, inputs in SHAPES.values()
    ]


def onednn(weight: Tensor) -> PerToken:
    """oneDNN's product of int8, the fallback where our kernels are missing."""
    scale = weight.abs().amax(1).float() / 127
    return PerToken(OneDnn((weight / scale[:, None]).round().to(torch.int8), scale))


def torch_int4(weight: Tensor) -> Int4Pack:
    """torch's product in 4 bits, the fallback where our kernels are missing."""
    rounded = nearest(weight)
    return Int4Pack(rounded.four, rounded.row, False)


SIDES: dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]] = {
    "int4": partial(Quantized, form=FOUR),
    "int8": partial(Quantized, form=EIGHT),
    "torch int4": torch_int4,
    "oneDNN int8": onednn,
}


def without_amx(
    make: Callable[[Tensor], Callable[[Tensor], Tensor]],
) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    def layer_without(weight: Tensor) -> Callable[[Tensor], Tensor]:
        product = make(weight)

        def limited(x: Tensor) -> Tensor:
            native.limit("AVX512_BF16")
            result = product(x)
            native.limit("AVX512_AMX")
            return result

        return limited

    return layer_without


def torch_linear(dtype: torch.dtype) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    """torch's linear with weights in that dtype; tokens come in bfloat16 and are cast."""

    def make(weight: Tensor) -> Callable[[Tensor], Tensor]:
        weight = weight.to(dtype)
        return lambda x: torch.nn.functional.linear(x.to(dtype), weight)

    return make


def seconds(layers: list[list[Callable[[Tensor], Tensor]]], tokens: int, rounds: int) -> float:
    """Seconds of one layer's products, in `rounds` rounds over all layers."""
    activations = [
        torch.randn(tokens, inputs, dtype=torch.bfloat16) for _, inputs in SHAPES.values()
    ]
    began = time.perf_counter()
    for _ in range(rounds):
        for products in layers:
            for product, x in zip(products, activations, strict=True):
                product(x)
    return (time.perf_counter() - began) / (rounds * len(layers))


def compare(repeats: int, library: Transformers) -> list[Row]:
    """A row for each number of tokens, scheme and other kernel."""
    if reason := kernels.missing():
        raise SystemExit(f"no kernels to measure: {reason}")
    console.print(f"{kernels.path()}, {torch.get_num_threads()} threads", highlight=False)
    rows = []
    sides = SIDES | {f"torch {library.precision}": torch_linear(library.dtype)}
    others = [name for name in sides if name not in SCHEMES]
    own = {scheme: [f"{scheme} without AMX"] if native.amx() else [] for scheme in SCHEMES}
    sides |= {name: without_amx(SIDES[scheme]) for scheme in SCHEMES for name in own[scheme]}
    modules = {name: [layer(make) for _ in range(LAYERS)] for name, make in sides.items()}
    weights = sum(outputs * inputs for outputs, inputs in SHAPES.values())
    for tokens in TOKENS:
        took: dict[str, list[float]] = {name: [] for name in sides}
        limits = []
        rounds = 4 if tokens < 64 else 1
        for name in sides:
            seconds(modules[name], tokens, 1)
        for _ in range(repeats):
            limits.append(read_rate(seconds=0.5) if tokens < 64 else product_limit(1.0)[0])
            for name, layers in modules.items():
                took[name].append(seconds(layers, tokens, rounds))
        for scheme, bits in SCHEMES.items():
            ours = statistics.median(took[scheme])
            work = weights * bits / 8 if tokens < 64 else 2 * weights * tokens
            share = work / ours / statistics.median(limits)
            for name in others + own[scheme]:
                theirs = statistics.median(took[name])
                what = f"{scheme}, {tokens} token{'s' * (tokens > 1)}, beside {name}"
                rows.append(Row(what, tokens / ours, tokens / theirs, name, "tokens/s", share))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    show(compare(args.repeats, choose_transformers()), as_json=args.json)


if __name__ == "__main__":
    main()
