"""Fewer bits for what stands still: the frozen linears of a model that only answers.

    quantize(model, "int8")      # or polyphi.load(folder, quant="int8")
    quantize(model, "int4", calibration=rows)

| kind | base linears of the decoder | head (the embedding, transposed) | encoders' linears |
|---|---|---|---|
| bf16 | as they are | as it is | bfloat16, in the order in which this CPU reads them |
| int8 | a scale per output, activations a scale per token | int8 | as above |
| int4 | groups of 32 inputs, each with a scale and a zero (rounding.py) | int4 | as above |
| int8-all | as int8 | int8 | int8, and so are projectors and adapters |
| int4-all | as int4 | int4 | likewise |

Norms, biases and convolutions keep their type always, adapters and projectors but for the last two: a batch still
mixes adapters freely. The head gets rows of its own and the lookup of embeddings stays exact: of a checkpoint that is
mapped from its file only the embeddings that are read take memory, so that memory falls all the same. A quantised
checkpoint (weights.py) has no other embeddings than the head's rows, and looks up these.

Scales of activations belong to a token: what its neighbours in the batch are changes nothing. In int8 all sums are of
integers, exact whatever their order.

A quantised model is for inference on the device it is on. It can't be trained or given other adapters, and is saved as
what it is (weights.py), as a whole one can be.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn

from polyphi import kernels
from polyphi.batch import Batch
from polyphi.kernels import linear as native
from polyphi.kernels.linear import GROUP
from polyphi.model import eightbit
from polyphi.model.calibration import calibrate
from polyphi.model.config import ModelConfig
from polyphi.model.conformer import Pointwise
from polyphi.model.lora import LoraLinear, LowRank
from polyphi.model.multimodal import PhiModel
from polyphi.model.rounding import four_bits
from polyphi.model.siglip import MLP

Pieces = Mapping[str, Tensor]
"""What a file holds of a quantised weight, by the ends of the tensors' names."""
STORED = ("int8", "int4", "int8-all", "int4-all")
"""What a checkpoint may be quantised to."""
KINDS = ("bf16", *STORED)
EMBEDDING = "decoder.embed_tokens.weight"
"""Quantised as the head, and kept as it is for the lookup."""
ROWS = 4096
"""Rows of a weight quantised at once, which bounds the memory beside it."""
SLOW = 20.0
"""A kernel that takes so many times as long as another one is no kernel. (They differ by up to 4 where all is well.)"""
UNPACK = 256
"""From this many tokens on int4 weights are unpacked for a plain product: the kernel's time grows with every token, and
unpacking takes as long as about 200 of them."""


@dataclass(frozen=True)
class Part:
    """A weight to quantise: its `name` and shape in the model, the `form` it gets, and what puts that in its place."""

    name: str
    shape: tuple[int, int]
    form: type["EightBit"] | type["FourBit"]
    put: Callable[[Any], None]


@torch.no_grad()
def quantize(model: PhiModel, kind: str, calibration: Sequence[Batch] = ()) -> PhiModel:
    """Quantise a model in place, one weight after the other; each is freed as its successor stands. In 4 bits the model
    stays nearer to what it was with `calibration`, a few dozen rows like those that it will answer (rounding.py).
    Raises ValueError for an unknown kind, for a model that is quantised already, and for rows where nothing is
    calibrated."""
    rounded = calibrated(model, kind, calibration) if calibration else {}
    for part in parts(model, kind):
        weight = model.get_parameter(part.name).flatten(1)
        if part.name in rounded:
            part.put(FourBit.stored(rounded.pop(part.name), part.shape, weight.device))
        else:
            part.put(part.form(weight))
    return prepare(model, kind)


@torch.no_grad()
def calibrated(model: PhiModel, kind: str, rows: Sequence[Batch]) -> dict[str, Pieces]:
    """What a file holds of the weights in 4 bits, rounded for what they see of `rows`, by the weights' names; the model
    stays whole. Raises ValueError for a kind without 4 bits, and for a model that is quantised already."""
    if not kind.startswith("int4"):
        raise ValueError(f"calibration is for int4; {kind} does without it")
    shapes = {part.name: part.shape for part in parts(model, kind) if part.form is FourBit}
    linears = {m: f"{n}.weight" for n, m in model.named_modules() if isinstance(m, LoraLinear)}
    found: dict[str, Pieces] = {}

    def round_(linear: LoraLinear, hessian: Tensor) -> None:
        name = linears[linear]
        if name in shapes:
            found[name] = FourBit.pieces(linear.weight, hessian)
            # for now, so that the layers behind it see what it will answer
            linear.kernel = FourBit.stored(found[name], shapes[name], linear.weight.device)

    try:
        seen = calibrate(model, rows, round_)
    finally:
        for linear in linears:
            linear.kernel = None
    if EMBEDDING in shapes:
        found[EMBEDDING] = FourBit.pieces(model.get_parameter(EMBEDDING), seen)
    return found


