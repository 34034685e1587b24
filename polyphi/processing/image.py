"""Photo -> crops: dynamic multi-crop (report 2.2.1; rules of the published processor).

>>> crops, view, masks, layout = cut(photo, plan(900, 500))                 # a photo of 900 x 500
>>> crops.shape, (layout.crop_rows, layout.crop_cols), layout.tokens(16)
(torch.Size([6, 3, 448, 448]), (2, 3), 1596)

An image is covered by as few crops as its size needs, so that small images are not scaled up to the largest grid. Only
if that needs more than `max_crops` is the grid chosen by aspect ratio. The image is scaled to fit the grid, the rest is
padded white and masked; the global view is the whole canvas scaled to one crop.
"""

import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from polyphi.media import media
from polyphi.media.media import DecodedBytes, MediaError
from polyphi.processing.reader import Decoding, Placeholder, Reader, number_in_errors, positions
from polyphi.runtime.fork_server import ForkServer
from polyphi.runtime.steps import Steps
from polyphi.types.inputs.image import WHITE, ImageInput, ImageLayout, normalized
from polyphi.types.parts import Image as ImagePart

CROP = 448  # pixels
PATCH = 14  # pixels
MAX_CROPS = 36  # without the global view
MIN_SIDE = (
    10  # pixels of a scaled image: thinner ones raise an error, as in the published processor
)


