"""Linear layers with weights of 4 and 8 bits (linear.cpp).

>>> packed = pack4(Four(q, s, z))                            # or pack8(q)
>>> linear(x, packed, row, bits=4)                           # [T I] by [O I] -> [T O]
>>> linear(x, packed, row, bits=4, adapter=Adapter(a, a_row, b, b_row, 2.0))
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from polyphi.kernels.native import count, function, number, pointer, pool, real

GROUP = 32
"""Inputs that share a scale and a zero in 4 bits."""
PANEL = 32
"""Outputs side by side; a weight with fewer is filled up."""

MANY = 128
"""Tokens from which on weights of 4 bits are rounded to 8 for their product, with a scale per output, where that is
faster (AVX-512 VNNI, AVX-VNNI), and on NEON i8mm, whose speed hasn't been measured. More are hardly ever decoded
together: those of a prompt are."""


class Four(NamedTuple):
    """A weight in 4 bits: row * s * (q - z / 16), with q from 0 to 15 and a `row` per output that isn't part of it."""

    q: UInt8[Tensor, "O I"]
    s: UInt8[Tensor, "O G"]
    z: UInt8[Tensor, "O G"]


class Adapter(NamedTuple):
    """What adds scale * B A x to a product: both weights of 8 bits, packed, with their float32 rows."""

    a: UInt8[Tensor, " bytes"]
    a_row: Float[Tensor, " R"]
    b: UInt8[Tensor, " bytes"]
    b_row: Float[Tensor, " O"]
    scale: float


@cache
def _linear() -> Callable[..., None]:
    sizes = [count] * 3
    adapter = (*[pointer] * 4, count, real)
    return function(
        "polyphi_linear",
        *[number] * 2,
        *[pointer] * 5,
        *[number] * 2,
        *sizes,
        *adapter,
        pointer,
        number,
    )


