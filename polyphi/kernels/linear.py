"""Linear layers with weights of 4, 6 and 8 bits (linear.cpp).

>>> packed = pack4(Int4Weight(q, s, z))                            # or pack(IntWeight(q, s), bits=8)
>>> linear(x, packed, row, bits=4, rotated=True)             # [T I] by [O I] -> [T O]
>>> linear(x, packed, row, bits=4, rotated=True, adapter=Adapter(a, a_row, b, b_row, 2.0))

Blocks of 64 inputs of a weight may be rotated by a Hadamard matrix (rotation.py), which spreads an activation that is a
thousand times the others over its block; the kernel then rotates the activations too, so that the product is the same.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from polyphi.kernels.native import count, function, number, pointer, pool, real
from polyphi.kernels.rotation import BLOCK, rotated_back

GROUP = 32
"""Inputs that share a scale and a zero in 4 bits."""
NIBBLES = 32 * GROUP // 2
"""Bytes of the levels of a group of a panel in 4 bits."""
PANEL = 32
"""Outputs of a panel of packed weights; weights are padded to whole panels, and their inputs to whole blocks."""

UNPACK_MIN_TOKENS = 128
"""Tokens from which on weights of 4 bits are unpacked to int8 for a product, with a scale per output and block, where
that is faster (AVX-512 VNNI, AVX-VNNI), and on NEON i8mm, whose speed hasn't been measured. Decode steps rarely have as
many tokens; prompts have."""
LARGEST = {6: 31, 8: 127}
"""The largest level of a symmetric weight, by its bits."""


class Int4Weight(NamedTuple):
    """A weight in 4 bits: row * s * (q - z / 16), with q from 0 to 15 and a `row` per output that isn't part of it."""

    q: UInt8[Tensor, "O I"]
    s: UInt8[Tensor, "O G"]
    z: UInt8[Tensor, "O G"]


class IntWeight(NamedTuple):
    """A weight in 6 or 8 bits: row * s * q, with |q| at most `LARGEST`, and s from 1 to 255 per output and BLOCK
    inputs; `row` isn't part of it."""

    q: Int8[Tensor, "O I"]
    s: UInt8[Tensor, "O B"]


class Adapter(NamedTuple):
    """An adapter, which adds scale * B A x to a product: both weights packed in 8 bits, their inputs rotated, with
    their float32 rows."""

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
        *[number] * 3,
        *[pointer] * 5,
        *[number] * 2,
        *sizes,
        *adapter,
        pointer,
        number,
    )


