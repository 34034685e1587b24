"""Weights in 8, 6 and 4 bits: their stored form, and the product that runs on this machine.

    Quantized(weight, EIGHT)(x)             # [T I] by [O I] -> [T O]
    Quantized.stored(pieces, shape, device) # from a file, used in place

Our kernels run on a CPU (polyphi/kernels/linear.cpp); without them, and on other devices, torch's kernels run on the
same bytes. `quantize.py` chooses the weights of a model to quantize.
"""

import time
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn

import polyphi.kernels as kernels
from polyphi.kernels import linear as native
from polyphi.kernels import unpack
from polyphi.kernels.encoder import QuantizedRows, Raw
from polyphi.kernels.linear import GROUP, LARGEST, PANEL, Adapter, IntWeight
from polyphi.kernels.rotation import BLOCK, rotated, rotated_by_product
from polyphi.kernels.rounding import round_blocks
from polyphi.model.attention import working_dtype
from polyphi.quantization.rounding import four_bits

Pieces = Mapping[str, Tensor]
"""The stored tensors of a quantized weight, by the suffixes of their names."""
ROWS = 4096
"""Rows of a weight that are quantized at once, to bound temporary memory."""
SLOW = 20.0
"""A kernel this many times slower than another one is not used. (Usable ones differ by a factor of up to 4.)"""
UNPACK = 256
"""Tokens from which on int4 weights are unpacked for a plain product: the kernel's time grows with every token, and
unpacking takes as long as about 200 of them."""
NARROW = (torch.float32, torch.bfloat16)
"""Dtypes of activations that our kernels read and write."""