@torch.no_grad()
def prepare(model: PhiModel, kind: str) -> PhiModel:
    """The rest, where the weights of `parts` are done: bfloat16 linears of the encoders are laid out for this CPU, GELU
    included; elsewhere, and in other types, they stay."""
    model.quant = kind
    for path, module, name in _linears(model):
        child: Any = module.get_submodule(name)
        if ".projector." in path or not _packs():
            continue
        if child.weight.dtype != torch.bfloat16 or child.weight.device.type != "cpu":
            continue
        gelu = isinstance(module, MLP) and name == "fc1"
        setattr(module, name, Packed(child.weight.flatten(1), child.bias, gelu=gelu))
        if gelu:
            module.act = nn.Identity()
    if kind.endswith("-all") and kernels.missing() is None and _right(OneDnn, "cpu"):
        eightbit.fuse(model, _by_onednn)
    return model


def parts(model: PhiModel, kind: str) -> list[Part]:
    """What is to be quantised, the largest weight first, while memory is still empty. Raises ValueError for an unknown
    kind, and for a model that is quantised already."""
    if kind not in KINDS:
        raise ValueError(
            f"quant must be None (as stored) or one of {', '.join(KINDS)}; found {kind!r}"
        )
    if model.quant is not None:
        raise ValueError("this model is quantised already; load it again to quantise it otherwise")
    if kind == "bf16":
        return []
    decoder = model.decoder
    table = (decoder.config.vocab_size, decoder.config.hidden_size)
    found = [Part(EMBEDDING, table, _form(kind, table), partial(setattr, decoder, "head"))]
    for name, module in decoder.named_modules():
        if isinstance(module, LoraLinear):
            shape = _two(module.weight.shape)
            put = partial(_replace, module, "weight", "kernel")
            found.append(Part(f"decoder.{name}.weight", shape, _form(kind, shape), put))
        elif isinstance(module, LowRank) and kind.endswith("-all"):
            for factor, kernel in (("a", "down"), ("b", "up")):
                put = partial(_replace, module, factor, kernel)
                shape = _two(getattr(module, factor).shape)
                found.append(Part(f"decoder.{name}.{factor}", shape, EightBit, put))
    if kind.endswith("-all"):
        for path, module, name in _linears(model):
            shape = _two(model.get_parameter(f"{path}.weight").shape)
            put = partial(_replace_linear, module, name)
            found.append(Part(f"{path}.weight", shape, EightBit, put))
    return found


def _two(shape: torch.Size) -> tuple[int, int]:
    """Outputs and inputs, of a convolution of width 1 too."""
    return shape[0], shape[1]


def _form(kind: str, shape: tuple[int, int]) -> type["EightBit"] | type["FourBit"]:
    """The bits of a kind, or 8 where 4 don't fit a weight's shape."""
    return FourBit if kind.startswith("int4") and shape[1] % GROUP == 0 else EightBit


def _linears(model: PhiModel) -> list[tuple[str, nn.Module, str]]:
    """The linears of encoders and projectors that a forward reaches: path, the module around them, their name in it.
    (A list of themselves would keep those that are replaced.)"""
    unused = model.unused()
    return [
        (f"{path}.{name}", module, name)
        for path, module in model.named_modules()
        if not path.startswith("decoder")
        for name, child in module.named_children()
        if isinstance(child, nn.Linear | Pointwise) and f"{path}.{name}.weight" not in unused
    ]


def _replace(module: nn.Module, parameter: str, kernel: str, product: Any) -> None:
    setattr(module, kernel, product)
    module.register_parameter(parameter, None)


def _replace_linear(module: nn.Module, name: str, product: "EightBit") -> None:
    plain: Any = module.get_submodule(name)
    setattr(module, name, EightBitLinear(product, plain.bias))


