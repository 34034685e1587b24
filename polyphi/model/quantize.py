"""Fewer bits for what stands still: the frozen linears of a model that only answers.

    quantize(model, "int8")      # or polyphi.load(folder, quant="int8")
    quantize(model, "int4", calibration=rows)

| kind | base linears of the decoder | head (the embedding, transposed) | encoders' linears |
|---|---|---|---|
| bf16 | as they are | as it is | bfloat16, in the order in which this CPU reads them |
| int8 | a scale per output, activations a scale per token | int8 | as above |
| int4 | groups of 32 inputs, each with a scale and a zero, well rounded (rounding.py) | int4 | as above |

Adapters, projectors, norms and the lookup of embeddings keep their type, so a batch still mixes adapters freely. The
head gets rows of its own and the lookup stays exact: of a checkpoint that is mapped from its file only the embeddings
that are read take memory, so that memory falls all the same.

Scales of activations belong to a token: what its neighbours in the batch are changes nothing. In int8 all sums are of
integers, exact whatever their order.

A quantised model is for inference on the device it is on. It can't be trained, saved or given other adapters.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from polyphi import kernels
from polyphi.batch import Batch
from polyphi.kernels import linear as native
from polyphi.kernels.linear import GROUP
from polyphi.model.calibration import calibrate
from polyphi.model.config import DecoderConfig
from polyphi.model.conformer import Pointwise
from polyphi.model.lora import LoraLinear
from polyphi.model.multimodal import PhiModel
from polyphi.model.rounding import four_bits
from polyphi.model.siglip import MLP

KINDS = ("bf16", "int8", "int4")
EMBEDDING = "decoder.embed_tokens.weight"
"""Quantised as the head, and kept as it is for the lookup."""
ROWS = 4096
"""Rows of a weight quantised at once, which bounds the memory beside it."""
SLOW = 20.0
"""A kernel that takes so many times as long as another one is no kernel. (They differ by up to 4 where all is well.)"""
UNPACK = 256
"""From this many tokens on int4 weights are unpacked for a plain product: the kernel's time grows with every token, and
unpacking takes as long as about 200 of them."""


@torch.no_grad()
def quantize(model: PhiModel, kind: str, calibration: Sequence[Batch] = ()) -> PhiModel:
    """Quantise a model in place, one weight after the other; each is freed as its successor stands. In int4 the model
    stays nearer to what it was with `calibration`, a few dozen rows like those that it will answer (rounding.py).
    Raises ValueError for an unknown kind, for a model that is quantised already, and for rows where nothing is
    calibrated."""
    pending = list(weights(model, kind))
    if calibration:
        if kind != "int4":
            raise ValueError(f"calibration is for int4; {kind} does without it")
        _put_head(model, kind, None, calibrate(model, calibration, partial(_put, kind)))
        pending = []
    for _, put in pending:
        put(None)
    return prepare(model, kind)


@torch.no_grad()
def prepare(model: PhiModel, kind: str) -> PhiModel:
    """The rest, where the decoder's weights are done: the encoders' bfloat16 linears are laid out for this CPU, GELU
    included; elsewhere, and in other types, they stay."""
    model.quant = kind
    for encoder in (model.vision and model.vision.encoder, model.audio and model.audio.encoder):
        if encoder is None or not _packs():
            continue
        for module in list(encoder.modules()):
            for name, child in list(module.named_children()):
                if not isinstance(child, nn.Linear | Pointwise):
                    continue
                if child.weight.dtype != torch.bfloat16 or child.weight.device.type != "cpu":
                    continue
                gelu = isinstance(module, MLP) and name == "fc1"
                setattr(module, name, Packed(child.weight.flatten(1), child.bias, gelu=gelu))
                if gelu:
                    module.act = nn.Identity()
    return model


def weights(model: PhiModel, kind: str) -> Iterator[tuple[str, Callable[[Tensor | None], None]]]:
    """The tensors to quantise by name, each with a function that takes its values (None: those that the model has),
    puts their quantised form into the model and frees what was there. Raises ValueError for an unknown kind, and for a
    model that is quantised already."""
    if kind not in KINDS:
        raise ValueError(
            f"quant must be None (as stored) or one of {', '.join(KINDS)}; found {kind!r}"
        )
    if model.quant is not None:
        raise ValueError("this model is quantised already; load it again to quantise it otherwise")
    if kind == "bf16":
        return
    for name, module in model.decoder.named_modules():
        if isinstance(module, LoraLinear):
            yield f"decoder.{name}.weight", partial(_put, kind, module, None)
    yield EMBEDDING, partial(_put_head, model, kind)


def _put(
    kind: str, linear: LoraLinear, hessian: Tensor | None, values: Tensor | None = None
) -> None:
    linear.kernel = _few_bits(linear.weight if values is None else values, kind, hessian)
    linear.register_parameter("weight", None)


def _put_head(
    model: PhiModel, kind: str, values: Tensor | None, hessian: Tensor | None = None
) -> None:
    held = model.decoder.embed_tokens.weight
    model.decoder.head = _few_bits(held if values is None else values, kind, hessian)


def _few_bits(weight: Tensor, kind: str, hessian: Tensor | None = None) -> "FourBit | EightBit":
    """A weight in the bits of its kind, or in 8 where 4 don't fit its shape."""
    fits = weight.shape[1] % GROUP == 0 and (_native(weight) or weight.shape[0] % 64 == 0)
    return FourBit(weight, hessian) if kind == "int4" and fits else EightBit(weight)


