"""Items of a user's modality as its encoder reads them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from polyphi.types.inputs.encoder import Inputs


@dataclass(frozen=True)
class ItemLayout:
    """One item: `length` steps of values, which become `tokens` tokens."""

    modality: str
    length: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class ItemInput(Inputs):
    """Items of one modality. `values` are those of all, joined along the first axis: n = the sum of the lengths."""

    SIZE_UNIT: ClassVar[str] = "values"
    MAX_SIZE: ClassVar[int] = 1 << 20

    layouts: tuple[ItemLayout, ...]
    values: Float[Tensor, "n ..."]

    @property
    def modality(self) -> str:
        """The name of the modality."""
        return self.layouts[0].modality

    @property
    def lengths(self) -> list[int]:
        """The number of steps of each item."""
        return [layout.length for layout in self.layouts]

    @property
    def tokens(self) -> list[int]:
        """The number of tokens of each item."""
        return [layout.tokens for layout in self.layouts]

    @property
    def features(self) -> None:
        """Return None, for unknown: only the encoder decides how many rows an item has between encoder and
        projector."""
        return None

    @property
    def size(self) -> int:
        """Values of all steps."""
        return self.values.numel()

    @property
    def items(self) -> list[Float[Tensor, "l ..."]]:
        """The values of each item."""
        return list(self.values.split(self.lengths))

    def split(self) -> Iterator["ItemInput"]:
        """Each item as its own inputs, without copying values."""
        for layout, values in zip(self.layouts, self.items, strict=True):
            yield ItemInput(layouts=(layout,), values=values)