def reader(model: PhiModel) -> Callable[[str], Tensor | Pieces]:
    """Tensors of a quantised model by their names in a whole one, for a checkpoint of it: pieces of what is quantised.
    Raises ValueError, when it is asked, for what no longer lies as a file holds it."""
    state, forms = model.state_dict(), {}
    for path, module in model.named_modules():
        for kernel, parameter in (("kernel", "weight"), ("down", "a"), ("up", "b")):
            forms[f"{path}.{parameter}"] = getattr(module, kernel, None)
    forms[EMBEDDING] = model.decoder.head

    def read(name: str) -> Tensor | Pieces:
        form = forms.get(name)
        if isinstance(form, Quantised):
            if form.table is None:
                raise ValueError(
                    f"{name} doesn't lie as a file holds it any more; quantise the whole model while saving it"
                )
            return dict(zip(form.layout(form.shape), (form.table, form.row), strict=True))
        module: Any = model.get_submodule(name.rpartition(".")[0])
        packed = isinstance(module, Packed) and name.endswith(".weight")
        return module.weight.to_dense() if packed else state[name]

    return read


def saved(config: ModelConfig, kind: str | None) -> int:
    """Bytes of a bfloat16 checkpoint's weights that quantising does away with; a table of embeddings that is mapped
    from its file counts as none."""
    if kind is None:
        return 0
    with torch.device("meta"):
        found = parts(PhiModel(config), kind)
    return sum(2 * math.prod(part.shape) - size(part) for part in found)


def size(part: Part) -> int:
    """Bytes of a weight's quantised form."""
    pieces = part.form.layout(part.shape).values()
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in pieces)


def in_memory(model: PhiModel) -> int:
    """Bytes of a model's tensors. A table of embeddings on a CPU that only looks up is left out: it is mapped from its
    file, of which the rows that are read take memory."""
    decoder = model.decoder
    tensors = {id(t): nbytes(t) for t in (*model.parameters(), *model.buffers(), *held(model))}
    if decoder.head is not None and decoder.device.type == "cpu":
        tensors.pop(id(decoder.embed_tokens.weight), None)
    return sum(tensors.values())


def held(model: nn.Module) -> Iterator[Tensor]:
    """The tensors of a model that are neither parameters nor buffers: what is quantised or laid out for the CPU."""
    for module in model.modules():
        if isinstance(module, Packed):
            yield module.weight
        for name in ("kernel", "head", "down", "up"):
            found = getattr(module, name, None)
            if isinstance(found, Quantised):
                yield from found.tensors()


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor, in oneDNN's own order too."""
    return torch.ops.mkldnn._nbytes(tensor) if tensor.is_mkldnn else tensor.nbytes


# ---------------------------------------------------------------------- few bits


