"""Replace a model's modules by faster ones of this machine, as quantization does with linears.

>>> model = prepare(PhiModel(config))                    # or any part of it, in place

A prepared module is a subclass of the model's own: it has the same parameters under the same names, and chooses between
our kernels, CUDA's variable-length attention and the plain forward at each call, by device, dtype and whether gradients
are needed. Only the class of a module changes (FSDP does the same), so parameters, hooks and training mode stay, and a
prepared model can be moved, cast, quantized, sharded, compiled and trained.
"""

from typing import TypeVar

from torch import nn

from polyphi.model import (
    conformer,
    decoder,
    lora,
    multimodal,
    projector,
    siglip,
    subsampling,
)
from polyphi.prepared.conformer import PreparedConformerAttention, PreparedConformerEncoder
from polyphi.prepared.decoder import PreparedDecoder, PreparedDecoderLayer, PreparedRMSNorm
from polyphi.prepared.linear import (
    PreparedLinear,
    PreparedLoraLinear,
    PreparedLowRank,
    PreparedPointwise,
    PreparedProjector,
)
from polyphi.prepared.multimodal import PreparedAudio, PreparedTower, PreparedVision
from polyphi.prepared.siglip import (
    PreparedSiglipAttention,
    PreparedSiglipEncoder,
    PreparedSiglipLayer,
    PreparedSiglipMLP,
)
from polyphi.prepared.subsampling import PreparedSubsampling

M = TypeVar("M", bound=nn.Module)

REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: PreparedLinear,
    lora.LowRank: PreparedLowRank,
    lora.LoraLinear: PreparedLoraLinear,
    decoder.RMSNorm: PreparedRMSNorm,
    decoder.DecoderLayer: PreparedDecoderLayer,
    decoder.Decoder: PreparedDecoder,
    siglip.SiglipAttention: PreparedSiglipAttention,
    siglip.SiglipLayer: PreparedSiglipLayer,
    siglip.SiglipMLP: PreparedSiglipMLP,
    siglip.SiglipEncoder: PreparedSiglipEncoder,
    subsampling.Subsampling: PreparedSubsampling,
    conformer.Pointwise: PreparedPointwise,
    conformer.ConformerAttention: PreparedConformerAttention,
    conformer.ConformerEncoder: PreparedConformerEncoder,
    projector.Projector: PreparedProjector,
    multimodal.Tower: PreparedTower,
    multimodal.Vision: PreparedVision,
    multimodal.Audio: PreparedAudio,
}
"""The class that replaces each of the model's own; a module of another class stays."""


def prepare(model: M) -> M:
    """Replace the modules of a model, or of a part of one, in place; those that are prepared already stay."""
    for module in model.modules():
        if replacement := REPLACEMENTS.get(type(module)):
            module.__class__ = replacement
            if isinstance(module, PreparedSubsampling):
                module.prepare_convolutions()
    return model