def size4(outputs: int, inputs: int) -> int:
    """Bytes of a packed weight of 4 bits: 4.5 for each."""
    return -(-outputs // PANEL) * PANEL * (inputs // GROUP) * (GROUP // 2 + 2)


def size8(outputs: int, inputs: int) -> int:
    """Bytes of one of 8 bits, filled up to whole panels and groups."""
    return -(-outputs // PANEL) * PANEL * -(-inputs // GROUP) * GROUP


def pack4(weight: Four) -> UInt8[Tensor, " bytes"]:
    """As the kernels read it (linear.cpp has the order). Raises ValueError for shapes that don't fit."""
    outputs, inputs = weight.q.shape
    groups = inputs // GROUP
    if inputs % GROUP or not weight.s.shape == weight.z.shape == (outputs, groups):
        raise ValueError(
            f"expected a multiple of {GROUP} inputs and two bytes for each {GROUP} of them, found "
            f"{tuple(weight.q.shape)}, {tuple(weight.s.shape)} and {tuple(weight.z.shape)}"
        )
    q, s, z = (_filled_up(t, 0) for t in weight)
    low, high = q.view(-1, groups, 2, GROUP // 2).unbind(2)
    # 32 bits are the pairs of four inputs: panel, output, group, part -> panel, group, part, output
    pairs = (low | high << 4).view(torch.int32).view(-1, PANEL, groups, 4).permute(0, 2, 3, 1)
    nibbles = pairs.contiguous().view(torch.uint8).view(-1, groups, PANEL * GROUP // 2)
    scales = [t.view(-1, PANEL, groups).transpose(1, 2) for t in (s, z)]
    return torch.cat([nibbles, *scales], 2).flatten()


def unpack4(packed: UInt8[Tensor, " bytes"], outputs: int, inputs: int) -> Four:
    """What `pack4` was given. Raises ValueError if the bytes are not those of such a weight."""
    _check(packed, size4(outputs, inputs))
    return _some4(packed, torch.arange(outputs), inputs)


def rows4(
    packed: UInt8[Tensor, " bytes"], ids: Int[Tensor, " n"], inputs: int
) -> Float[Tensor, "n I"]:
    """Some rows of a packed weight, without their factor `row`."""
    q, s, z = _some4(packed, ids, inputs)
    steps = q.view(len(q), -1, GROUP) - z[..., None] / 16
    return (s[..., None] * steps).flatten(1)


def _some4(packed: Tensor, ids: Tensor, inputs: int) -> Four:
    groups, nibbles = inputs // GROUP, PANEL * GROUP // 2
    panels = packed.view(-1, groups, nibbles + 2 * PANEL)
    panel, output = ids // PANEL, ids % PANEL
    # indices that stand apart: what they choose comes first, then groups and parts
    pairs = panels[..., :nibbles].unflatten(2, (4, PANEL, 4))[panel, :, :, output].flatten(2)
    q = torch.stack([pairs & 15, pairs >> 4], 2).view(len(ids), inputs)
    s, z = (panels[panel, :, nibbles + output + more] for more in (0, PANEL))
    return Four(q, s, z)


def pack8(q: Int8[Tensor, "O I"]) -> UInt8[Tensor, " bytes"]:
    """A weight row * q, with q from -127 to 127, as the kernels read it."""
    u = _filled_up(F.pad(q.view(torch.uint8) ^ 128, (0, -q.shape[1] % GROUP), value=128), 128)
    fours = u.contiguous().view(torch.int32).view(-1, PANEL, u.shape[1] // 4)
    return fours.transpose(1, 2).contiguous().view(torch.uint8).flatten()


def unpack8(packed: UInt8[Tensor, " bytes"], outputs: int, inputs: int) -> Int8[Tensor, "O I"]:
    """What `pack8` was given. Raises ValueError if the bytes are not those of such a weight."""
    _check(packed, size8(outputs, inputs))
    return rows8(packed, torch.arange(outputs), inputs)


def rows8(
    packed: UInt8[Tensor, " bytes"], ids: Int[Tensor, " n"], inputs: int
) -> Int8[Tensor, "n I"]:
    """Some rows of a packed weight, without their factor `row`."""
    fours = packed.view(-1, -(-inputs // GROUP) * GROUP // 4, PANEL, 4)
    rows = fours[ids // PANEL, :, ids % PANEL].flatten(1)[:, :inputs]
    return (rows ^ 128).view(torch.int8)


def _filled_up(values: UInt8[Tensor, "O n"], value: int) -> UInt8[Tensor, "O_up n"]:
    """Outputs to whole panels."""
    return F.pad(values, (0, 0, 0, -len(values) % PANEL), value=value)


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
    adapter: Adapter | None = None,
    onto: Float[Tensor, "T O"] | None = None,
    gated: bool = False,
    isa: int = -1,
) -> Float[Tensor, "T O_"]:
    """x, in float32 or bfloat16, by a packed weight of 4 or 8 bits with its float32 `row`, with an adapter's product
    added and rounded once; in the type of x. Each token's activations are rounded to 8 bits of its largest, so that it
    is the same whatever stands beside it (in 4 bits: among fewer than MANY, or more); a token that has an infinite one,
    or one that is no number, becomes no number.

    The sum with `onto`, or up * silu(gate) where `gated`: of gate and up side by side, half of O each and a multiple of
    PANEL; both as if the product had been rounded before. `isa` is for tests: a place in `native.PATHS`. Raises
    ValueError if the bytes are not those of such weights, and for sums and halves that don't fit."""
    x = x.contiguous()
    (tokens, inputs), outputs = x.shape, len(row)
    _check(packed, (size4 if bits == 4 else size8)(outputs, inputs))
    low: tuple[int | float | None, ...] = (*[None] * 4, 0, 0.0)
    if adapter is not None:
        a, a_row, b, b_row, scale = adapter
        rank = len(a_row)
        _check(a, size8(rank, inputs))
        _check(b, size8(outputs, rank))
        low = (*(t.data_ptr() for t in (a, a_row, b, b_row)), rank, scale)
    if gated and outputs % (2 * PANEL):
        raise ValueError(f"what is gated is a multiple of {2 * PANEL} outputs, found {outputs}")
    y = torch.empty(tokens, outputs // 2 if gated else outputs, dtype=x.dtype)
    if onto is not None:
        if gated or onto.dtype != y.dtype or onto.shape != y.shape:
            raise ValueError(
                f"expected [{tokens} {outputs}] of {x.dtype} to add to, and no gate, found {tuple(onto.shape)} of "
                f"{onto.dtype}{', gated' if gated else ''}"
            )
        onto = onto.contiguous()
    _linear()(
        isa,
        bits,
        x.data_ptr(),
        packed.data_ptr(),
        row.data_ptr(),
        None if onto is None else onto.data_ptr(),
        y.data_ptr(),
        int(x.dtype == torch.bfloat16),
        int(gated),
        tokens,
        outputs,
        inputs,
        *low,
        pool(),
        torch.get_num_threads(),
    )
    return y


@cache
def _linear_rows() -> Callable[..., None]:
    return function("polyphi_linear_rows", number, *[pointer] * 5, *[count] * 3, pointer, number)


def linear_rows(
    q: UInt8[Tensor, "T I"],
    scale: Float[Tensor, " T"],
    packed: UInt8[Tensor, " bytes"],
    row: Float[Tensor, " O"],
    isa: int = -1,
) -> Float[Tensor, "T O"]:
    """Activations (q - 128) * scale, rounded to 8 bits by whoever made them, by a packed weight of 8 bits with its
    float32 `row`; in bfloat16. `isa` is for tests: an index in `native.PATHS`. Raises ValueError if the bytes are not
    those of such a weight."""
    (tokens, inputs), outputs = q.shape, len(row)
    _check(packed, size8(outputs, inputs))
    q, scale = q.contiguous(), scale.contiguous()
    y = torch.empty(tokens, outputs, dtype=torch.bfloat16)
    tensors = (q, scale, packed, row, y)
    sizes = (tokens, outputs, inputs)
    _linear_rows()(isa, *(t.data_ptr() for t in tensors), *sizes, pool(), torch.get_num_threads())
    return y
