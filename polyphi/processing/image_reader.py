"""Images of messages -> `ImageInput`."""

import weakref
from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from PIL.Image import Image as PILImage

from polyphi.image_input import ImageInput
from polyphi.messages import Image
from polyphi.processing import image, media
from polyphi.processing.reader import Decoding, Placeholder, Reader, number_in_errors, positions
from polyphi.processing.video import FrameBytes
from polyphi.runtime.fork_server import ForkServer
from polyphi.steps import Steps


class ImageReader(Reader):
    """Reads images. `crop_size` and `patch_size` are in pixels; `max_crops` limits an image's crops without its global
    view."""

    modality = ImageInput.NAME
    reads_whole: ClassVar[bool] = False

    def __init__(
        self,
        decoding: Decoding,
        crop_size: int = image.CROP,
        patch_size: int = image.PATCH,
        max_crops: int = image.MAX_CROPS,
    ) -> None:
        # Raise ValueError for invalid sizes now instead of at the first image.
        image.plan(1, 1, crop_size=crop_size, patch_size=patch_size, max_crops=max_crops)
        self.crop_size, self.patch_size, self.max_crops = crop_size, patch_size, max_crops
        self._decoding = decoding
        self._sizes: dict[int, tuple[int, int]] = {}
        """Of images whose header a process has read, as long as they exist."""

    @property
    def cells(self) -> int:
        """Pooled cells per side of a crop."""
        return self.crop_size // (2 * self.patch_size)

    def placeholder(self, part: Image, number: int, max_crops: int | None) -> Placeholder:
        """Return the tokens of an image, whose header is read: its content is the plan of its crops."""
        plan = self.plan(part, max_crops)
        return Placeholder(part, number, plan.tokens, plan)

    def tokens(self, part: Image, max_crops: int | None) -> int:
        return self.plan(part, max_crops).tokens

    def size(self, part: Image, max_crops: int | None) -> tuple[int, int]:
        plan = self.plan(part, max_crops)
        return plan.nbytes, plan.image_size[0] * plan.image_size[1]

    def plan(self, part: Image, max_crops: int | None) -> image.CropPlan:
        """Return the crop plan of an image for the size in its header and the smallest limit on its crops."""
        limits = [b for b in (self.max_crops, max_crops, part.most_crops) if b is not None]
        return image.plan(
            *self.image_size(part),
            crop_size=self.crop_size,
            patch_size=self.patch_size,
            max_crops=min(limits),
        )

    def inputs(
        self, items: Sequence[Placeholder], slots: Sequence[int], modalities: Collection[str]
    ) -> Steps[ImageInput]:
        cuts: list[image.ImageCrops] = []
        for item in items:  # one decoded image in memory at a time
            yield
            assert isinstance(item.part, Image)
            with number_in_errors(self.modality, item.number):
                picture = self.decoded(item.part, item.content.image_size)
                cuts.append(image.cut(picture, item.content))
        views = [cut.view for cut in cuts if cut.view is not None]
        return ImageInput(
            layouts=tuple(cut.layout for cut in cuts),
            slots=positions(slots),
            crops=torch.cat([cut.crops for cut in cuts]),
            views=torch.cat(views) if views else None,
            masks=torch.cat([cut.masks for cut in cuts]),
        )

    def image_size(self, part: Image) -> tuple[int, int]:
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

    def decoded(self, part: Image, size: tuple[int, int]) -> PILImage:
        """Return the decoded image, RGB, of the size returned by `image_size`."""
        return media.decode_image(
            part.source,
            max_bytes=self._decoding.caps.image_bytes,
            max_pixels=size[0] * size[1],
            decoders=self._decoders(part),
        )

    def _decoders(self, part: Image) -> ForkServer | None:
        """Frames of videos were decoded in a separate process already."""
        return None if isinstance(part.source, FrameBytes) else self._decoding.decoders
