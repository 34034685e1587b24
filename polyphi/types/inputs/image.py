"""Images as the vision encoder reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from polyphi.types.inputs.encoder import Inputs

WHITE = 255
"""The largest value of an 8-bit pixel."""
MEAN = STD = 0.5
"""The normalization of pixels from [0, 1] to [-1, 1]."""


@dataclass(frozen=True)
class ImageLayout:
    """One image cut into crops: `crop_rows` x `crop_cols` crops, of which `rows` x `cols` pooled cells are kept (report
    2.2.1). The encoder reads the global view first, then the crops row by row."""

    crop_rows: int
    crop_cols: int
    rows: int
    cols: int

    @property
    def crops(self) -> int:
        """Crops that the encoder reads, the global view included."""
        return 1 + self.crop_rows * self.crop_cols

    def tokens(self, cells: int) -> int:
        """Tokens of the image when a crop pools to `cells` x `cells`: g(g+1) + 1 + R(C+1), 273 + R(C+1) at 448
        pixels."""
        return cells * (cells + 1) + 1 + self.rows * (self.cols + 1)


@dataclass(frozen=True, kw_only=True)
class ImageInput(Inputs):
    """The images of a batch. `label_ids` are (image, number among its tokens or patches, token id).

    `crops` are floats in [-1, 1] with each image's global view before its crops, or, as `processing` makes them, 8-bit
    pixels without global views, a quarter of the bytes. Then `views` has the global view of each image of more than one
    crop: it is interpolated between pixels, so it has no 8-bit form. An image of one crop is its own view.
    `ready` converts the second form to the first. `masks` include the global views in both forms.
    """

    NAME: ClassVar[str] = "image"
    SIZE_UNIT: ClassVar[str] = "crops"
    MAX_SIZE: ClassVar[int] = 16

    layouts: tuple[ImageLayout, ...]
    label_ids: Int[Tensor, "_ 3"] | None = None
    crops: Float[Tensor, "N 3 C C"] | UInt8[Tensor, "_ 3 C C"]
    views: Float[Tensor, "W 3 C C"] | None = None
    masks: Bool[Tensor, "N G G"]

    @property
    def tokens(self) -> list[int]:
        """The number of tokens of each image."""
        return [layout.tokens(self.masks.shape[-1] // 2) for layout in self.layouts]

    @property
    def features(self) -> list[int]:
        """The number of crops of each image, global views included: a row of features is a crop."""
        return [layout.crops for layout in self.layouts]

    @property
    def size(self) -> int:
        """Crops that the encoder reads, global views included."""
        return sum(layout.crops for layout in self.layouts)

    @property
    def padding_share(self) -> float:
        """Share of the patches that are padding at the edge of an image."""
        return 1 - self.masks.sum().item() / self.masks.numel()

    @property
    def identity(self) -> tuple[Tensor, ...]:
        """Crops and masks: the global view is computed from the crops."""
        return self.crops, self.masks

    @classmethod
    def join(cls, parts: Sequence[Self], starts: Sequence[int] = ()) -> Self:
        """The images of several inputs, in order."""
        dtypes = {part.crops.dtype for part in parts}
        assert len(dtypes) < 2, f"a pack mixes crops of {dtypes}"
        return super().join(parts, starts)

    def split(self) -> Iterator["ImageInput"]:
        """Each image as its own inputs, without copying pixels."""
        own_view = not self.crops.is_floating_point()
        start = at = view = 0
        for layout in self.layouts:
            pixels = layout.crops - 1 if own_view else layout.crops
            views = 1 if own_view and pixels > 1 else 0
            yield ImageInput(
                layouts=(layout,),
                crops=self.crops[at : at + pixels],
                views=self.views[view : view + views] if views and self.views is not None else None,
                masks=self.masks[start : start + layout.crops],
            )
            start, at, view = start + layout.crops, at + pixels, view + views

    def ready(self) -> "ImageInput":
        """The images with crops as floats in [-1, 1], each image's global view before its crops."""
        pixels = self.crops
        if pixels.is_floating_point():
            return self
        crops = torch.empty(self.size, *pixels.shape[1:], device=pixels.device)
        start = at = view = 0
        for layout in self.layouts:
            count = layout.crops - 1
            normalized(pixels[at : at + count], crops[start + 1 : start + 1 + count])
            if count == 1:
                crops[start] = crops[start + 1]
            else:
                assert self.views is not None, "an image of several crops without its global view"
                crops[start] = self.views[view]
                view += 1
            start, at = start + layout.crops, at + count
        return replace(self, crops=crops, views=None)


def normalized(
    pixels: UInt8[Tensor, "*n"], out: Float[Tensor, "*n"] | None = None
) -> Float[Tensor, "*n"]:
    """8-bit pixels as floats in [-1, 1], written to `out` if given. The result is bitwise equal on all devices."""
    out = torch.empty_like(pixels, dtype=torch.float32) if out is None else out
    # The divisor is a tensor: for a number, a GPU would multiply by its rounded inverse.
    white = torch.full((), float(WHITE), device=pixels.device)
    return out.copy_(pixels).div_(white).sub_(MEAN).div_(STD)