@dataclass(frozen=True)
class CropPlan:
    """Layout of an image of `image_size` (width, height): its grid of crops, its scaled size, and its patches that are
    not all padding. Sizes in pixels."""

    image_size: tuple[int, int]
    crop_rows: int
    crop_cols: int
    width: int
    height: int
    patch_rows: int
    patch_cols: int
    crop_size: int
    patch_size: int

    @property
    def layout(self) -> ImageLayout:
        """The layout of the image: two by two patches pool to a cell, and a cell with any valid patch is kept."""
        return ImageLayout(
            self.crop_rows, self.crop_cols, -(-self.patch_rows // 2), -(-self.patch_cols // 2)
        )

    @property
    def tokens(self) -> int:
        """Placeholder tokens of the image."""
        return self.layout.tokens(self.crop_size // (2 * self.patch_size))

    @property
    def nbytes(self) -> int:
        """Bytes of the `ImageCrops`."""
        pixels, crops = 3 * self.crop_size**2, self.crop_rows * self.crop_cols
        view = 4 * pixels if crops > 1 else 0  # float32
        return crops * pixels + view + (1 + crops) * (self.crop_size // self.patch_size) ** 2


class ImageCrops(NamedTuple):
    """An image as crops, row by row, in 8 bits (`ImageInput.crops`). `view` is its global view, None where it has one
    crop, which is the view itself; `masks` mark the valid patches of the view and the crops."""

    crops: UInt8[Tensor, "n 3 C C"]
    view: Float[Tensor, "1 3 C C"] | None
    masks: Bool[Tensor, "N G G"]
    layout: ImageLayout


def grid(
    width: int, height: int, crop_size: int = CROP, max_crops: int = MAX_CROPS
) -> tuple[int, int]:
    """Return (columns, rows) of crops: just enough to cover the image, or, if that is more than `max_crops`, those of
    the nearest aspect ratio."""
    cols, rows = -(-width // crop_size), -(-height // crop_size)
    return (
        (cols, rows) if cols * rows <= max_crops else nearest(width, height, crop_size, max_crops)
    )


def nearest(width: int, height: int, crop_size: int, max_crops: int) -> tuple[int, int]:
    """Return (columns, rows) of the nearest aspect ratio of all grids up to `max_crops`: InternVL2's rule. Of equally
    near grids the larger one is chosen if the image has over half its pixels."""
    pairs = ((i, j) for i in range(1, max_crops + 1) for j in range(1, max_crops // i + 1))
    best, best_distance = (1, 1), float("inf")
    for i, j in sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair)):
        distance = abs(width / height - i / j)
        if distance < best_distance or (
            distance == best_distance and 2 * width * height > crop_size**2 * i * j
        ):
            best, best_distance = (i, j), distance
    return best


def plan(
    width: int,
    height: int,
    *,
    crop_size: int = CROP,
    patch_size: int = PATCH,
    max_crops: int = MAX_CROPS,
) -> CropPlan:
    """Return the plan of an image of `width` x `height` pixels. Raises `MediaError` if a scaled side is under 10
    pixels."""
    if crop_size % (2 * patch_size):
        raise ValueError(
            f"a crop is a whole number of 2 x 2 patches: {2 * patch_size} divides it, found {crop_size}"
        )
    if max_crops < 1:
        raise ValueError(f"a picture needs at least one crop, found max_crops={max_crops}")
    if width < 1 or height < 1:
        raise ValueError(f"a picture has at least 1 x 1 pixels, found {width} x {height}")
    cols, rows = grid(width, height, crop_size, max_crops)
    full_width, full_height = cols * crop_size, rows * crop_size
    by_width, by_height = full_width / width, full_height / height
    if by_width < by_height:
        new_width, new_height = full_width, int(height * by_width)
    else:
        new_width, new_height = int(width * by_height), full_height
    if min(new_width, new_height) < MIN_SIDE:
        raise MediaError(
            f"a picture of {width} x {height} pixels is too long and thin: scaled to its {cols} x {rows} crops it has "
            f"{new_width} x {new_height} pixels, and {MIN_SIDE} are needed; cut it into pieces"
        )
    # A patch is masked only if all of it is padding.
    patch_cols = full_width // patch_size - (full_width - new_width) // patch_size
    patch_rows = full_height // patch_size - (full_height - new_height) // patch_size
    return CropPlan(
        image_size=(width, height),
        crop_rows=rows,
        crop_cols=cols,
        width=new_width,
        height=new_height,
        patch_rows=patch_rows,
        patch_cols=patch_cols,
        crop_size=crop_size,
        patch_size=patch_size,
    )


def count_tokens(
    width: int,
    height: int,
    *,
    crop_size: int = CROP,
    patch_size: int = PATCH,
    max_crops: int = MAX_CROPS,
) -> int:
    """Return the number of tokens of an image of this size."""
    return plan(
        width, height, crop_size=crop_size, patch_size=patch_size, max_crops=max_crops
    ).tokens


def cut(image: Image.Image, p: CropPlan) -> ImageCrops:
    """Return the crops and the global view of an RGB image, by the plan of its size."""
    assert image.mode == "RGB", image.mode
    assert image.size == p.image_size, f"a plan for {p.image_size}, a picture of {image.size}"
    crop_size, patch_size = p.crop_size, p.patch_size
    # Pillow's own 8-bit bilinear filter (antialiased when shrinking): resizing tensors can miss it by a grey level.
    scaled = np.asarray(image.resize((p.width, p.height), Image.Resampling.BILINEAR))
    canvas = np.full((p.crop_rows * crop_size, p.crop_cols * crop_size, 3), WHITE, np.uint8)
    canvas[: p.height, : p.width] = scaled
    pixels = torch.from_numpy(canvas).permute(2, 0, 1)
    view = None
    if p.crop_rows * p.crop_cols > 1:  # for one crop, interpolation would be the identity
        size = (crop_size, crop_size)
        view = interpolate(normalized(pixels)[None], size=size, mode="bicubic", align_corners=False)
    crops = pixels.reshape(3, p.crop_rows, crop_size, p.crop_cols, crop_size).permute(1, 3, 0, 2, 4)
    side = crop_size // patch_size
    valid = torch.zeros(p.crop_rows * side, p.crop_cols * side, dtype=torch.bool)
    valid[: p.patch_rows, : p.patch_cols] = True
    masks = (
        valid.reshape(p.crop_rows, side, p.crop_cols, side).transpose(1, 2).reshape(-1, side, side)
    )
    return ImageCrops(
        crops.reshape(-1, 3, crop_size, crop_size),
        view,
        torch.cat([torch.ones(1, side, side, dtype=torch.bool), masks]),
        p.layout,
    )


class ImageReader(Reader):
    """Reads images. `crop_size` and `patch_size` are in pixels; `max_crops` limits an image's crops without its global
    view."""

    modality = ImageInput.NAME
    reads_whole: ClassVar[bool] = False

    def __init__(
        self,
        decoding: Decoding,
        crop_size: int = CROP,
        patch_size: int = PATCH,
        max_crops: int = MAX_CROPS,
    ) -> None:
        # Raise ValueError for invalid sizes now instead of at the first image.
        plan(1, 1, crop_size=crop_size, patch_size=patch_size, max_crops=max_crops)
        self.crop_size, self.patch_size, self.max_crops = crop_size, patch_size, max_crops
        self._decoding = decoding
        self._sizes: dict[int, tuple[int, int]] = {}
        """Sizes of the images whose header a process has read, as long as they exist."""

    @property
    def cells(self) -> int:
        """Pooled cells per side of a crop."""
        return self.crop_size // (2 * self.patch_size)

    def placeholder(self, part: ImagePart, number: int, max_crops: int | None) -> Placeholder:
        """Return the tokens of an image, whose header is read: its content is the plan of its crops."""
        plan = self.plan(part, max_crops)
        return Placeholder(part, number, plan.tokens, plan)

    def tokens(self, part: ImagePart, max_crops: int | None) -> int:
        return self.plan(part, max_crops).tokens

    def size(self, part: ImagePart, max_crops: int | None) -> tuple[int, int]:
        plan = self.plan(part, max_crops)
        return plan.nbytes, plan.image_size[0] * plan.image_size[1]

    def plan(self, part: ImagePart, max_crops: int | None) -> CropPlan:
        """Return the crop plan of an image for the size in its header and the smallest limit on its crops."""
        limits = [b for b in (self.max_crops, max_crops, part.most_crops) if b is not None]
        return plan(
            *self.image_size(part),
            crop_size=self.crop_size,
            patch_size=self.patch_size,
            max_crops=min(limits),
        )

    def inputs(
        self, items: Sequence[Placeholder], slots: Sequence[int], modalities: Collection[str]
    ) -> Steps[ImageInput]:
        cuts: list[ImageCrops] = []
        for item in items:
            yield
            assert isinstance(item.part, ImagePart)
            with number_in_errors(self.modality, item.number):
                # Without a name for the image: one decoded image is in memory at a time.
                cuts.append(cut(self.decoded(item.part, item.content.image_size), item.content))
        views = [cut.view for cut in cuts if cut.view is not None]
        return ImageInput(
            layouts=tuple(cut.layout for cut in cuts),
            slots=positions(slots),
            crops=torch.cat([cut.crops for cut in cuts]),
            views=torch.cat(views) if views else None,
            masks=torch.cat([cut.masks for cut in cuts]),
        )

    def image_size(self, part: ImagePart) -> tuple[int, int]:
        """Return width and height of an image in pixels, from the header."""
        if id(part) in self._sizes:
            return self._sizes[id(part)]
        decoders, caps = self._decoders(part), self._decoding.caps
        size = media.image_size(
            part.source,
            max_bytes=caps.image_bytes,
            max_pixels=caps.image_pixels,
            decoders=decoders,
        )
        if decoders is not None:
            self._sizes[id(part)] = size
            weakref.finalize(part, self._sizes.pop, id(part), None)
        return size

    def decoded(self, part: ImagePart, size: tuple[int, int]) -> Image.Image:
        """Return the decoded image, RGB, of the size returned by `image_size`."""
        return media.decode_image(
            part.source,
            max_bytes=self._decoding.caps.image_bytes,
            max_pixels=size[0] * size[1],
            decoders=self._decoders(part),
        )

    def _decoders(self, part: ImagePart) -> ForkServer | None:
        """Frames of videos and pages were decoded in a separate process already."""
        return None if isinstance(part.source, DecodedBytes) else self._decoding.decoders
