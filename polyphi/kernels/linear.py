"""Linear layers with weights of 4 and 8 bits (linear.cpp).

>>> packed = pack4(Int4Weight(q, s, z))                            # or pack8(q)
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
"""Outputs of a panel of packed weights; weights are padded to whole panels."""

UNPACK_MIN_TOKENS = 128
"""Tokens from which on weights of 4 bits are unpacked to int8 for a product, with a scale per output, where that is
faster (AVX-512 VNNI, AVX-VNNI), and on NEON i8mm, whose speed hasn't been measured. Decode steps rarely have as many
tokens; prompts have."""


class Int4Weight(NamedTuple):
    """A weight in 4 bits: row * s * (q - z / 16), with q from 0 to 15 and a `row` per output that isn't part of it."""

    q: UInt8[Tensor, "O I"]
    s: UInt8[Tensor, "O G"]
    z: UInt8[Tensor, "O G"]


class Adapter(NamedTuple):
    """An adapter, which adds scale * B A x to a product: both weights packed in 8 bits, with their float32 rows."""

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
    """Bytes of a packed weight in 4 bits: 4.5 bits per weight."""
    return -(-outputs // PANEL) * PANEL * (inputs // GROUP) * (GROUP // 2 + 2)


def size8(outputs: int, inputs: int) -> int:
    """Bytes of a packed weight in 8 bits, padded to whole panels and groups."""
    return -(-outputs // PANEL) * PANEL * -(-inputs // GROUP) * GROUP


def pack4(weight: Int4Weight) -> UInt8[Tensor, " bytes"]:
    """Pack a weight in the layout of the kernels (linear.cpp). Raises ValueError for shapes that don't fit."""
    outputs, inputs = weight.q.shape
    groups = inputs // GROUP
    if inputs % GROUP or not weight.s.shape == weight.z.shape == (outputs, groups):
        raise ValueError(
            f"expected a multiple of {GROUP} inputs and two bytes for each {GROUP} of them, found "
            f"{tuple(weight.q.shape)}, {tuple(weight.s.shape)} and {tuple(weight.z.shape)}"
        )
    q, s, z = (_padded(t, 0) for t in weight)
    low, high = q.view(-1, groups, 2, GROUP // 2).unbind(2)
    # 32 bits are the pairs of four inputs: panel, output, group, part -> panel, group, part, output
    pairs = (low | high << 4).view(torch.int32).view(-1, PANEL, groups, 4).permute(0, 2, 3, 1)
    nibbles = pairs.contiguous().view(torch.uint8).view(-1, groups, PANEL * GROUP // 2)
    scales = [t.view(-1, PANEL, groups).transpose(1, 2) for t in (s, z)]
    return torch.cat([nibbles, *scales], 2).flatten()


def unpack4(packed: UInt8[Tensor, " bytes"], outputs: int, inputs: int) -> Int4Weight:
    """The inverse of `pack4`. Raises ValueError if the bytes are not those of such a weight."""
    check(packed, size4(outputs, inputs))
    return _rows4(packed, torch.arange(outputs), inputs)


def rows4(
    packed: UInt8[Tensor, " bytes"], ids: Int[Tensor, " n"], inputs: int
) -> Float[Tensor, "n I"]:
    """Rows `ids` of a packed weight, without their factor `row`."""
    q, s, z = _rows4(packed, ids, inputs)
    steps = q.view(len(q), -1, GROUP) - z[..., None] / 16
    return (s[..., None] * steps).flatten(1)


def _rows4(packed: Tensor, ids: Tensor, inputs: int) -> Int4Weight:
    groups, nibbles = inputs // GROUP, PANEL * GROUP // 2
    panels = packed.view(-1, groups, nibbles + 2 * PANEL)
    panel, output = ids // PANEL, ids % PANEL
    # The dimension of separated indices comes first, then groups and parts.
    pairs = panels[..., :nibbles].unflatten(2, (4, PANEL, 4))[panel, :, :, output].flatten(2)
    q = torch.stack([pairs & 15, pairs >> 4], 2).view(len(ids), inputs)
    s, z = (panels[panel, :, nibbles + output + more] for more in (0, PANEL))
    return Int4Weight(q, s, z)


def pack8(q: Int8[Tensor, "O I"]) -> UInt8[Tensor, " bytes"]:
    """Pack a weight row * q, with q from -127 to 127, in the layout of the kernels."""
    u = _padded(F.pad(q.view(torch.uint8) ^ 128, (0, -q.shape[1] % GROUP), value=128), 128)
    fours = u.contiguous().view(torch.int32).view(-1, PANEL, u.shape[1] // 4)
    return fours.transpose(1, 2).contiguous().view(torch.uint8).flatten()


def unpack8(packed: UInt8[Tensor, " bytes"], outputs: int, inputs: int) -> Int8[Tensor, "O I"]:
    """The inverse of `pack8`. Raises ValueError if the bytes are not those of such a weight."""
    check(packed, size8(outputs, inputs))
    return rows8(packed, torch.arange(outputs), inputs)


def rows8(
    packed: UInt8[Tensor, " bytes"], ids: Int[Tensor, " n"], inputs: int
) -> Int8[Tensor, "n I"]:
    """Rows `ids` of a packed weight, without their factor `row`."""
    fours = packed.view(-1, -(-inputs // GROUP) * GROUP // 4, PANEL, 4)
    rows = fours[ids // PANEL, :, ids % PANEL].flatten(1)[:, :inputs]
    return (rows ^ 128).view(torch.int8)


def dequantize4(
    packed: UInt8[Tensor, " bytes"], row: Float[Tensor, " O"], inputs: int, dtype: torch.dtype
) -> Float[Tensor, "O I"]:
    """A weight packed in 4 bits as numbers, on any device. Passes over memory take the time, so there are few of them,
    and no intermediate result has more than 16 bits."""
    groups, nibbles = inputs // GROUP, PANEL * GROUP // 2
    panels = packed.view(-1, groups, nibbles + 2 * PANEL)
    # panel, group, part, output, pair -> panel, output, group, part, pair
    pairs = panels[..., :nibbles].unflatten(2, (4, PANEL, 4)).permute(0, 3, 1, 2, 4)
    q = torch.stack([pairs & 15, pairs >> 4], 3).view(-1, PANEL, groups, GROUP)
    s, z = (
        panels[..., nibbles + n : nibbles + n + PANEL].transpose(1, 2)[..., None]
        for n in (0, PANEL)
    )
    steps = q - z.half() / 16  # multiples of 1/16 below 16: exact
    scale = s * F.pad(row, (0, -len(row) % PANEL)).view(-1, PANEL, 1, 1)
    result = torch.empty(steps.shape, dtype=dtype, device=packed.device)
    return torch.mul(steps, scale, out=result).view(-1, inputs)[: len(row)]


def numbers8(
    packed: UInt8[Tensor, " bytes"], row: Float[Tensor, " O"], inputs: int, dtype: torch.dtype
) -> Float[Tensor, "O I"]:
    """A weight packed in 8 bits as numbers, on any device."""
    fours = packed.view(-1, -(-inputs // GROUP) * GROUP // 4, PANEL, 4)
    q = (fours.transpose(1, 2) ^ 128).view(torch.int8).flatten(2).flatten(0, 1)[: len(row), :inputs]
    result = torch.empty(q.shape, dtype=dtype, device=packed.device)
    return torch.mul(q, row[:, None], out=result)


def _padded(values: UInt8[Tensor, "O n"], value: int) -> UInt8[Tensor, "O_up n"]:
    """Pad the outputs to whole panels."""
    return F.pad(values, (0, 0, 0, -len(values) % PANEL), value=value)


def check(packed: Tensor, size: int) -> None:
    """Raise ValueError if a packed weight has another number of bytes."""
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
    """The linear layer of x, in float32 or bfloat16, with a weight packed in 4 or 8 bits and its float32 `row`, and an
    adapter's product added and rounded once; in the dtype of x. Activations are rounded to int8 with a scale per token,
    so a token's result doesn't depend on its neighbours (in 4 bits: if both batches have fewer than UNPACK_MIN_TOKENS
    tokens, or both have more); a token with an infinite activation or NaN becomes NaN.

    `onto` is added to the result; with `gated` it is up * silu(gate) of the outputs [gate, up], whose halves are
    multiples of PANEL; both as if the product had been rounded before. `isa` is for tests: an index in `native.PATHS`.
    Raises ValueError for packed bytes of another size, and for sums and halves that don't fit."""
    x = x.contiguous()
    (tokens, inputs), outputs = x.shape, len(row)
    check(packed, (size4 if bits == 4 else size8)(outputs, inputs))
    low: tuple[int | float | None, ...] = (*[None] * 4, 0, 0.0)
    if adapter is not None:
        a, a_row, b, b_row, scale = adapter
        rank = len(a_row)
        check(a, size8(rank, inputs))
        check(b, size8(outputs, rank))
        low = (*(t.data_ptr() for t in (a, a_row, b, b_row)), rank, scale)
    if gated and outputs % (2 * PANEL):
        raise ValueError(f"a gated product has a multiple of {2 * PANEL} outputs, found {outputs}")
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
    """The linear layer of quantized activations (q - 128) * scale, with a weight packed in 8 bits and its float32
    `row`; in bfloat16. `isa` is for tests: an index in `native.PATHS`. Raises ValueError for packed bytes of another
    size."""
    (tokens, inputs), outputs = q.shape, len(row)
    check(packed, size8(outputs, inputs))
    q, scale = q.contiguous(), scale.contiguous()
    y = torch.empty(tokens, outputs, dtype=torch.bfloat16)
    tensors = (q, scale, packed, row, y)
    sizes = (tokens, outputs, inputs)
    _linear_rows()(isa, *(t.data_ptr() for t in tensors), *sizes, pool(), torch.get_num_threads())
    return y