class Quantised(ABC):
    """W x for W [out in] in few bits: what a file holds of it, and what multiplies that here."""

    bits: ClassVar[int]

    @classmethod
    def stored(cls, pieces: Pieces, shape: tuple[int, int], device: torch.device) -> Self:
        """From what a file holds, where that lies if our own kernels multiply it."""
        made = cls.__new__(cls)
        made._hold(pieces, shape, device)
        return made

    def _hold(self, pieces: Pieces, shape: tuple[int, int], device: torch.device) -> None:
        self.shape, self.row = shape, pieces["row"].to(device)
        packed = pieces[f"q{self.bits}"]
        ours = _native(device)
        self.table = packed if ours else None
        self.product: Product = (
            Native(packed, self.row, self.bits) if ours else self.other(packed, device)
        )

    @classmethod
    def layout(cls, shape: tuple[int, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Types and shapes of the `pieces` of a weight [out in]."""
        size = {4: native.size4, 8: native.size8}[cls.bits](*shape)
        return {f"q{cls.bits}": (torch.uint8, (size,)), "row": (torch.float32, shape[:1])}

    @abstractmethod
    def other(self, packed: Tensor, device: torch.device) -> "Product":
        """What multiplies it where our own kernels don't."""

    def __call__(self, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
        y = self.product(x.reshape(-1, self.shape[1]))
        return y.to(x.dtype).reshape(*x.shape[:-1], self.shape[0])

    def rows(self, ids: Int[Tensor, " T"]) -> Float[Tensor, "T I"]:
        """Rows of the weight, in float32. Where it isn't multiplied as a file holds it, whoever wants rows puts that
        into `table`."""
        assert self.table is not None, "what the file holds isn't at hand"
        whole = {4: native.rows4, 8: native.rows8}[self.bits](self.table, ids, self.shape[1])
        return whole * self.row[ids, None]

    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds in memory."""
        return self.product.tensors()


# ---------------------------------------------------------------------- int8


class EightBit(Quantised):
    """int8: a scale in float32 for each output, activations in int8 with a scale per token."""

    bits = 8

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        self._hold(self.pieces(weight), _two(weight.shape), weight.device)

    def other(self, packed: Tensor, device: torch.device) -> "Product":
        q = native.unpack8(packed, *self.shape).to(device)
        return PerToken(_kernel(device.type)(q, self.row))

    @staticmethod
    def pieces(weight: Float[Tensor, "O I"]) -> Pieces:
        """What a file holds of a weight: `q8`, as our kernels read it, and `row`, its scales."""
        row = torch.empty(len(weight))
        packed = []
        for part, scales in zip(weight.split(ROWS), row.split(ROWS), strict=True):
            scale = part.abs().amax(1).float().clamp(min=1e-12) / 127
            packed.append(native.pack8((part / scale[:, None]).round().to(torch.int8).cpu()))
            scales.copy_(scale)
        return {"q8": torch.cat(packed), "row": row}


class Product(Protocol):
    """Tokens by a weight, in their own type, and what it holds of the weight."""

    def __call__(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]: ...

    def tensors(self) -> tuple[Tensor, ...]: ...


def _native(device: torch.device) -> bool:
    """Whether our own kernels multiply there."""
    return device.type == "cpu" and kernels.missing() is None


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


class EightBitLinear(nn.Module):
    """A linear with bias, its weight in int8."""

    def __init__(self, kernel: EightBit, bias: Tensor) -> None:
        super().__init__()
        self.kernel = kernel
        self.bias = bias

    def forward(self, x: Float[Tensor, "*n I"]) -> Float[Tensor, "*n O"]:
        return self.kernel(x).add_(self.bias)


def _by_onednn(linear: nn.Module) -> "OneDnn":
    """The product of an encoder's linear or convolution of width 1, by oneDNN from now on: where hundreds of rows are
    rounded already it takes 10 to 25 % less time than our own kernels."""
    if isinstance(linear, EightBitLinear):
        kernel = linear.kernel
    else:
        assert isinstance(linear, nn.Conv2d)
        kernel = EightBit(linear.weight.flatten(1))
    assert isinstance(kernel.product, Native)
    product = OneDnn(native.unpack8(kernel.product.packed, *kernel.shape), kernel.row)
    kernel.product, kernel.table = PerToken(product), None
    return product


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
        # Activations as unsigned numbers with scale 1 and zero point 128: signed ones have no fast way on CPUs that
        # have VNNI alone.
        return self.unsigned(q.view(torch.uint8) ^ 128, dtype)

    def unsigned(self, unsigned: UInt8[Tensor, "T I"], dtype: torch.dtype) -> Float[Tensor, "T O"]:
        """Of activations to which 128 has been added."""
        w, s, z = self.weight, self.scale, self.zeros
        # No bias; the result is not quantised, nothing is fused behind it.
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


class FourBit(Quantised):
    """4 bits: row * s * (q - z / 16), with s and z a byte each for an output and GROUP inputs, and `row` in float32 for
    an output. `in` is a multiple of GROUP."""

    bits = 4

    def __init__(
        self, weight: Float[Tensor, "O I"], hessian: Float[Tensor, "I I"] | None = None
    ) -> None:
        self._hold(self.pieces(weight, hessian), _two(weight.shape), weight.device)

    def other(self, packed: Tensor, device: torch.device) -> "Product":
        four = native.unpack4(packed, *self.shape)
        return Int4Pack(native.Four(*(t.to(device) for t in four)), self.row)

    @staticmethod
    def pieces(weight: Float[Tensor, "O I"], hessian: Float[Tensor, "I I"] | None = None) -> Pieces:
        """What a file holds of a weight: `q4`, as our kernels read it, and `row`, a float of each output."""
        some = weight.split(ROWS) if hessian is None else (weight,)
        parts = [four_bits(part, hessian) for part in some]
        packed = [native.pack4(native.Four(*(t.cpu() for t in part.four))) for part in parts]
        return {"q4": torch.cat(packed), "row": torch.cat([part.row.cpu() for part in parts])}


class Int4Pack:
    """torch's products, of bfloat16: (q - 8) * scale + zero. Outputs are filled up to a multiple of 64."""

    def __init__(self, weight: native.Four, row: Float[Tensor, " O"]) -> None:
        self.outputs = len(row)
        missing = -self.outputs % 64
        row = F.pad(row, (0, missing))
        weight = native.Four(*(F.pad(t, (0, 0, 0, missing)) for t in weight))
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
        return self._padded(x.bfloat16())[:, : self.outputs]

    def _padded(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O64"]:
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
