"""Packed weights of 4, 6 and 8 bits as numbers, and products with the transposed weight (unpack.cpp).

>>> numbers(packed, row, bits=4, inputs=3072)                              # [O I]
>>> transposed(gradient, packed, row, bits=4, is_rotated=True, inputs=3072) # [T O] by [O I] -> [T I]
"""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from polyphi.kernels.linear import PANEL, blocks, check, size
from polyphi.kernels.native import count, function, number, pointer, pool
from polyphi.kernels.rotation import BLOCK, rotated

WEIGHTS = 4 << 20
"""Most weights that `transposed` unpacks at once: 8 MB in bfloat16, which a CPU's caches hold."""


def outputs_at_once(inputs: int) -> int:
    """The number of outputs whose weights `transposed` unpacks at once, a multiple of PANEL."""
    return max(PANEL, WEIGHTS // inputs // PANEL * PANEL)


@cache
def _unpack() -> Callable[..., None]:
    return function(
        "polyphi_unpack", *[number] * 2, *[pointer] * 3, number, count, count, pointer, number
    )


def numbers(
    packed: UInt8[Tensor, " bytes"],
    row: Float[Tensor, " O"],
    *,
    bits: int,
    inputs: int,
    dtype: torch.dtype = torch.float32,
    isa: int = -1,
) -> Float[Tensor, "O I"]:
    """A weight packed in 4, 6 or 8 bits with its float32 `row`, in float32 or bfloat16, as it is stored: a rotated one
    stays so. `isa` is for tests: an index in `native.PATHS`. Raises ValueError for other dtypes, and for
    packed bytes of another size."""
    outputs = len(row)
    check(packed, size(bits, outputs, inputs))
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"expected float32 or bfloat16, found {dtype}")
    weight = torch.empty(outputs, inputs, dtype=dtype)
    addresses = (t.data_ptr() for t in (packed, row, weight))
    bf16 = int(dtype == torch.bfloat16)
    _unpack()(isa, bits, *addresses, bf16, outputs, inputs, pool(), torch.get_num_threads())
    return weight


def transposed(
    y: Float[Tensor, "T O"],
    packed: UInt8[Tensor, " bytes"],
    row: Float[Tensor, " O"],
    *,
    bits: int,
    is_rotated: bool,
    inputs: int,
) -> Float[Tensor, "T I"]:
    """The product of y, in float32 or bfloat16, with a packed weight [O I], its inputs rotated or not, in the dtype
    of y: for the gradient of a linear layer's inputs. Some outputs' weights are unpacked at a time; in bfloat16 the
    product of each part is rounded, and their sum is in float32. Raises as `numbers` does."""
    width = blocks(inputs) * BLOCK if is_rotated else inputs
    outputs = outputs_at_once(inputs)
    bytes_ = size(bits, outputs, inputs)
    parts = zip(y.split(outputs, 1), packed.split(bytes_), row.split(outputs), strict=True)
    result: Tensor | None = None
    for gradient, some, scales in parts:
        part = gradient @ numbers(some, scales, bits=bits, inputs=width, dtype=y.dtype)
        result = part if result is None else result.float().add_(part)
    assert result is not None
    if is_rotated:
        result = rotated(result)[:, :inputs]
    return result.to(y.dtype)