def blocks(inputs: int) -> int:
    """Blocks of BLOCK inputs, the last one padded."""
    return -(-inputs // BLOCK)


def size(bits: int, outputs: int, inputs: int) -> int:
    """Bytes of a packed weight, padded to whole panels and blocks: 4.5, 6.125 or 8.125 bits per weight."""
    return -(-outputs // PANEL) * _panel_bytes(bits, inputs)


def _panel_bytes(bits: int, inputs: int) -> int:
    if bits == 4:
        return 2 * blocks(inputs) * (NIBBLES + 2 * PANEL)
    return _level_bytes(bits, inputs) + _scale_bytes(inputs)


def _level_bytes(bits: int, inputs: int) -> int:
    return blocks(inputs) * PANEL * BLOCK * bits // 8


def _scale_bytes(inputs: int) -> int:
    return -(-blocks(inputs) * PANEL // 64) * 64


def pack4(weight: Int4Weight) -> UInt8[Tensor, " bytes"]:
    """Pack a weight in the layout of the kernels (packed.h). Raises ValueError for shapes that don't fit."""
    outputs, inputs = weight.q.shape
    if inputs % GROUP or not weight.s.shape == weight.z.shape == (outputs, inputs // GROUP):
        raise ValueError(
            f"expected a multiple of {GROUP} inputs and two bytes for each {GROUP} of them, found "
            f"{tuple(weight.q.shape)}, {tuple(weight.s.shape)} and {tuple(weight.z.shape)}"
        )
    groups = 2 * blocks(inputs)
    nibbles = _nibbles(_padded(weight.q, groups * GROUP)).view(-1, groups, NIBBLES)
    scales = [_padded(t, groups).view(-1, PANEL, groups).transpose(1, 2) for t in weight[1:]]
    return torch.cat([nibbles, *scales], 2).flatten()


def pack(weight: IntWeight, bits: int) -> UInt8[Tensor, " bytes"]:
    """Pack a weight in 6 or 8 bits in the layout of the kernels (packed.h). Raises ValueError for shapes that don't
    fit."""
    outputs, inputs = weight.q.shape
    if weight.s.shape != (outputs, blocks(inputs)):
        raise ValueError(
            f"expected a scale for each {BLOCK} inputs, found {tuple(weight.q.shape)} and {tuple(weight.s.shape)}"
        )
    zero = LARGEST[bits] + 1
    missing = (0, blocks(inputs) * BLOCK - inputs, 0, -outputs % PANEL)
    u = F.pad((weight.q.to(torch.int16) + zero).to(torch.uint8), missing, value=zero)
    panels = len(u) // PANEL
    if bits == 8:
        fours = u.view(torch.int32).view(panels, PANEL, -1).transpose(1, 2).contiguous()
        levels = fours.view(torch.uint8).view(panels, -1)
    else:
        nibbles = _nibbles(u & 15).view(panels, -1, 2 * NIBBLES)
        # panel, output, group, half, part, input: two bits of each part in a byte
        parts = (u >> 4).view(panels, PANEL, -1, 2, 4, 4) << _shifts(u)
        twos = parts.sum(4, dtype=torch.uint8).permute(0, 2, 3, 1, 4).reshape(panels, -1, NIBBLES)
        levels = torch.cat([nibbles, twos], 2).flatten(1)
    s = _padded(weight.s, blocks(inputs)).view(panels, PANEL, -1).transpose(1, 2).flatten(1)
    return torch.cat([levels, F.pad(s, (0, -s.shape[1] % 64))], 1).flatten()


def _nibbles(q: UInt8[Tensor, "O_up I_up"]) -> UInt8[Tensor, "panels groups 4 PANEL 4"]:
    """Levels below 16 in pairs: in part j the low half has the inputs 4 j to 4 j + 3 of a group, the high half those 16
    further."""
    low, high = q.view(len(q) // PANEL, PANEL, -1, 2, 4, 4).unbind(3)
    return (low | high << 4).permute(0, 2, 3, 1, 4).contiguous()


def _shifts(like: Tensor) -> UInt8[Tensor, "4 1"]:
    """The places of each part's high bits in a byte of 6-bit weights."""
    return torch.arange(0, 8, 2, dtype=torch.uint8, device=like.device)[:, None]


def unpack4(packed: UInt8[Tensor, " bytes"], outputs: int, inputs: int) -> Int4Weight:
    """The inverse of `pack4`. Raises ValueError if the bytes are not those of such a weight."""
    check(packed, size(4, outputs, inputs))
    return _rows4(packed, torch.arange(outputs, device=packed.device), inputs)


def _rows4(packed: Tensor, ids: Tensor, inputs: int) -> Int4Weight:
    panels = packed.view(-1, 2 * blocks(inputs), NIBBLES + 2 * PANEL)
    panel, output = ids // PANEL, ids % PANEL
    # The dimension of separated indices comes first, then groups, parts and inputs.
    pairs = panels[..., :NIBBLES].unflatten(2, (4, PANEL, 4))[panel, :, :, output]
    q = torch.stack([pairs & 15, pairs >> 4], 2).flatten(1)
    s, z = (panels[panel, :, NIBBLES + output + more] for more in (0, PANEL))
    return Int4Weight(q[:, :inputs], s[:, : inputs // GROUP], z[:, : inputs // GROUP])


def unpack(packed: UInt8[Tensor, " bytes"], bits: int, outputs: int, inputs: int) -> IntWeight:
    """The inverse of `pack`. Raises ValueError if the bytes are not those of such a weight."""
    check(packed, size(bits, outputs, inputs))
    return _rows(packed, torch.arange(outputs, device=packed.device), bits, inputs)


def _rows(packed: Tensor, ids: Tensor, bits: int, inputs: int) -> IntWeight:
    panels = packed.view(-1, _panel_bytes(bits, inputs))
    panel, output = ids // PANEL, ids % PANEL
    levels, scales = panels.split([_level_bytes(bits, inputs), _scale_bytes(inputs)], 1)
    if bits == 8:
        q = (levels.unflatten(1, (-1, PANEL, 4))[panel, :, output] ^ 128).view(torch.int8)
    else:
        parts = levels.unflatten(1, (-1, 3 * NIBBLES))
        pairs = parts[..., : 2 * NIBBLES].unflatten(2, (2, 4, PANEL, 4))[panel, :, :, :, output]
        twos = parts[..., 2 * NIBBLES :].unflatten(2, (2, 2, 1, PANEL, 4))[
            panel, :, :, :, :, output
        ]
        low = torch.stack([pairs & 15, pairs >> 4], 3)
        q = (low | (twos >> _shifts(twos) & 3) << 4).view(torch.int8) - 32
    s = scales[:, : blocks(inputs) * PANEL].unflatten(1, (-1, PANEL))[panel, :, output]
    return IntWeight(q.flatten(1)[:, :inputs].contiguous(), s)  # torch's kernels need it


def rows(
    packed: UInt8[Tensor, " bytes"],
    row: Float[Tensor, " O"],
    ids: Int[Tensor, " n"],
    inputs: int,
    *,
    bits: int,
    rotated: bool,
) -> Float[Tensor, "n I"]:
    """Rows `ids` of a packed weight as float32, on any device."""
    width = blocks(inputs) * BLOCK
    if bits == 4:
        q, s, z = _rows4(packed, ids, width)
        steps = q.unflatten(1, (-1, GROUP)) - z[..., None] / 16
    else:
        levels, s = _rows(packed, ids, bits, width)
        steps = levels.unflatten(1, (-1, BLOCK)).float()
    values = steps.mul_((s * row[ids, None])[..., None]).flatten(1)
    return (rotated_back(values) if rotated else values)[:, :inputs]


def numbers(
    packed: UInt8[Tensor, " bytes"],
    row: Float[Tensor, " O"],
    inputs: int,
    dtype: torch.dtype,
    *,
    bits: int,
    rotated: bool,
) -> Float[Tensor, "O I"]:
    """A packed weight as numbers, on any device."""
    ids = torch.arange(len(row), device=packed.device)
    return rows(packed, row, ids, inputs, bits=bits, rotated=rotated).to(dtype)


def _padded(values: UInt8[Tensor, "O n"], width: int) -> UInt8[Tensor, "O_up width"]:
    """Pad the outputs to whole panels, and the columns to `width`, with zeros."""
    return F.pad(values, (0, width - values.shape[1], 0, -len(values) % PANEL))


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
    rotated: bool = True,
    adapter: Adapter | None = None,
    onto: Float[Tensor, "T O"] | None = None,
    gated: bool = False,
    isa: int = -1,
) -> Float[Tensor, "T O_"]:
    """The linear layer of x, in float32 or bfloat16, with a weight packed in 4, 6 or 8 bits and its float32 `row`, and
    an adapter's product added and rounded once; in the dtype of x. `rotated`: whether the weight's inputs are.
    Activations are rounded to int8 with a scale per token and block, so a token's result doesn't depend on its
    neighbours (in 4 bits: if both batches have fewer than UNPACK_MIN_TOKENS tokens, or both have more); a token with an
    infinite activation or NaN becomes NaN.

    `onto` is added to the result; with `gated` it is up * silu(gate) of the outputs [gate, up], whose halves are
    multiples of PANEL; both as if the product had been rounded before. `isa` is for tests: an index in `native.PATHS`.
    Raises ValueError for packed bytes of another size, and for sums and halves that don't fit."""
    x = x.contiguous()
    (tokens, inputs), outputs = x.shape, len(row)
    check(packed, size(bits, outputs, inputs))
    low: tuple[int | float | None, ...] = (*[None] * 4, 0, 0.0)
    if adapter is not None:
        a, a_row, b, b_row, scale = adapter
        rank = len(a_row)
        check(a, size(8, rank, inputs))
        check(b, size(8, outputs, rank))
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
        int(rotated),
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
    """The linear layer of quantized activations (q - 128) * scale, with a weight packed in 8 bits, which isn't
    rotated, and its float32 `row`; in bfloat16. `isa` is for tests: an index in `native.PATHS`. Raises ValueError for
    packed bytes of another size."""
    (tokens, inputs), outputs = q.shape, len(row)
    check(packed, size(8, outputs, inputs))
    q, scale = q.contiguous(), scale.contiguous()
    y = torch.empty(tokens, outputs, dtype=torch.bfloat16)
    tensors = (q, scale, packed, row, y)
    sizes = (tokens, outputs, inputs)
    _linear_rows()(isa, *(t.data_ptr() for t in tensors), *sizes, pool(), torch.get_num_threads())
    return y
