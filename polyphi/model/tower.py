"""A tower: what a modality adds in front of the decoder, its encoder and its projector."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class Tower(nn.Module):
    """A modality's inputs to tokens: encoder, then projector.

    Both read the inputs of all items at once: `encoder(inputs)` returns features [n V], as many rows of each item as
    `inputs.features` says, and `projector(features, inputs)` tokens [m D], as many of each item as `inputs.tokens`.
    """

    published = False
    """Whether it is one of the report's, whose linears may be quantized."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, inputs: Any) -> Float[Tensor, "m D"]:
        """Tokens of all items, in order."""
        inputs = inputs.ready()
        return self.project(self.encode(inputs), inputs)

    def encode(self, inputs: Any) -> Float[Tensor, "n ..."]:
        """Features of all items, in order; the inputs are `ready`."""
        features: Tensor = self.encoder(inputs)
        return features

    def project(self, features: Float[Tensor, "n ..."], inputs: Any) -> Float[Tensor, "m D"]:
        """Tokens of all items from their features."""
        tokens: Tensor = self.projector(features, inputs)
        return tokens

    def unused(self) -> frozenset[str]:
        """Names of the parameters that `forward` doesn't use."""
        return frozenset()
