"""Linear layers with weights of 4 and 8 bits (linear.cpp).

>>> packed = pack4(Four(q, s, z))                            # or pack8(q)
>>> linear(x, packed, row, bits=4)                           # [T I] by [O I] -> [T O]
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from polyphi.kernels.native import count, function, number, pointer, pool

GROUP = 32
"""Inputs that share a scale and a zero in 4 bits."""
PANEL = 32
"""Outputs side by side; a weight with fewer is filled up."""


class Four(NamedTuple):
    """A weight in 4 bits: row * s * (q - z / 16), with q from 0 to 15 and a `row` per output that isn't part of it."""

    q: UInt8[Tensor, "O I"]
    s: UInt8[Tensor, "O G"]
    z: UInt8[Tensor, "O G"]


@cache
def _named(name: str, *arguments: type) -> Callable[..., None]:
    return function(f"polyphi_{name}", *arguments)


def size4(outputs: int, inputs: int) -> int:
    """Bytes of a packed weight of 4 bits: 4.5 for each."""
    return -(-outputs // PANEL) * PANEL * (inputs // GROUP) * (GROUP // 2 + 2)


def size8(outputs: int, inputs: int) -> int:
    """Bytes of one of 8 bits, filled up to whole panels and groups."""
    return -(-outputs // PANEL) * PANEL * -(-inputs // GROUP) * GROUP


def pack4(weight: Four) -> UInt8[Tensor, " bytes"]:
    """As the kernels read it. Raises ValueError for shapes that don't fit."""
    outputs, inputs = weight.q.shape
    pairs = (outputs, inputs // GROUP)
    if inputs % GROUP or weight.s.shape != pairs or weight.z.shape != pairs:
        raise ValueError(
            f"expected a multiple of {GROUP} inputs and two bytes for each {GROUP} of them, found "
            f"{tuple(weight.q.shape)}, {tuple(weight.s.shape)} and {tuple(weight.z.shape)}"
        )
    packed = torch.empty(size4(outputs, inputs), dtype=torch.uint8)
    held = [t.contiguous() for t in weight]
    _named("pack4", *[pointer] * 3, count, count, pointer)(
        *(t.data_ptr() for t in held), outputs, inputs, packed.data_ptr()
    )
    return packed


def unpack4(packed: UInt8[Tensor, " bytes"], outputs: int, inputs: int) -> Four:
    """What `pack4` was given. Raises ValueError if the bytes are not those of such a weight."""
    _check(packed, size4(outputs, inputs))
    q = torch.empty(outputs, inputs, dtype=torch.uint8)
    s, z = torch.empty(2, outputs, inputs // GROUP, dtype=torch.uint8)
    _named("unpack4", pointer, count, count, *[pointer] * 3)(
        packed.data_ptr(), outputs, inputs, *(t.data_ptr() for t in (q, s, z))
    )
    return Four(q, s, z)


def pack8(q: Int8[Tensor, "O I"]) -> UInt8[Tensor, " bytes"]:
    """A weight row * q, with q from -127 to 127, as the kernels read it."""
    packed = torch.empty(size8(*q.shape), dtype=torch.uint8)
    q = q.contiguous()
    _named("pack8", pointer, count, count, pointer)(q.data_ptr(), *q.shape, packed.data_ptr())
    return packed


def unpack8(packed: UInt8[Tensor, " bytes"], outputs: int, inputs: int) -> Int8[Tensor, "O I"]:
    """What `pack8` was given. Raises ValueError if the bytes are not those of such a weight."""
    _check(packed, size8(outputs, inputs))
    q = torch.empty(outputs, inputs, dtype=torch.int8)
    _named("unpack8", pointer, count, count, pointer)(
        packed.data_ptr(), outputs, inputs, q.data_ptr()
    )
    return q


def _check(packed: Tensor, size: int) -> None:
    if packed.numel() != size or packed.dtype != torch.uint8:
        raise ValueError(
            f"expected {size} bytes of a packed weight, found {packed.numel()} of {packed.dtype}"
        )


def linear(
    x: Float[Tensor, "T I"],
    packed: UInt8[Tensor, " bytes"],
    row: Float[Tensor, " O"],
    *,
    bits: int,
    bias: Float[Tensor, " O"] | None = None,
    isa: int = -1,
) -> Float[Tensor, "T O"]:
    """x, in float32 or bfloat16, by a packed weight of 4 or 8 bits with its float32 `row`, and a float32 bias behind
    it; in the type of x. Each token's activations are rounded to 8 bits of its largest, so that it is the same whatever
    stands beside it; a token that has an infinite one, or one that is no number, becomes no number. `isa` is for tests:
    a place in `native.PATHS`. Raises ValueError if the bytes are not those of such a weight."""
    x = x.contiguous()
    (tokens, inputs), outputs = x.shape, len(row)
    _check(packed, (size4 if bits == 4 else size8)(outputs, inputs))
    y = torch.empty(tokens, outputs, dtype=x.dtype)
    given: tuple[Any, ...] = (isa, bits, x.data_ptr(), packed.data_ptr(), row.data_ptr())
    _named("linear", number, number, *[pointer] * 5, number, *[count] * 3, pointer, number)(
        *given,
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        int(x.dtype == torch.bfloat16),
        tokens,
        outputs,
        inputs,
        pool(),
        torch.get_num_threads(),
    )
    return y
