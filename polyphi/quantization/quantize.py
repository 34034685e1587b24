"""Quantization of a model's linears for inference.

    quantize(model, "int8")      # or polyphi.load(folder, quant="int8")
    quantize(model, "int4", calibration=rows)

| scheme | base linears of the decoder | head (the embedding, transposed) | encoders' linears |
|---|---|---|---|
| bf16 | as stored | as stored | bfloat16, in the memory layout of this CPU's kernel |
| int8 | 8 bits, blocks of 64 inputs with a scale | 8 bits | as above |
| int4 | 4 bits, groups of 32 inputs with a scale and a zero (rounding.py) | 6 bits, as in int8 | as above |
| int8-all | as int8 | 8 bits | int8, a scale per output; projectors and adapters as the base in int8 |
| int4-all | as int4 | 6 bits | as in int8-all |

The inputs of the decoder's, the projectors' and the adapters' weights are rotated in blocks of 64
(kernels/rotation.py), and their activations are rounded to int8 with a scale per token and block: trained models have
activations a thousand times as large as the others, beside which one scale per token leaves nothing of these.

Norms, biases and convolutions keep their dtype, and so do adapters and projectors except in the last two schemes; a
batch can mix adapters in all of them. The head is a quantized copy, and the lookup of embeddings stays exact: of a
checkpoint that is memory-mapped only the embeddings that are read take memory, so the total still falls. A quantized
checkpoint (checkpoints/) stores the embeddings beside a head in 6 bits. Beside one in 8 bits it doesn't, and the rows
of the head are looked up.

Scales of activations are per token, so a token's result doesn't depend on its neighbours in the batch. In int4 a batch
of 128 tokens and more is multiplied by weights unpacked to int8 (kernels/linear.cpp).

A quantized model is for inference on its device. It can't be trained, its adapters can't be merged, and it can only be
saved in the same scheme. `put_adapter` adds trained adapters to it, in bfloat16. To train adapters, projectors or
encoders on a quantized base, see `quantize_frozen`.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import polyphi.kernels as kernels
from polyphi.kernels import linear as native
from polyphi.kernels.linear import GROUP
from polyphi.model.config import ModelConfig
from polyphi.model.conformer import Pointwise
from polyphi.model.decoder import Decoder
from polyphi.model.lora import LoraLinear, LowRank
from polyphi.model.multimodal import PhiModel
from polyphi.model.siglip import SiglipMLP
from polyphi.prepared.decoder import PreparedDecoder
from polyphi.prepared.linear import PreparedLoraLinear
from polyphi.prepared.prepare import prepare
from polyphi.quantization import int8_encoder
from polyphi.quantization.calibration import calibrate
from polyphi.quantization.integer_weights import (
    EIGHT,
    FOUR,
    PER_OUTPUT,
    SIX,
    EightBitLinear,
    Form,
    Native,
    OneDnn,
    PerToken,
    Pieces,
    Quantized,
    is_right,
    shape_2d,
)
from polyphi.quantization.integer_weights import pieces as pieces_of
from polyphi.quantization.modules import QuantizedLoraLinear, QuantizedLowRank
from polyphi.types.batch import Batch

STORED = ("int8", "int4", "int8-all", "int4-all")
"""Schemes of quantized checkpoints."""
SCHEMES = ("bf16", *STORED)
BASES = ("int8", "int4")
"""Schemes of a frozen base that adapters are trained on."""
EMBEDDING, UNTIED_HEAD = "decoder.embed_tokens.weight", "decoder.lm_head.weight"
"""Names of the embedding, which is quantized as the head, and unchanged for the lookup; and of an untied head."""
TABLE = "table"
"""The piece of a head in 6 bits that isn't quantized: the embeddings for the lookup, bfloat16. Rounded to 8 bits they
add next to nothing, so int8 has no table."""


@dataclass(frozen=True)
class WeightTarget:
    """A weight to quantize: its `name` and shape in the model, its quantized `form`, and `put`, which replaces it."""

    name: str
    shape: tuple[int, int]
    form: Form
    put: Callable[[Any], None]

    @property
    def has_table(self) -> bool:
        """Whether the embeddings are stored beside this weight, which is the head."""
        return self.name == EMBEDDING and self.form == SIX

    def pieces(self, weight: Float[Tensor, "O I"]) -> Pieces:
        """The pieces of the weight that a quantized checkpoint stores."""
        pieces = pieces_of(weight, self.form)
        return {**pieces, TABLE: weight} if self.has_table else pieces


@torch.no_grad()
def quantize(model: PhiModel, scheme: str, calibration: Sequence[Batch] = ()) -> PhiModel:
    """Quantize a model in place, weight by weight; each is freed once its quantized form exists. In 4 bits
    `calibration`, a few dozen rows like those of inference, reduces the error (rounding.py). Raises ValueError for an
    unknown scheme, for a model that is quantized already, and for calibration rows with a scheme without 4 bits."""
    rounded = calibrated_pieces(model, scheme, calibration) if calibration else {}
    for part in parts(model, scheme):
        weight = model.get_parameter(part.name).flatten(1)
        if part.name in rounded:
            part.put(Quantized.stored(rounded.pop(part.name), part.shape, weight.device))
        else:
            part.put(Quantized(weight, part.form))
    return finish(model, scheme)


@torch.no_grad()
def calibrated_pieces(model: PhiModel, scheme: str, rows: Sequence[Batch]) -> dict[str, Pieces]:
    """The stored form of the weights in 4 bits by name, rounded for their inputs over `rows`; the model is unchanged.
    Raises ValueError for a scheme without 4 bits, and for a model that is quantized already."""
    if not scheme.startswith("int4"):
        raise ValueError(f"calibration is for int4; {scheme} does without it")
    shapes = {part.name: part.shape for part in parts(model, scheme) if part.form == FOUR}
    prepare(model)
    linears = {m: f"{n}.weight" for n, m in model.named_modules() if isinstance(m, LoraLinear)}
    result: dict[str, Pieces] = {}

    def round_(linear: LoraLinear, hessian: Tensor) -> None:
        name = linears[linear]
        if name in shapes:
            result[name] = pieces_of(linear.weight, FOUR, hessian)
            # Temporarily, so that later layers get the outputs of the quantized one.
            quantized = Quantized.stored(result[name], shapes[name], linear.weight.device)
            _set_product(linear, "kernel", quantized)

    try:
        calibrate(model, rows, round_)
    finally:
        for linear in linears:
            linear.__class__ = PreparedLoraLinear
            vars(linear).pop("kernel", None)
    return result


@torch.no_grad()
def finish(model: PhiModel, scheme: str) -> PhiModel:
    """Finish a model after the weights of `parts` are quantized: bfloat16 linears of the encoders get this CPU's memory
    layout, with GELU fused; on other devices and in other dtypes they are unchanged."""
    prepare(model)
    model.quant = scheme
    for path, module, name in _linears(model):
        child: Any = module.get_submodule(name)
        if ".projector." in path or not _packs():
            continue
        if child.weight.dtype != torch.bfloat16 or child.weight.device.type != "cpu":
            continue
        gelu = isinstance(module, SiglipMLP) and name == "fc1"
        setattr(module, name, OneDnnLinear(child.weight.flatten(1), child.bias, gelu=gelu))
        if gelu:
            module.act = nn.Identity()
    if scheme.endswith("-all") and kernels.missing() is None:
        int8_encoder.fuse(model, _onednn_product if is_right(OneDnn, "cpu") else _native_product)
    return model


@torch.no_grad()
def quantize_frozen(
    model: PhiModel,
    scheme: str,
    trained: Collection[str],
    progress: Callable[[int], None] = lambda weights: None,
) -> PhiModel:
    """Quantize the weights of a model that a stage doesn't train, to train others on them (QLoRA): the base linears of
    the decoder and the head in "int8" or "int4", the linears of wholly frozen encoders in int8. Adapters and projectors
    keep their dtype. On other devices than a CPU the head stays the embedding, which is in their memory anyway, and
    which would be unpacked for each chunk of the loss. `progress` is called with the number of weights that are
    quantized. Raises ValueError for another scheme, for a model that is quantized already, and if `trained` has one of
    the decoder's weights."""
    for count, part in enumerate(frozen_parts(model, scheme, trained, model.decoder.device), 1):
        weight = model.get_parameter(part.name).flatten(1)
        pieces = pieces_of(weight, part.form)
        part.put(Quantized.stored(pieces, part.shape, weight.device, gradients=True))
        del weight  # with it its mapping
        progress(count)
    model.quant = scheme
    return model


