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
integers, exact whatever their order. In int4, 128 tokens and more that pass together are multiplied by weights rounded
to 8 bits (kernels/linear.cpp).

A quantised model is for inference on the device it is on. It can't be trained or given other adapters, and is saved as
what it is (weights.py), as a whole one can be.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyphi import kernels
from polyphi.batch import Batch
from polyphi.kernels import linear as native
from polyphi.kernels.linear import GROUP
from polyphi.model.config import ModelConfig
from polyphi.model.conformer import Pointwise
from polyphi.model.lora import LoraLinear, LowRank
from polyphi.model.multimodal import PhiModel
from polyphi.model.siglip import MLP
from polyphi.quantization import eightbit
from polyphi.quantization.calibration import calibrate
from polyphi.quantization.fewbits import (
    EightBit,
    EightBitLinear,
    FourBit,
    Native,
    OneDnn,
    PerToken,
    Pieces,
    Quantised,
    is_right,
    two,
)

STORED = ("int8", "int4", "int8-all", "int4-all")
"""What a checkpoint may be quantised to."""
KINDS = ("bf16", *STORED)
EMBEDDING = "decoder.embed_tokens.weight"
"""Quantised as the head, and kept as it is for the lookup."""


@dataclass(frozen=True)
class Part:
    """A weight to quantise: its `name` and shape in the model, the `form` it gets, and what puts that in its place."""

    name: str
    shape: tuple[int, int]
    form: type[EightBit] | type[FourBit]
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
    if kind.endswith("-all") and kernels.missing() is None:
        eightbit.fuse(model, _by_onednn if is_right(OneDnn, "cpu") else _by_ours)
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
            shape = two(module.weight.shape)
            put = partial(_replace, module, "weight", "kernel")
            found.append(Part(f"decoder.{name}.weight", shape, _form(kind, shape), put))
        elif isinstance(module, LowRank) and kind.endswith("-all"):
            for factor, kernel in (("a", "down"), ("b", "up")):
                put = partial(_replace, module, factor, kernel)
                shape = two(getattr(module, factor).shape)
                found.append(Part(f"decoder.{name}.{factor}", shape, EightBit, put))
    if kind.endswith("-all"):
        for path, module, name in _linears(model):
            shape = two(model.get_parameter(f"{path}.weight").shape)
            put = partial(_replace_linear, module, name)
            found.append(Part(f"{path}.weight", shape, EightBit, put))
    return found


def _form(kind: str, shape: tuple[int, int]) -> type[EightBit] | type[FourBit]:
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


def _replace_linear(module: nn.Module, name: str, product: EightBit) -> None:
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


def _eight_bits(linear: nn.Module) -> EightBit:
    """The int8 weight of an encoder's linear, or of a convolution of width 1, which is quantised here."""
    if isinstance(linear, EightBitLinear):
        return linear.kernel
    assert isinstance(linear, nn.Conv2d)
    return EightBit(linear.weight.flatten(1))


def _by_ours(linear: nn.Module) -> Native:
    """Its product by our own kernels: on a CPU without dot products of bytes, where oneDNN's int8 sums saturate."""
    product = _eight_bits(linear).product
    assert isinstance(product, Native)
    return product


def _by_onednn(linear: nn.Module) -> OneDnn:
    """Its product by oneDNN from now on: where hundreds of rows are rounded already it takes 10 to 25 % less time than
    our own kernels."""
    kernel = _eight_bits(linear)
    assert isinstance(kernel.product, Native)
    product = OneDnn(native.unpack8(kernel.product.packed, *kernel.shape), kernel.row)
    kernel.product, kernel.table = PerToken(product), None
    return product


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
