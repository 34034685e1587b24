"""Encoders with their projectors, in slices between which a server answers others."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polyphi.model import multimodal
from polyphi.model.multimodal import Tower
from polyphi.prepared.conformer import PreparedConformerEncoder
from polyphi.prepared.siglip import PreparedSiglipEncoder
from polyphi.runtime.steps import Steps, result_of
from polyphi.types.inputs.audio import AudioInput
from polyphi.types.inputs.image import ImageInput

PROJECTED_FEATURES = 22_500
"""Audio features that are projected in one call: half an hour."""


class PreparedTower(Tower):
    """A modality's inputs to tokens, in slices where its encoder has them."""

    def forward(self, inputs: Any) -> Float[Tensor, "m D"]:
        return result_of(self.slices(inputs))

    def slices(self, inputs: Any) -> Steps[Float[Tensor, "m D"]]:
        """The result of `forward`, in slices."""
        inputs = inputs.ready()
        features = yield from self.feature_slices(inputs)
        return (yield from self.project_slices(features, inputs))

    def feature_slices(self, inputs: Any) -> Steps[Float[Tensor, "n ..."]]:
        """The result of `encode`, in the encoder's `slices(inputs)` if it has them, otherwise in one."""
        slices = getattr(self.encoder, "slices", None)
        if slices is not None:
            return (yield from slices(self.cast(inputs)))
        yield
        return self.encode(inputs)

    def project_slices(
        self, features: Float[Tensor, "n ..."], inputs: Any
    ) -> Steps[Float[Tensor, "m D"]]:
        """The result of `project`, in slices."""
        yield from ()
        return self.project(features, inputs)


class PreparedVision(PreparedTower, multimodal.Vision):
    """Images to tokens; crops with the same pixels are encoded once."""

    encoder: PreparedSiglipEncoder

    def feature_slices(self, inputs: ImageInput) -> Steps[Float[Tensor, "N P V"]]:
        """Features of all crops, in slices of one layer."""
        crops, masks, sources = inputs.crops, inputs.masks, equal_crops(inputs)
        if sources is None:
            return (yield from self.encoder.slices(crops, masks))
        distinct, inverse = sources.unique(return_inverse=True)
        crops, masks = crops.index_select(0, distinct), masks.index_select(0, distinct)
        features = yield from self.encoder.slices(crops, masks)
        return features.index_select(0, inverse)


def equal_crops(images: ImageInput) -> Int[Tensor, " N"] | None:
    """Index, for each crop, of the first crop of its image with the same pixels; None on a GPU, where the comparison
    would need a synchronization. An image of exactly one crop equals its global view, which saves half of the encoder's
    work (nano's vision 3 takes a sixth less time)."""
    if images.crops.is_cuda:
        return None
    sources, start = torch.arange(len(images.crops)), 0
    for layout in images.layouts:
        if layout.crops == 2 and all(
            torch.equal(t[start], t[start + 1]) for t in (images.crops, images.masks)
        ):
            sources[start + 1] = start
        start += layout.crops
    return sources


class PreparedAudio(PreparedTower, multimodal.Audio):
    """Audio clips to tokens."""

    encoder: PreparedConformerEncoder

    def feature_slices(self, inputs: AudioInput) -> Steps[Float[Tensor, "A V"]]:
        """Features of all clips, in slices of one block."""
        return (yield from self.encoder.slices(inputs.mels, inputs.layouts))

    def project_slices(
        self, features: Float[Tensor, "A V"], inputs: AudioInput
    ) -> Steps[Float[Tensor, "A D"]]:
        """Tokens of all clips: of one clip that is longer than half an hour, half an hour at a time, because the layers
        of a projector take twice the memory of its tokens."""
        if (
            torch.is_grad_enabled()
            or len(inputs.layouts) > 1
            or len(features) <= PROJECTED_FEATURES
        ):
            return self.project(features, inputs)
        tokens = features.new_empty(len(features), self.width)
        for start in range(0, len(features), PROJECTED_FEATURES):
            part = features[start : start + PROJECTED_FEATURES]
            tokens[start : start + len(part)] = self.projector(part, inputs.layouts)
            yield
        return tokens