def saved(config: DecoderConfig, kind: str | None) -> int:
    """Bytes of a bfloat16 checkpoint's weights that quantising does away with, the head's own copy taken off."""
    if kind not in ("int8", "int4"):
        return 0
    d, inner = config.hidden_size, config.intermediate_size
    attention = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    base = config.num_hidden_layers * d * (attention + 3 * inner)
    left = 1.0 if kind == "int8" else 0.5 + 2 / GROUP
    return max(0, int(base * (2 - left) - config.vocab_size * d * left))


def held(model: nn.Module) -> Iterator[Tensor]:
    """The tensors of a model that are neither parameters nor buffers: what is quantised or laid out for the CPU."""
    for module in model.modules():
        if isinstance(module, Packed):
            yield module.weight
        for name in ("kernel", "head"):
            found = getattr(module, name, None)
            if isinstance(found, EightBit | FourBit):
                yield from found.product.tensors()


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor, in oneDNN's own order too."""
    return torch.ops.mkldnn._nbytes(tensor) if tensor.is_mkldnn else tensor.nbytes


# ---------------------------------------------------------------------- int8


class EightBit:
    """W x for W [out in] in int8: a scale in float32 for each output, activations in int8 with a scale per token."""

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        self.shape = weight.shape
        rows, scales = [], []
        for part in weight.split(ROWS):
            scale = part.abs().amax(1).float().clamp(min=1e-12) / 127
            rows.append((part / scale[:, None]).round().to(torch.int8))
            scales.append(scale)
        q, scale = torch.cat(rows), torch.cat(scales)
        self.product: Product = (
            Native(native.pack8(q), scale, 8)
            if _native(weight)
            else PerToken(_kernel(weight.device.type)(q, scale))
        )

    def __call__(self, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
        y = self.product(x.reshape(-1, self.shape[1]))
        return y.view(*x.shape[:-1], self.shape[0])


class Product(Protocol):
    """Tokens by a weight, in their own type, and what it holds of the weight."""

    def __call__(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]: ...

    def tensors(self) -> tuple[Tensor, ...]: ...


def _native(weight: Tensor) -> bool:
    """Whether our own kernels multiply it."""
    return weight.device.type == "cpu" and kernels.missing() is None


class Native:
    """Our own kernels: activations in 8 bits with a scale per token, sums of integers (of a group, in 4 bits)."""

    def __init__(
        self, packed: UInt8[Tensor, " bytes"], row: Float[Tensor, " O"], bits: int
    ) -> None:
        self.packed, self.row, self.bits = packed, row, bits

    def __call__(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        known = x if x.dtype in (torch.float32, torch.bfloat16) else x.float()
        return native.linear(known, self.packed, self.row, bits=self.bits).to(x.dtype)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.packed, self.row)


class PerToken:
    """A product of int8, behind activations that are rounded here. Where x is bfloat16 so are its scales, and results
    are rounded twice."""

    def __init__(self, product: "OneDnn | IntMm | Plain") -> None:
        self.product = product

    def __call__(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        q, scale = per_token(x)
        wide = x.dtype if x.dtype == torch.bfloat16 else torch.float32
        return self.product(q, wide).mul_(scale.to(wide)).to(x.dtype)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.product.weight, self.product.scale)


def per_token(x: Float[Tensor, "T I"]) -> tuple[Int8[Tensor, "T I"], Float[Tensor, "T 1"]]:
    """x as int8, and the scale of each row."""
    # The scale is rounded to the type of x first: the largest value becomes 127, whichever way that goes.
    scale = (x.abs().amax(1, keepdim=True).float() / 127).clamp_(min=1e-12).to(x.dtype)
    return (x / scale.float()).round_().to(torch.int8), scale


class OneDnn:
    """oneDNN's int8 product; the weight lies in the order that its kernel reads (AMX, VNNI)."""

    def __init__(self, weight: Int8[Tensor, "O I"], scale: Float[Tensor, " O"]) -> None:
        self.weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scale = scale
        self.zeros = torch.zeros(len(scale), dtype=torch.int32)

    def __call__(self, q: Int8[Tensor, "T I"], dtype: torch.dtype) -> Float[Tensor, "T O"]:
        w, s, z = self.weight, self.scale, self.zeros
        # Activations as unsigned numbers with scale 1 and zero point 128: signed ones have no fast way on CPUs that
        # have VNNI alone. No bias; the result is not quantised, nothing is fused behind it.
        unsigned = q.view(torch.uint8) ^ 128
        return torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, 128, w, s, z, None, 1.0, 0, dtype, "none", [], ""
        )


