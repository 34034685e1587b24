"""Weights rounded to 4 bits, the scale and zero of each group searched, and to 6 and 8 bits (rounding.cpp)."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.kernels.linear import GROUP, LARGEST, Int4Weight, IntWeight, blocks
from polyphi.kernels.native import count, fits, function, number, pointer, pool
from polyphi.kernels.rotation import BLOCK, rotated


@cache
def _search() -> Callable[..., None]:
    return function(
        "polyphi_search",
        *[number, pointer, number, *[pointer] * 4, *[count] * 2, pointer, number, number],
        *[pointer, number],
    )


def supports_search(weight: Tensor) -> bool:
    """Whether `search` can round a weight."""
    return weight.is_contiguous() and fits(weight)


@cache
def _round_blocks() -> Callable[..., None]:
    sizes = [count] * 2
    return function(
        "polyphi_round_blocks",
        *[number, pointer, number, *[pointer] * 3, *sizes, number],
        pointer,
        number,
    )


@torch.no_grad()
def round_blocks(
    weight: Float[Tensor, "O I"], bits: int, isa: int = -1
) -> tuple[IntWeight, Float[Tensor, " O"]]:
    """A weight, padded to whole blocks and rotated, in 6 or 8 bits with a scale per output and block: the smallest one
    in 255ths of the row's largest that holds the block; and the unit of each row's scales. The same on every path and
    device. `isa` is for tests: an index in `native.PATHS`."""
    (outputs, inputs), most = weight.shape, LARGEST[bits]
    if not supports_search(weight):
        values = rotated(weight).view(outputs, -1, BLOCK)
        steps = values.abs().amax(2) / most
        row = (steps.amax(1) / 255).clamp(min=1e-30)
        s = (steps / row[:, None]).ceil_().clamp_(1, 255)
        q = (values / (s * row[:, None])[..., None]).round_().clamp_(-most, most)
        return IntWeight(q.flatten(1).to(torch.int8), s.to(torch.uint8)), row
    q = torch.empty(outputs, blocks(inputs) * BLOCK, dtype=torch.int8)
    s, row = torch.empty(outputs, blocks(inputs), dtype=torch.uint8), torch.empty(outputs)
    address, bf16 = weight.data_ptr(), int(weight.dtype == torch.bfloat16)
    results = (t.data_ptr() for t in (q, s, row))
    sizes = outputs, inputs, most
    _round_blocks()(isa, address, bf16, *results, *sizes, pool(), torch.get_num_threads())
    return IntWeight(q, s), row


def search(
    weight: Float[Tensor, "O I"],
    row: Float[Tensor, " O"],
    starts: Sequence[tuple[float, float]],
    iterations: int,
    isa: int = -1,
) -> Int4Weight:
    """The levels, scales and zeros with the least squared error, as `quantization/rounding.py` searches them: from
    `starts`, with `iterations` of the least-squares fit from the best. `row` is the unit of each output's scales. The
    number of inputs is a multiple of GROUP. `isa` is for tests: an index in `native.PATHS`."""
    outputs, inputs = weight.shape
    q = torch.empty(outputs, inputs, dtype=torch.uint8)
    s, z = (torch.empty(outputs, inputs // GROUP, dtype=torch.uint8) for _ in range(2))
    pairs = torch.tensor(starts, dtype=torch.float32)
    _search()(
        isa,
        weight.data_ptr(),
        int(weight.dtype == torch.bfloat16),
        row.data_ptr(),
        *(t.data_ptr() for t in (q, s, z)),
        outputs,
        inputs,
        pairs.data_ptr(),
        len(starts),
        iterations,
        pool(),
        torch.get_num_threads(),
    )
    return Int4Weight(q, s, z)