def frozen_parts(
    model: PhiModel, scheme: str, trained: Collection[str], device: torch.device
) -> list[WeightTarget]:
    """The weights that `quantize_frozen` quantizes on a device. Raises ValueError as it does."""
    if scheme not in BASES:
        raise ValueError(f"a base to train on is one of {', '.join(BASES)}; found {scheme!r}")
    base = parts(model, scheme)
    if both := sorted({part.name for part in base} & set(trained)):
        raise ValueError(
            f"{both[0]} is trained, and only frozen weights can be quantized: a quantized base is for stages that "
            "train adapters, projectors or encoders"
        )
    if device.type != "cpu":
        base = [part for part in base if part.name not in (EMBEDDING, UNTIED_HEAD)]
    encoders = [f"{tower}.encoder." for tower in model.config.towers.values()]
    frozen = tuple(e for e in encoders if not any(name.startswith(e) for name in trained))
    return [*base, *_encoder_parts(model, [x for x in _linears(model) if x[0].startswith(frozen)])]


def parts(model: PhiModel, scheme: str) -> list[WeightTarget]:
    """The weights to quantize, the largest first, while most memory is free. Raises ValueError for an unknown scheme,
    and for a model that is quantized already."""
    if scheme not in SCHEMES:
        raise ValueError(
            f"quant must be None (as stored) or one of {', '.join(SCHEMES)}; found {scheme!r}"
        )
    if model.quant is not None:
        raise ValueError(
            "this model is quantized already; load it again to quantize it in another scheme"
        )
    if scheme == "bf16":
        return []
    decoder = model.decoder
    table = (decoder.config.vocab_size, decoder.config.hidden_size)
    name = EMBEDDING if decoder.config.tie_word_embeddings else UNTIED_HEAD
    head = SIX if scheme.startswith("int4") else EIGHT
    result = [WeightTarget(name, table, head, partial(_set_head, decoder))]
    for name, module in decoder.named_modules():
        if isinstance(module, LoraLinear):
            shape = shape_2d(module.weight.shape)
            put = partial(_replace, module, "weight", "kernel")
            result.append(WeightTarget(f"decoder.{name}.weight", shape, _form(scheme, shape), put))
        elif isinstance(module, LowRank) and scheme.endswith("-all"):
            for factor, kernel in (("a", "down"), ("b", "up")):
                put = partial(_replace, module, factor, kernel)
                shape = shape_2d(getattr(module, factor).shape)
                result.append(WeightTarget(f"decoder.{name}.{factor}", shape, EIGHT, put))
    if scheme.endswith("-all"):
        result += _encoder_parts(model, _linears(model))
    return result