class IntMm:
    """torch's own int8 product, on CUDA too (which wants more than 16 rows)."""

    def __init__(self, weight: Int8[Tensor, "O I"], scale: Float[Tensor, " O"]) -> None:
        self.weight, self.scale = weight, scale

    def __call__(self, q: Int8[Tensor, "T I"], dtype: torch.dtype) -> Float[Tensor, "T O"]:
        missing = max(0, 17 - len(q)) if q.is_cuda else 0
        sums = torch._int_mm(F.pad(q, (0, 0, 0, missing)), self.weight.t())[: len(q)]
        return (sums * self.scale).to(dtype)


class Plain:
    """A product of float32, anywhere."""

    def __init__(self, weight: Int8[Tensor, "O I"], scale: Float[Tensor, " O"]) -> None:
        self.weight, self.scale = weight, scale

    def __call__(self, q: Int8[Tensor, "T I"], dtype: torch.dtype) -> Float[Tensor, "T O"]:
        return (F.linear(q.float(), self.weight.float()) * self.scale).to(dtype)


@cache
def _kernel(device: str) -> type[OneDnn | IntMm | Plain]:
    """The first of the three that is right here about the largest numbers, for some CPUs add pairs of products in 16
    bits and would cut them off; and that isn't slow, for on some a kernel has nothing but a reference."""
    right = [k for k in ((OneDnn, IntMm) if device == "cpu" else (IntMm,)) if _right(k, device)]
    seconds = {k: _seconds(k, device) for k in (*right, Plain)}
    return next(k for k in (*right, Plain) if seconds[k] <= SLOW * min(seconds.values()))


def _right(kernel: type[OneDnn | IntMm], device: str) -> bool:
    try:
        return all(_exact(kernel, rows, device) for rows in (1, 3, 32))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _seconds(kernel: type[OneDnn | IntMm | Plain], device: str) -> float:
    """The shortest of three products of a few rows."""
    weight = torch.ones(512, 512, dtype=torch.int8, device=device)
    product, q = kernel(weight, torch.ones(512, device=device)), weight[:32]
    took = []
    for _ in range(3):
        began = time.perf_counter()
        product(q, torch.float32)[0, 0].item()
        took.append(time.perf_counter() - began)
    return min(took)


