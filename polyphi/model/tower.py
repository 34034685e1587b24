"""A tower: what a modality adds in front of the decoder, its encoder and its projector."""

from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from polyphi.item_input import ItemInput


class Tower(nn.Module):
    """A modality's inputs to tokens: encoder, then projector.

    Both read the inputs of all items at once: `encoder(inputs)` returns features, and `projector(features, inputs)`
    tokens [m D], as many of each item as `inputs.tokens` says. This class is that of a user's modality `name`, whose
    tokens are checked; the report's two are subclasses.
    """

    published = False
    """Whether it is one of the report's, whose linears may be quantized."""

    def __init__(self, encoder: nn.Module, projector: nn.Module, name: str, width: int) -> None:
        super().__init__()
        self.encoder, self.projector, self.name, self.width = encoder, projector, name, width

    def forward(self, inputs: Any) -> Float[Tensor, "m D"]:
        """Tokens of all items, in order."""
        inputs = inputs.ready()
        return self.project(self.encode(inputs), inputs)

    def encode(self, inputs: Any) -> Float[Tensor, "n ..."]:
        """Features of all items, in order; the inputs are `ready`."""
        features: Tensor = self.encoder(self.cast(inputs))
        return features

    def project(self, features: Float[Tensor, "n ..."], inputs: Any) -> Float[Tensor, "m D"]:
        """Tokens of all items from their features. Raises ValueError where they aren't as many as the items have, or
        of another width than the decoder's."""
        tokens: Tensor = self.projector(features, inputs)
        expected, shape = [sum(inputs.tokens), self.width], list(getattr(tokens, "shape", ()))
        if shape != expected:
            raise ValueError(
                f"{self.name}: expected tokens of shape {expected} from encoder and projector, by the items' cost and "
                f"the decoder's width; found {shape or type(tokens).__name__}"
            )
        return tokens

    def cast(self, inputs: ItemInput) -> ItemInput:
        """The inputs with values in the dtype of the encoder's weights."""
        weight = next(self.encoder.parameters(), inputs.values)
        return replace(inputs, values=inputs.values.to(weight.dtype))

    def unused(self) -> frozenset[str]:
        """Names of the parameters that `forward` doesn't use."""
        return frozenset()
