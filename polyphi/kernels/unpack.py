"""Packed weights of 4 and 8 bits as numbers, and products with the transposed weight (unpack.cpp).

>>> columns(packed, row, 0, 512, bits=4, inputs=3072)        # [O 512]
>>> transposed(gradient, packed, row, bits=4, inputs=3072)   # [T O] by [O I] -> [T I]
"""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from polyphi.kernels.linear import GROUP, check, size4, size8
from polyphi.kernels.native import count, function, number, pointer, pool

COLUMNS, WEIGHTS = 1024, 32 << 20
"""Inputs whose weights are unpacked at once, fewer where they have more than WEIGHTS weights (64 MB in bfloat16), as
those of the head."""


def columns_at_once(outputs: int) -> int:
    """The number of inputs that `transposed` unpacks at once, a multiple of GROUP."""
    return max(GROUP, min(COLUMNS, WEIGHTS // outputs // GROUP * GROUP))


@cache
def _unpack() -> Callable[..., None]:
    return function(
        "polyphi_unpack", *[number] * 2, *[pointer] * 3, number, *[count] * 4, pointer, number
    )


def columns(
    packed: UInt8[Tensor, " bytes"],
    row: Float[Tensor, " O"],
    first: int,
    last: int,
    *,
    bits: int,
    inputs: int,
    dtype: torch.dtype = torch.float32,
    isa: int = -1,
) -> Float[Tensor, "O n"]:
    """The columns `first` to `last` of a weight packed in 4 or 8 bits with its float32 `row`, in float32 or bfloat16.
    `first` is a multiple of GROUP, and `last` too or the end. `isa` is for tests: an index in `native.PATHS`. Raises
    ValueError for other columns and dtypes, and for packed bytes of another size."""
    outputs = len(row)
    check(packed, (size4 if bits == 4 else size8)(outputs, inputs))
    whole = first % GROUP == 0 and (last % GROUP == 0 or last == inputs)
    if not (whole and 0 <= first < last <= inputs):
        raise ValueError(
            f"expected columns in steps of {GROUP} of {inputs}, found {first} to {last}"
        )
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"expected float32 or bfloat16, found {dtype}")
    weight = torch.empty(outputs, last - first, dtype=dtype)
    _unpack()(
        isa,
        bits,
        packed.data_ptr(),
        row.data_ptr(),
        weight.data_ptr(),
        int(dtype == torch.bfloat16),
        outputs,
        inputs,
        first // GROUP,
        -(-last // GROUP),
        pool(),
        torch.get_num_threads(),
    )
    return weight


def transposed(
    y: Float[Tensor, "T O"],
    packed: UInt8[Tensor, " bytes"],
    row: Float[Tensor, " O"],
    *,
    bits: int,
    inputs: int,
) -> Float[Tensor, "T I"]:
    """The product of y, in float32 or bfloat16, with a packed weight [O I], in the dtype of y: for the gradient of a
    linear layer's inputs. Only some columns of the weight are unpacked at a time. Raises as `columns` does."""
    result = torch.empty(len(y), inputs, dtype=y.dtype)
    step = columns_at_once(len(row))
    for first in range(0, inputs, step):
        last = min(inputs, first + step)
        weight = columns(packed, row, first, last, bits=bits, inputs=inputs, dtype=y.dtype)
        result[:, first:last] = y @ weight
    return result