def _encoder_parts(
    model: PhiModel, linears: list[tuple[str, nn.Module, str]]
) -> list[WeightTarget]:
    """Linears of encoders and projectors (`_linears`) in 8 bits."""
    result = []
    for path, module, name in linears:
        shape = shape_2d(model.get_parameter(f"{path}.weight").shape)
        put = partial(_replace_linear, module, name)
        form = EIGHT if ".projector." in path else PER_OUTPUT
        result.append(WeightTarget(f"{path}.weight", shape, form, put))
    return result


def _form(scheme: str, shape: tuple[int, int]) -> Form:
    """The form of a scheme, or 8 bits if a weight's shape doesn't support 4."""
    return FOUR if scheme.startswith("int4") and shape[1] % GROUP == 0 else EIGHT


def _linears(model: PhiModel) -> list[tuple[str, nn.Module, str]]:
    """The linears of encoders and projectors that a forward uses: path, parent module, name in it. (References to the
    linears would keep replaced ones in memory.) Code of others may read the weights of its linears: its towers stay."""
    unused = model.unused()
    return [
        (f"{path}.{name}", module, name)
        for modality, tower in model.towers.items()
        if tower.published
        for path, module in tower.named_modules(prefix=model.config.towers[modality])
        for name, child in module.named_children()
        if isinstance(child, nn.Linear | Pointwise) and f"{path}.{name}.weight" not in unused
    ]


def _set_head(decoder: Decoder, head: Quantized) -> None:
    prepare(decoder)
    assert isinstance(decoder, PreparedDecoder)
    decoder.head = head
    if not decoder.config.tie_word_embeddings:
        decoder.lm_head.register_parameter("weight", None)


def head_of(model: PhiModel) -> Quantized | None:
    """The quantized head of a model, if it has one."""
    head = getattr(model.decoder, "head", None)
    return head if isinstance(head, Quantized) else None


def _replace(module: nn.Module, parameter: str, name: str, product: Quantized) -> None:
    """Replace a parameter of a linear or an adapter by the product `name` of its quantized form."""
    _set_product(module, name, product)
    module.register_parameter(parameter, None)


def _set_product(module: nn.Module, name: str, product: Quantized) -> None:
    prepare(module)
    module.__class__ = QuantizedLoraLinear if isinstance(module, LoraLinear) else QuantizedLowRank
    setattr(module, name, product)


def _replace_linear(module: nn.Module, name: str, product: Quantized) -> None:
    plain: Any = module.get_submodule(name)
    setattr(module, name, EightBitLinear(product, plain.bias))