class Form(NamedTuple):
    """How a weight is stored: its bits, and whether its inputs are rotated (kernels/rotation.py)."""

    bits: int
    rotated: bool = True

    @property
    def piece(self) -> str:
        """The suffix of the stored levels' name."""
        return f"{'r' if self.rotated else 'q'}{self.bits}"

    def layout(self, shape: tuple[int, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The dtypes and shapes of the pieces of a weight with this shape."""
        size = native.size(self.bits, *shape)
        return {self.piece: (torch.uint8, (size,)), "row": (torch.float32, (shape[0],))}


FOUR, SIX, EIGHT = Form(4), Form(6), Form(8)
LEVELS = Form(4, rotated=False)
"""The levels of a GGUF file's Q4_0, which a rotation would change."""
PER_OUTPUT = Form(8, rotated=False)
"""One scale per output, for linears whose activations are in int8 before (`QuantizedRows`)."""
FORMS = {form.piece: form for form in (FOUR, SIX, EIGHT, LEVELS, PER_OUTPUT)}


def shape_2d(shape: torch.Size) -> tuple[int, int]:
    """(outputs, inputs) of a linear or a convolution of width 1."""
    return shape[0], shape[1]


def pieces(
    weight: Float[Tensor, "O I"], form: Form, hessian: Float[Tensor, "I I"] | None = None
) -> Pieces:
    """The stored form of a weight: its levels, in the layout of our kernels, and `row`, a float per output. `hessian`,
    the sum of x x' over inputs x, reduces the error in 4 bits."""
    if form.rotated and hessian is not None:
        hessian = rotated(rotated(hessian).t())
    chunks = weight.split(ROWS) if hessian is None else (weight,)
    parts = [_rounded(chunk, form, hessian) for chunk in chunks]
    levels, rows = zip(*parts, strict=True)
    return {form.piece: torch.cat(levels), "row": torch.cat(rows)}


def _rounded(
    weight: Float[Tensor, "O I"], form: Form, hessian: Float[Tensor, "I I"] | None
) -> tuple[UInt8[Tensor, " bytes"], Float[Tensor, " O"]]:
    """The packed levels of some outputs, and their `row`."""
    if form.bits == 4:
        four, row = four_bits(rotated(weight) if form.rotated else weight, hessian)
        return native.pack4(native.Int4Weight(*(t.cpu() for t in four))), row.cpu()
    result, row = round_blocks(weight, form.bits) if form.rotated else _by_outputs(weight)
    return native.pack(IntWeight(*(t.cpu() for t in result)), form.bits), row.cpu()


def _by_outputs(weight: Float[Tensor, "O I"]) -> tuple[IntWeight, Float[Tensor, " O"]]:
    """A weight in 8 bits with one scale per output."""
    row = weight.abs().amax(1).float().clamp(min=1e-12) / LARGEST[8]
    q = (weight / row[:, None]).round().to(torch.int8)
    return IntWeight(q, q.new_ones(len(q), native.blocks(q.shape[1]), dtype=torch.uint8)), row


class Quantized:
    """W x for a quantized W [out in]: its stored form, and the product that runs here. In 4 bits `in` is a multiple of
    GROUP."""

    def __init__(self, weight: Float[Tensor, "O I"], form: Form) -> None:
        self._load(pieces(weight, form), shape_2d(weight.shape), weight.device)

    @classmethod
    def stored(
        cls,
        pieces: Pieces,
        shape: tuple[int, int],
        device: torch.device,
        *,
        gradients: bool = False,
    ) -> Self:
        """The weight of stored pieces, which our kernels use in place. `gradients`: for training on this weight
        (`transposed`)."""
        weight = cls.__new__(cls)
        weight._load(pieces, shape, device, gradients)
        return weight

    def _load(
        self,
        pieces: Pieces,
        shape: tuple[int, int],
        device: torch.device,
        gradients: bool = False,
    ) -> None:
        self.shape, self.row = shape, pieces["row"].to(device)
        (self.form,) = (FORMS[name] for name in pieces if name in FORMS)
        packed = pieces[self.form.piece]
        ours = _native(device)
        self.table = packed if ours else packed.to(device) if gradients else None
        self.product: Product
        if ours:
            self.product = Native(packed, self.row, self.form, shape[1])
        else:
            self.product = Unpacked(self) if gradients else self._fallback(packed, device)

    def _fallback(self, packed: Tensor, device: torch.device) -> "Product":
        """The product by torch's kernels. Of weights in 6 and 8 bits and their activations each row gets one scale."""
        bits, outputs, width = self.form.bits, self.shape[0], self.stored_inputs
        if bits == 4:
            four = native.unpack4(packed, outputs, width)
            weight = native.Int4Weight(*(t.to(device) for t in four))
            return Int4Pack(weight, self.row, self.form.rotated)
        if not self.form.rotated:
            q, _ = native.unpack(packed, bits, outputs, width)
            return PerToken(_kernel(device.type)(q.to(device), self.row))
        levels, rows = [], []
        for part, row in zip(
            packed.split(native.size(bits, ROWS, width)), self.row.split(ROWS), strict=True
        ):
            q, s = native.unpack(part, bits, len(row), width)
            values = q.unflatten(1, (-1, BLOCK)) * (s * row.to(q.device)[:, None])[..., None]
            rounded, scale = _by_outputs(values.flatten(1))
            levels.append(rounded.q.to(device))
            rows.append(scale.to(device))
        return PerToken(_kernel(device.type)(torch.cat(levels), torch.cat(rows)), is_rotated=True)

    @property
    def stored_inputs(self) -> int:
        """The weight's inputs, of a rotated one padded to whole blocks."""
        return native.blocks(self.shape[1]) * BLOCK if self.form.rotated else self.shape[1]

    def __call__(self, x: Float[Tensor, "*n I"]) -> Float[Tensor, "*n O"]:
        x = x.to(working_dtype(x))
        flat = x.reshape(-1, self.shape[1])
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _Differentiable.apply(flat, self)
        else:
            y = self.product(flat)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.shape[0])

    def input_grad(self, y: Float[Tensor, "T O"]) -> Float[Tensor, "T I"]:
        """The product of y with the weight, not with its transpose: the gradient of x for a gradient y of W x. Without
        our kernels the weight must have been loaded with `gradients`."""
        assert isinstance(self.product, Native | Unpacked), "loaded without gradients"
        return self.product.input_grad(y)

    def fused(
        self,
        x: Float[Tensor, "T I"],
        pair: tuple["Quantized", "Quantized", float] | None,
        onto: Float[Tensor, "T O"] | None,
        gated: bool,
    ) -> Float[Tensor, "T O_"] | None:
        """The output of `LoraLinear` by one kernel, with an adapter's two products and their factor. None if our
        kernels don't run for all of it, or the halves of a gated output aren't multiples of a panel."""
        base, adapter = self.product, None
        if not isinstance(base, Native) or x.dtype not in NARROW:
            return None
        if gated and self.shape[0] % (2 * PANEL):
            return None
        if pair is not None:
            down, up = pair[0].product, pair[1].product
            if not (isinstance(down, Native) and isinstance(up, Native)):
                return None
            adapter = Adapter(down.packed, down.row, up.packed, up.row, pair[2])
        bits, is_rotated = self.form
        return native.linear(
            x,
            base.packed,
            base.row,
            bits=bits,
            rotated=is_rotated,
            adapter=adapter,
            onto=onto,
            gated=gated,
        )

    def rows(self, ids: Int[Tensor, " T"]) -> Float[Tensor, "T I"]:
        """Rows of the weight, dequantized to float32. Without our kernels the caller must set `table` to the stored
        bytes first."""
        assert self.table is not None, "the stored bytes are not in memory"
        bits, is_rotated = self.form
        return native.rows(self.table, self.row, ids, self.shape[1], bits=bits, rotated=is_rotated)

    def tensors(self) -> tuple[Tensor, ...]:
        """The weight's tensors in memory."""
        return self.product.tensors()

    def in_pieces(self) -> Pieces | None:
        """The weight's stored form; None if the stored bytes aren't in memory."""
        if self.table is None:
            return None
        return {self.form.piece: self.table, "row": self.row}


class Product(Protocol):
    """A product of tokens and a weight, in the tokens' dtype."""

    def __call__(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]: ...

    def tensors(self) -> tuple[Tensor, ...]:
        """The product's tensors in memory."""
        ...


def _native(device: torch.device) -> bool:
    """Whether our kernels run on a device."""
    return device.type == "cpu" and kernels.missing() is None


class Native:
    """The product by our kernels: int8 activations with a scale per token and block, integer sums of each block (of
    each group in 4 bits)."""

    def __init__(
        self, packed: UInt8[Tensor, " bytes"], row: Float[Tensor, " O"], form: Form, inputs: int
    ) -> None:
        self.packed, self.row, self.form, self.inputs = packed, row, form, inputs

    def __call__(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        supported = x if x.dtype in NARROW else x.float()
        bits, is_rotated = self.form
        y = native.linear(supported, self.packed, self.row, bits=bits, rotated=is_rotated)
        return y.to(x.dtype)

    def input_grad(self, y: Float[Tensor, "T O"]) -> Float[Tensor, "T I"]:
        """The product with the transposed weight."""
        supported = y if y.dtype in NARROW else y.float()
        bits, is_rotated = self.form
        x = unpack.transposed(
            supported, self.packed, self.row, bits=bits, is_rotated=is_rotated, inputs=self.inputs
        )
        return x.to(y.dtype)

    def rows(self, rows: QuantizedRows) -> Raw:
        """The product of int8 activations, in bfloat16; for weights with one scale per output."""
        assert self.form == PER_OUTPUT
        return Raw(native.linear_rows(rows.q, rows.scale, self.packed, self.row))

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.packed, self.row)


class Unpacked:
    """A product with some rows of the weight at a time as numbers, on any device: for training, which needs the stored
    bytes for gradients too."""

    def __init__(self, weight: Quantized) -> None:
        self.weight = weight

    def __call__(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        values = rotated_by_product(x) if self.weight.form.rotated else x
        return torch.cat([F.linear(values, rows) for _, rows in self._rows(x.dtype)], 1)

    def input_grad(self, y: Float[Tensor, "T O"]) -> Float[Tensor, "T I"]:
        """The product with the transposed weight, summed in float32."""
        x = y.new_zeros(len(y), self.weight.stored_inputs, dtype=torch.float32)
        for first, rows in self._rows(y.dtype):
            x += y[:, first : first + len(rows)] @ rows
        values = rotated_by_product(x)[:, : self.weight.shape[1]] if self.weight.form.rotated else x
        return values.to(y.dtype)

    def _rows(self, dtype: torch.dtype) -> Iterator[tuple[int, Float[Tensor, "o I_up"]]]:
        """Yield the weight as stored, in groups of rows, each with the number of its first row. Nothing here waits for
        a GPU."""
        weight, bits, inputs = self.weight, self.weight.form.bits, self.weight.stored_inputs
        assert weight.table is not None
        size = native.size(bits, ROWS, inputs)
        parts = zip(weight.table.split(size), weight.row.split(ROWS), strict=True)
        for number, (packed, row) in enumerate(parts):
            values = native.numbers(packed, row, inputs, dtype, bits=bits, rotated=False)
            yield number * ROWS, values

    def tensors(self) -> tuple[Tensor, ...]:
        assert self.weight.table is not None
        return (self.weight.table, self.weight.row)


class _Differentiable(torch.autograd.Function):
    """W x for a frozen W: only x has a gradient, and the rounding of activations has a straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Quantized) -> Tensor:
        ctx.weight = weight
        return weight.product(x)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor, None]:
        return ctx.weight.input_grad(y), None


class PerToken:
    """An int8 product with activations rounded per token. For bfloat16 x the scales are bfloat16 too, and results are
    rounded twice."""

    def __init__(self, product: "OneDnn | IntMm | Plain", is_rotated: bool = False) -> None:
        self.product, self.is_rotated = product, is_rotated

    def __call__(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        q, scale = per_token(rotated_by_product(x) if self.is_rotated else x)
        wide = x.dtype if x.dtype == torch.bfloat16 else torch.float32
        return self.product(q, wide).mul_(scale.to(wide)).to(x.dtype)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.product.weight, self.product.scale)


class EightBitLinear(nn.Module):
    """A linear with bias, its weight in int8."""

    def __init__(self, kernel: Quantized, bias: Tensor) -> None:
        super().__init__()
        self.kernel = kernel
        self.bias = bias

    def forward(self, x: Float[Tensor, "*n I"]) -> Float[Tensor, "*n O"]:
        return self.kernel(x).add_(self.bias)


def per_token(x: Float[Tensor, "T I"]) -> tuple[Int8[Tensor, "T I"], Float[Tensor, "T 1"]]:
    """x as int8, and the scale of each row."""
    # The scale is rounded to the dtype of x first, so that the largest value becomes 127.
    scale = (x.abs().amax(1, keepdim=True).float() / 127).clamp_(min=1e-12).to(x.dtype)
    return (x / scale.float()).round_().to(torch.int8), scale


class OneDnn:
    """oneDNN's int8 product, with the weight in the layout of its kernel (AMX, VNNI)."""

    def __init__(self, weight: Int8[Tensor, "O I"], scale: Float[Tensor, " O"]) -> None:
        self.weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scale = scale
        self.zeros = torch.zeros(len(scale), dtype=torch.int32)

    def __call__(self, q: Int8[Tensor, "T I"], dtype: torch.dtype) -> Float[Tensor, "T O"]:
        # Activations as uint8 with scale 1 and zero point 128: signed ones are slow on CPUs with VNNI but without AMX.
        return self._unsigned(q.view(torch.uint8) ^ 128, dtype)

    def rows(self, rows: QuantizedRows) -> Raw:
        """The product of int8 activations, in bfloat16, before their scales are applied."""
        return Raw(self._unsigned(rows.q, torch.bfloat16), rows.scale)

    def _unsigned(self, unsigned: UInt8[Tensor, "T I"], dtype: torch.dtype) -> Float[Tensor, "T O"]:
        """The product of activations to which 128 was added."""
        w, s, z = self.weight, self.scale, self.zeros
        # No bias; the result is not quantized, and no operation is fused.
        return torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, 128, w, s, z, None, 1.0, 0, dtype, "none", [], ""
        )


class IntMm:
    """torch's int8 product, also on CUDA (which requires more than 16 rows)."""

    def __init__(self, weight: Int8[Tensor, "O I"], scale: Float[Tensor, " O"]) -> None:
        self.weight, self.scale = weight, scale

    def __call__(self, q: Int8[Tensor, "T I"], dtype: torch.dtype) -> Float[Tensor, "T O"]:
        missing = max(0, 17 - len(q)) if q.is_cuda else 0
        sums = torch._int_mm(F.pad(q, (0, 0, 0, missing)), self.weight.t())[: len(q)]
        return (sums * self.scale).to(dtype)


class Plain:
    """A float32 product, on any device."""

    def __init__(self, weight: Int8[Tensor, "O I"], scale: Float[Tensor, " O"]) -> None:
        self.weight, self.scale = weight, scale

    def __call__(self, q: Int8[Tensor, "T I"], dtype: torch.dtype) -> Float[Tensor, "T O"]:
        return (F.linear(q.float(), self.weight.float()) * self.scale).to(dtype)


@cache
def _kernel(device: str) -> type[OneDnn | IntMm | Plain]:
    """The first of the three that is exact for the largest numbers (some CPUs add pairs of products in 16 bits, which
    saturate) and not slow (on some CPUs a kernel has only a reference implementation)."""
    exact = [k for k in ((OneDnn, IntMm) if device == "cpu" else (IntMm,)) if is_right(k, device)]
    seconds = {k: _seconds(k, device) for k in (*exact, Plain)}
    return next(k for k in (*exact, Plain) if seconds[k] <= SLOW * min(seconds.values()))


def is_right(kernel: type[OneDnn | IntMm], device: str) -> bool:
    """Whether a kernel is available, and exact for the largest numbers."""
    try:
        return all(_exact(kernel, rows, device) for rows in (1, 3, 32))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _seconds(kernel: type[OneDnn | IntMm | Plain], device: str) -> float:
    """The shortest time of twelve products of a few rows: on a busy machine most of them are interrupted."""
    weight = torch.ones(512, 512, dtype=torch.int8, device=device)
    product, q = kernel(weight, torch.ones(512, device=device)), weight[:32]
    times = []
    for _ in range(12):
        began = time.perf_counter()
        product(q, torch.float32)[0, 0].item()
        times.append(time.perf_counter() - began)
    return min(times)


def _exact(kernel: type[OneDnn | IntMm], rows: int, device: str) -> bool:
    q = torch.tensor([127, -127], dtype=torch.int8, device=device).repeat_interleave(32)
    q = q.repeat(rows, 1)
    weight = torch.cat([q[:1], -q[:1]]).repeat(32, 1)
    scale = torch.linspace(1, 2, 64, device=device)
    result = kernel(weight, scale)(q, torch.float32)
    expected = (q.double() @ weight.double().t()) * scale.double()
    return bool(torch.allclose(result.double(), expected, rtol=1e-6))


# ---------------------------------------------------------------------- int4


class Int4Pack:
    """torch's int4 product in bfloat16: (q - 8) * scale + zero. Outputs are padded to a multiple of 64."""

    def __init__(
        self, weight: native.Int4Weight, row: Float[Tensor, " O"], is_rotated: bool
    ) -> None:
        self.outputs, self.is_rotated = len(row), is_rotated
        missing = -self.outputs % 64
        row = F.pad(row, (0, missing))
        weight = native.Int4Weight(*(F.pad(t, (0, 0, 0, missing)) for t in weight))
        q, self.shape = weight.q, weight.q.shape
        steps = weight.s.float() * row[:, None]
        scale, zero = steps.bfloat16(), (steps * (8 - weight.z.float() / 16)).bfloat16()
        # [inputs / GROUP, outputs, 2]
        self.pairs = torch.stack([scale, zero], 2).transpose(0, 1).contiguous()
        if q.device.type == "cpu":
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), 1)
            self.rows = UNPACK if torch.equal(self._nibbles(), q.t()) else None
        else:
            # The kernel takes 8, 4 or 2 tiles of 16 inputs at once, the most that divide the inputs.
            tiles = next(count for count in (8, 4, 2) if q.shape[1] % (16 * count) == 0)
            pack = torch.ops.aten._convert_weight_to_int4pack
            self.packed, self.rows = pack(q[:, ::2] << 4 | q[:, 1::2], tiles), None

    def __call__(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        values = rotated_by_product(x) if self.is_rotated else x
        return self._padded(values.bfloat16())[:, : self.outputs]

    def _padded(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O64"]:
        if x.device.type != "cpu":
            return torch.ops.aten._weight_int4pack_mm(x, self.packed, GROUP, self.pairs)
        if self.rows is None or len(x) < self.rows:
            return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, GROUP, self.pairs)
        return x @ self.unpacked()

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.packed, self.pairs)

    def unpacked(self) -> Float[Tensor, "I O"]:
        """The weight, transposed, in bfloat16."""
        outputs, inputs = self.shape
        q = (self._nibbles().view(inputs // GROUP, GROUP, outputs).to(torch.int8) - 8).bfloat16()
        scale, zero = self.pairs.unbind(2)
        return torch.addcmul(zero[:, None], q, scale[:, None]).view(inputs, outputs)

    def _nibbles(self) -> UInt8[Tensor, "I O"]:
        """The levels from the CPU kernel's layout: of 64 outputs at an input, the first 32 are in the low halves of 32
        bytes, the others in the high halves."""
        outputs, inputs = self.shape
        bytes_ = self.packed.view(outputs // 64, inputs, 32)
        blocks = torch.cat([bytes_ & 15, bytes_ >> 4], 2)
        return blocks.transpose(0, 1).reshape(inputs, outputs)
