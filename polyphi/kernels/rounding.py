"""Weights rounded to 4 bits, the scale and zero of each group searched (rounding.cpp)."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.kernels.linear import GROUP, Int4Weight
from polyphi.kernels.native import count, fits, function, number, pointer, pool


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