def _exact(kernel: type[OneDnn | IntMm], rows: int, device: str) -> bool:
    q = torch.tensor([127, -127], dtype=torch.int8, device=device).repeat_interleave(32)
    q = q.repeat(rows, 1)
    weight = torch.cat([q[:1], -q[:1]]).repeat(32, 1)
    scale = torch.linspace(1, 2, 64, device=device)
    found = kernel(weight, scale)(q, torch.float32)
    wanted = (q.double() @ weight.double().t()) * scale.double()
    return bool(torch.allclose(found.double(), wanted, rtol=1e-6))


# ---------------------------------------------------------------------- int4


class FourBit:
    """W x for W [out in] in 4 bits: row * s * (q - z / 16), with s and z a byte each for an output and GROUP inputs,
    and `row` in float32 for an output. `in` is a multiple of GROUP."""

    def __init__(
        self, weight: Float[Tensor, "O I"], hessian: Float[Tensor, "I I"] | None = None
    ) -> None:
        self.shape = weight.shape
        some = weight.split(ROWS) if hessian is None else (weight,)
        parts = [four_bits(part, hessian) for part in some]
        row = torch.cat([part.row for part in parts])
        if _native(weight):
            packed = torch.cat([native.pack4(part.four) for part in parts])
            self.product: Product = Native(packed, row, 4)
        else:
            three = (torch.cat(each) for each in zip(*(part.four for part in parts), strict=True))
            self.product = Int4Pack(native.Four(*three), row)

    def __call__(self, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
        y = self.product(x.reshape(-1, self.shape[1]))
        return y.to(x.dtype).view(*x.shape[:-1], self.shape[0])


class Int4Pack:
    """torch's products, of bfloat16: (q - 8) * scale + zero. `out` is a multiple of 64."""

    def __init__(self, weight: native.Four, row: Float[Tensor, " O"]) -> None:
        q, self.shape = weight.q, weight.q.shape
        steps = weight.s.float() * row[:, None]
        scale, zero = steps.bfloat16(), (steps * (8 - weight.z.float() / 16)).bfloat16()
        # [inputs / GROUP, outputs, 2]
        self.pairs = torch.stack([scale, zero], 2).transpose(0, 1).contiguous()
        if q.is_cuda:
            pack = torch.ops.aten._convert_weight_to_int4pack
            self.packed = pack(q[:, ::2] << 4 | q[:, 1::2], 8)
        else:
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), 1)
        self.rows = UNPACK if not q.is_cuda and torch.equal(self._nibbles(), q.t()) else None

    def __call__(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        x = x.bfloat16()
        if x.is_cuda:
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
        """What the CPU's kernel holds: of 64 outputs at an input, the first 32 lie in the low halves of 32 bytes, the
        others in the high ones."""
        outputs, inputs = self.shape
        bytes_ = self.packed.view(outputs // 64, inputs, 32)
        blocks = torch.cat([bytes_ & 15, bytes_ >> 4], 2)
        return blocks.transpose(0, 1).reshape(inputs, outputs)


# ---------------------------------------------------------------------- bfloat16


@cache
def _packs() -> bool:
    """Whether this CPU multiplies bfloat16 itself, by oneDNN."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Packed(nn.Module):
    """A linear with bias whose bfloat16 weight lies as oneDNN reads it; with `gelu` (the tanh form) behind it, in the
    same pass."""

    def __init__(self, weight: Float[Tensor, "O I"], bias: Tensor, *, gelu: bool = False) -> None:
        super().__init__()
        # the number of rows that the order is chosen for: a crop's patches
        self.weight: Any = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1024)
        self.bias = bias
        self.after: tuple[str, list[float], str] = (
            ("gelu", [], "tanh") if gelu else ("none", [], "")
        )

    def forward(self, x: Float[Tensor, "*n I"]) -> Float[Tensor, "*n O"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.after)
