"""Pictures and clips -> what stands in their place, once each: the encoders run for new media only, several at a time
and in slices between which others get their tokens, and what they made is remembered within a budget of bytes.

An item's key is the hash of what the encoder reads (pixels, masks and layout, or log-mel frames and projector): two
pictures of equal bytes cut otherwise, or 30 x 150 pixels and 150 x 30, are two items.
"""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import Batch, float_crops, pictures, row
from polyphi.model.multimodal import PhiModel
from polyphi.model.slices import Slices

CROPS = 16
"""Crops of one call of the vision encoder."""
FRAMES = 12_000
"""Log-mel frames (10 ms) of one call of the audio encoder; a longer clip goes alone."""


@dataclass(frozen=True)
class Item:
    """One picture or clip of a prompt: its `key`, and the tokens `start` to `end` that stand for it."""

    kind: str
    key: bytes
    start: int
    end: int
    compact: Batch
    """The item alone: its crops (in 8 bits, where they came so) and layout, or its frames."""

    @property
    def source(self) -> Batch:
        """The item alone, its crops as the encoder reads them."""
        return float_crops(self.compact)

    @property
    def size(self) -> int:
        """Crops, or frames."""
        if self.compact.mels is not None:
            return len(self.compact.mels)
        return self.compact.crop_count


def items(prompt: Batch, salt: bytes = b"") -> list[Item]:
    """The pictures and clips of a prompt, each with its placeholders (which are neighbours). Under another `salt` the
    same picture is another item."""
    found: list[Item] = []
    if prompt.images:
        slots, seen = _slots(prompt.image_slots), 0
        for source in pictures(prompt):
            (layout,), pixels, masks = source.images, source.crops, source.crop_masks
            assert pixels is not None and masks is not None
            tokens = layout.tokens(masks.shape[-1] // 2)
            key = _key(salt, "image", repr(layout), pixels, masks)  # the view follows from them
            found.append(Item("image", key, slots[seen], slots[seen] + tokens, source))
            seen += tokens
    if prompt.clips:
        assert prompt.mels is not None
        slots, at, seen = _slots(prompt.audio_slots), 0, 0
        for clip in prompt.clips:
            mels = prompt.mels[at : at + clip.frames]
            key = _key(salt, "audio", repr(clip), mels)
            source = row([0], mels=mels, clips=(clip,))
            found.append(Item("audio", key, slots[seen], slots[seen] + clip.tokens, source))
            at, seen = at + clip.frames, seen + clip.tokens
    return sorted(found, key=lambda item: item.start)


def _slots(slots: Tensor | None) -> list[int]:
    return [] if slots is None else slots.tolist()


def _key(salt: bytes, kind: str, layout: str, *tensors: Tensor) -> bytes:
    found = hashlib.sha256(salt + f"{kind} {layout}".encode())
    for tensor in tensors:
        found.update(f" {tuple(tensor.shape)} {tensor.dtype} ".encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return found.digest()


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
            self.encoded(self._group[0].kind, self._seconds + time.monotonic() - began)
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
        """Items of one kind that one call takes. By turns the group begins with the item that has waited longest and
        with the smallest: a small picture doesn't wait for all large ones, nor they for all small ones."""
        self._oldest_first = not self._oldest_first
        first = new[0] if self._oldest_first else min(new, key=lambda item: item.size)
        most = CROPS if first.kind == "image" else FRAMES
        group, size = [first], first.size
        others = (item for item in new if item.kind == first.kind and item is not first)
        for item in sorted(others, key=lambda item: item.size):
            if size + item.size > most:
                break
            group.append(item)
            size += item.size
        return group

    def _run(self, group: Sequence[Item]) -> Slices[dict[bytes, Tensor]]:
        sources = [item.source for item in group]
        device = self._model.decoder.device
        if group[0].kind == "image":
            batch = row(
                [0],
                crops=torch.cat([s.crops for s in sources if s.crops is not None]),
                crop_masks=torch.cat([s.crop_masks for s in sources if s.crop_masks is not None]),
                images=tuple(layout for s in sources for layout in s.images),
            )
            made = yield from self._model.image_slices(batch.to(device))
        else:
            batch = row(
                [0],
                mels=torch.cat([s.mels for s in sources if s.mels is not None]),
                clips=tuple(clip for s in sources for clip in s.clips),
            )
            made = yield from self._model.audio_slices(batch.to(device))
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
