"""Images and audio clips -> embeddings for their placeholders, once each: the encoders run for new media only, several
at a time and in slices between decoding steps, and embeddings are cached within a budget of bytes.

An item's key is the hash of what the encoder reads (pixels, masks and layout, or log-mel frames and projector): two
images of equal bytes cut otherwise, or 30 x 150 pixels and 150 x 30, are two items.
"""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import AudioInput, Batch, ImageInput
from polyphi.model.multimodal import PhiModel
from polyphi.model.slices import Slices

CROPS = 16
"""Crops of one call of the vision encoder."""
FRAMES = 12_000
"""Log-mel frames (10 ms) of one call of the audio encoder; a longer clip goes alone."""


@dataclass(frozen=True)
class Item:
    """One image or audio clip of a prompt: its `key`, its placeholder tokens `start` to `end`, and the encoder's input,
    crops in 8 bits where the prompt has them so."""

    modality: Literal["image", "audio"]
    key: bytes
    start: int
    end: int
    media: ImageInput | AudioInput

    @property
    def size(self) -> int:
        """Crops, or frames."""
        media = self.media
        return media.crop_count if isinstance(media, ImageInput) else len(media.mels)


def items(prompt: Batch, salt: bytes = b"") -> list[Item]:
    """The images and audio clips of a prompt, each with its placeholders (which are neighbours). Under another `salt`
    the same image is another item."""
    result: list[Item] = []
    if prompt.images:
        slots, seen = _slots(prompt.image_slots), 0
        for image in prompt.image_input.split():
            (layout,) = image.layouts
            tokens = layout.tokens(image.masks.shape[-1] // 2)
            # The view follows from the crops.
            key = _key(salt, "image", repr(layout), image.crops, image.masks)
            result.append(Item("image", key, slots[seen], slots[seen] + tokens, image))
            seen += tokens
    if prompt.clips:
        slots, seen = _slots(prompt.audio_slots), 0
        for audio in prompt.audio_input.split():
            (clip,) = audio.clips
            key = _key(salt, "audio", repr(clip), audio.mels)
            result.append(Item("audio", key, slots[seen], slots[seen] + clip.tokens, audio))
            seen += clip.tokens
    return sorted(result, key=lambda item: item.start)


def _slots(slots: Tensor | None) -> list[int]:
    return [] if slots is None else slots.tolist()


def _key(salt: bytes, modality: str, layout: str, *tensors: Tensor) -> bytes:
    hasher = hashlib.sha256(salt + f"{modality} {layout}".encode())
    for tensor in tensors:
        hasher.update(f" {tuple(tensor.shape)} {tensor.dtype} ".encode())
        hasher.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return hasher.digest()


class Encoders:
    """The model's encoders and what they made last, at most `budget` bytes of it."""

    def __init__(self, model: PhiModel, budget: int) -> None:
        self._model = model
        self._budget = budget
        self._made: OrderedDict[bytes, Float[Tensor, "n D"]] = OrderedDict()
        self.bytes = 0
        self.calls = 0
        """Items encoded so far."""
        self.queries = self.hits = 0
        """Items asked for so far, and those of them that were remembered."""
        self.encoded: Callable[[str, float], None] = lambda kind, seconds: None
        """Hears of each call of an encoder: "image" or "audio", and how long it took."""
        self._group: list[Item] = []
        self._slices: Slices[dict[bytes, Tensor]] | None = None
        self._seconds = 0.0  # that the group has taken so far
        self._oldest_first = False

    def forget(self) -> None:
        """All that was made, and what is being made."""
        self.drop()
        self._made.clear()
        self.bytes = 0

    def known(self, key: bytes) -> Float[Tensor, "n D"] | None:
        """What stands for that item, if it is remembered."""
        if key in self._made:
            self._made.move_to_end(key)
        return self._made.get(key)

    def encode(self, wanted: Sequence[Item]) -> dict[bytes, Float[Tensor, "n D"]]:
        """Embeddings by key: remembered ones, and new ones made in as few calls as their sizes allow."""
        found: dict[bytes, Tensor] = {}
        while left := [item for item in wanted if item.key not in found]:
            found |= self.advance(left, math.inf)
        return found

    @torch.inference_mode()
    def advance(self, wanted: Sequence[Item], seconds: float) -> dict[bytes, Float[Tensor, "n D"]]:
        """Goes on encoding what is wanted for about so many seconds, at least one slice and at most to the end of a
        group of items. Gives the embeddings that are there by now, by key. What was begun and is wanted no more is
        dropped."""
        new: dict[bytes, Item] = {}
        found: dict[bytes, Tensor] = {}
        for item in wanted:
            if item.key in found:
                continue
            if (known := self.known(item.key)) is not None:
                self.queries, self.hits = self.queries + 1, self.hits + 1
                found[item.key] = known
            else:
                new[item.key] = item
        if not any(item.key in new for item in self._group):
            self.drop()
        if not new:
            return found
        if self._slices is None:
            self._group = self._next_group(list(new.values()))
            self._slices = self._run(self._group)
        began = time.monotonic()
        try:
            next(self._slices)
            while time.monotonic() - began < seconds:
                next(self._slices)
        except StopIteration as end:
            found |= end.value
            self.encoded(self._group[0].modality, self._seconds + time.monotonic() - began)
            self.drop()
            return found
        except BaseException:
            self.drop()
            raise
        self._seconds += time.monotonic() - began
        return found

    def drop(self) -> None:
        """Lets go of the group that is being encoded."""
        self._group, self._slices, self._seconds = [], None, 0.0

    @property
    def group(self) -> list[Item]:
        """Items that are being encoded."""
        return self._group

    def _next_group(self, new: Sequence[Item]) -> list[Item]:
        """Items of one modality that one call takes. By turns the group begins with the item that has waited longest
        and with the smallest: a small image doesn't wait for all large ones, nor they for all small ones."""
        self._oldest_first = not self._oldest_first
        first = new[0] if self._oldest_first else min(new, key=lambda item: item.size)
        most = CROPS if first.modality == "image" else FRAMES
        group, size = [first], first.size
        others = (item for item in new if item.modality == first.modality and item is not first)
        for item in sorted(others, key=lambda item: item.size):
            if size + item.size > most:
                break
            group.append(item)
            size += item.size
        return group

    def _run(self, group: Sequence[Item]) -> Slices[dict[bytes, Tensor]]:
        device = self._model.decoder.device
        if group[0].modality == "image":
            # Made floats before they are joined: images of a group may have come in 8 bits or as floats.
            images = [i.media.float_crops() for i in group if isinstance(i.media, ImageInput)]
            made = yield from self._model.image_slices(ImageInput.join(images).to(device))
        else:
            audio = [i.media for i in group if isinstance(i.media, AudioInput)]
            made = yield from self._model.audio_slices(AudioInput.join(audio).to(device))
        self.calls += len(group)
        self.queries += len(group)
        parts = made.split([item.end - item.start for item in group])
        for item, part in zip(group, parts, strict=True):
            # A part of a larger tensor would keep all of it in memory.
            self._keep(item.key, part if len(group) == 1 else part.clone())
        return {item.key: part for item, part in zip(group, parts, strict=True)}

    def _keep(self, key: bytes, made: Tensor) -> None:
        size = made.numel() * made.element_size()
        if size > self._budget:
            return
        self._made[key] = made
        self.bytes += size
        while self.bytes > self._budget:
            _, gone = self._made.popitem(last=False)
            self.bytes -= gone.numel() * gone.element_size()