def reader(model: PhiModel) -> Callable[[str], Tensor | Pieces]:
    """A function that returns the tensors of a quantized model by their unquantized names, to save a checkpoint: pieces
    for quantized weights. It raises ValueError for weights that no longer have their stored layout."""
    state, forms = model.state_dict(), {}
    for path, module in model.named_modules():
        for kernel, parameter in (("kernel", "weight"), ("down", "a"), ("up", "b")):
            forms[f"{path}.{parameter}"] = getattr(module, kernel, None)
    forms[EMBEDDING if model.config.decoder.tie_word_embeddings else UNTIED_HEAD] = head_of(model)

    def read(name: str) -> Tensor | Pieces:
        form = forms.get(name)
        if isinstance(form, Quantized):
            if (pieces := form.in_pieces()) is None:
                raise ValueError(
                    f"{name} has no longer its stored layout; quantize the unquantized model while saving it"
                )
            if name == EMBEDDING and form.form == SIX and name in state:
                return {**pieces, TABLE: state[name]}
            return pieces
        module: Any = model.get_submodule(name.rpartition(".")[0])
        packed = isinstance(module, OneDnnLinear) and name.endswith(".weight")
        return module.weight.to_dense() if packed else state[name]

    return read


def saved_bytes(config: ModelConfig, scheme: str | None, device: str = "cpu") -> int:
    """Bytes that quantization saves of a bfloat16 checkpoint's weights. On a CPU the table of embeddings beside a
    quantized head counts as none: it is memory-mapped. On other devices a head in 6 bits has 8."""
    parts = _parts_of(config, scheme)
    if device == "cpu":
        return sum(map(saving, parts))
    tables = [2 * math.prod(part.shape) for part in parts if part.name == EMBEDDING]
    eight = [replace(part, form=EIGHT) if part.form == SIX else part for part in parts]
    return sum(map(saving, eight)) - sum(tables)


def table_bytes(config: ModelConfig, scheme: str | None) -> int:
    """Bytes of the table of embeddings in bfloat16 that a quantized checkpoint has beside its head."""
    return sum(2 * math.prod(part.shape) for part in _parts_of(config, scheme) if part.has_table)


def _parts_of(config: ModelConfig, scheme: str | None) -> list[WeightTarget]:
    if scheme is None:
        return []
    with torch.device("meta"):
        return parts(PhiModel(config), scheme)


def saving(part: WeightTarget) -> int:
    """Bytes that quantization saves of a weight in bfloat16."""
    return 2 * math.prod(part.shape) - size(part)


def size(part: WeightTarget) -> int:
    """Bytes of a weight's quantized form."""
    pieces = part.form.layout(part.shape).values()
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in pieces)


def _eight_bits(linear: nn.Module) -> Quantized:
    """The int8 weight of an encoder's linear, or of a convolution of width 1, which this function quantizes."""
    if isinstance(linear, EightBitLinear):
        return linear.kernel
    assert isinstance(linear, nn.Conv2d)
    return Quantized(linear.weight.flatten(1), PER_OUTPUT)


def _native_product(linear: nn.Module) -> Native:
    """A linear's product by our kernels: for CPUs without dot products of bytes, where oneDNN's int8 sums saturate."""
    product = _eight_bits(linear).product
    assert isinstance(product, Native)
    return product


def _onednn_product(linear: nn.Module) -> OneDnn:
    """A linear's product, changed to oneDNN: for hundreds of int8 rows it takes 10 to 25 % less time than our
    kernels."""
    kernel = _eight_bits(linear)
    assert isinstance(kernel.product, Native)
    product = OneDnn(native.unpack(kernel.product.packed, 8, *kernel.shape).q, kernel.row)
    kernel.product, kernel.table = PerToken(product), None
    return product


# ---------------------------------------------------------------------- bfloat16


@cache
def _packs() -> bool:
    """Whether this CPU has bfloat16 instructions that oneDNN uses."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class OneDnnLinear(nn.Module):
    """A linear with bias whose bfloat16 weight has oneDNN's layout; with `gelu` the tanh form of GELU is fused."""

    def __init__(self, weight: Float[Tensor, "O I"], bias: Tensor, *, gelu: bool = False) -> None:
        super().__init__()
        # 1024: the number of rows that the layout is optimised for, a crop's patches.
        self.weight: Any = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1024)
        self.bias = bias
        self.after: tuple[str, list[float], str] = (
            ("gelu", [], "tanh") if gelu else ("none", [], "")
        )

    def forward(self, x: Float[Tensor, "*n I"]) -> Float[Tensor, "*n O"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.after)
