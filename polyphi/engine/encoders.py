"""Images and audio clips -> embeddings for their placeholders, once each: the encoders run for new media only, several
at a time and in slices between decoding steps, and embeddings are cached within a budget of bytes.

An item's key is the hash of what the encoder reads (pixels, masks and layout, or log-mel frames and projector): two
images of equal bytes cut otherwise, or 30 x 150 pixels and 150 x 30, are two items.
"""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.devices.memory import ran_out
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.multimodal import PreparedTower
from polyphi.prepared.prepare import prepare
from polyphi.runtime.steps import Steps
from polyphi.types.batch import Batch
from polyphi.types.inputs.encoder import Inputs


@dataclass(frozen=True)
class MediaItem:
    """One item of a prompt's inputs: its cache `key`, its placeholder tokens `start` to `end`, and what the encoder
    reads."""

    key: bytes
    start: int
    end: int
    inputs: Inputs

    @property
    def modality(self) -> str:
        return self.inputs.modality

    @property
    def size(self) -> int:
        """The size of the item, with which the encoder's time grows."""
        return self.inputs.size


def items(prompt: Batch, salt: bytes = b"") -> list[MediaItem]:
    """The items of a prompt's inputs, each with its placeholders (which are contiguous). With another `salt` the same
    item has another key."""
    result: list[MediaItem] = []
    for name, inputs in prompt.inputs.items():
        slots = [] if inputs.slots is None else inputs.slots.tolist()
        offset = 0
        for item in inputs.split():
            (layout,), (tokens,) = item.layouts, item.tokens
            key = _key(salt, name, repr(layout), *item.identity)
            result.append(MediaItem(key, slots[offset], slots[offset] + tokens, item))
            offset += tokens
    return sorted(result, key=lambda item: item.start)


def _key(salt: bytes, modality: str, layout: str, *tensors: Tensor) -> bytes:
    hasher = hashlib.sha256(salt + f"{modality} {layout}".encode())
    for tensor in tensors:
        hasher.update(f" {tuple(tensor.shape)} {tensor.dtype} ".encode())
        hasher.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return hasher.digest()


@dataclass
class Group:
    """Items that one call of an encoder reads, its slices, and the seconds that these took so far."""

    items: Sequence[MediaItem]
    slices: Steps[dict[bytes, Tensor]]
    seconds: float = 0.0

    @property
    def is_large(self) -> bool:
        """Whether the group is a single item that is larger than calls otherwise are, such as an hour of audio."""
        return self.items[0].size > self.items[0].inputs.MAX_SIZE


class EncoderError(RuntimeError):
    """An encoder failed on an item, whose `key` it names; other items continue."""

    def __init__(self, key: bytes, modality: str, cause: Exception) -> None:
        # Other exceptions may name files of this machine.
        detail = str(cause) if isinstance(cause, ValueError) else type(cause).__name__
        super().__init__(f"the encoder of {modality} failed: {detail}")
        self.key = key


class Encoders:
    """The model's encoders with an LRU cache of at most `budget` bytes of embeddings."""

    def __init__(self, model: PhiModel, budget: int) -> None:
        self._model = prepare(model)
        self._budget = budget
        self._cache: OrderedDict[bytes, Float[Tensor, "n D"]] = OrderedDict()
        self.bytes = 0
        self.calls = 0
        """Items encoded so far."""
        self.queries = self.hits = 0
        """Items requested so far, and those of them that were cached."""
        self.on_encode: Callable[[str, float], None] = lambda modality, seconds: None
        """Function that is called after each call of an encoder with the modality and the call's duration."""
        self._groups: list[Group] = []
        """Groups in progress: one, or a large one and another; the first runs next."""
        self._alone: set[bytes] = set()
        """Items of a group in which an encoder failed, which run one by one."""
        self._oldest_first = False

    def clear(self) -> None:
        """Empty the cache and drop the groups in progress."""
        self.drop()
        self._cache.clear()
        self.bytes = 0

    def encode(self, requested: Sequence[MediaItem]) -> dict[bytes, Float[Tensor, "n D"]]:
        """Embeddings by key, from the cache or encoded in as few calls as the sizes allow."""
        result: dict[bytes, Tensor] = {}
        while pending := [item for item in requested if item.key not in result]:
            result |= self.advance(pending, math.inf)
        return result

    @torch.inference_mode()
    def advance(
        self, requested: Sequence[MediaItem], seconds: float
    ) -> dict[bytes, Float[Tensor, "n D"]]:
        """Encodes requested items for about `seconds`: at least one slice, and at most to the end of a group of items.
        Returns the embeddings available now, by key. A group of which nothing is requested any more is dropped. Other
        items don't wait for a large one: calls run slices of it and of their groups in turn. Raises EncoderError where
        an encoder fails on an item."""
        new: dict[bytes, MediaItem] = {}
        available: dict[bytes, Tensor] = {}
        for item in requested:
            if item.key in available:
                continue
            if item.key in self._cache:
                self._cache.move_to_end(item.key)
                self.queries, self.hits = self.queries + 1, self.hits + 1
                available[item.key] = self._cache[item.key]
            else:
                new[item.key] = item
        self._groups = [g for g in self._groups if any(item.key in new for item in g.items)]
        if not new:
            return available
        self._start(new.values())
        group = self._groups.pop(0)
        began = time.monotonic()
        try:
            next(group.slices)
            while time.monotonic() - began < seconds:
                next(group.slices)
        except StopIteration as end:
            available |= end.value
            self.on_encode(group.items[0].modality, group.seconds + time.monotonic() - began)
            return available
        except BaseException as error:
            if not isinstance(error, Exception) or ran_out(error):
                self.drop()
                raise
            if len(group.items) == 1:
                item = group.items[0]
                raise EncoderError(item.key, item.modality, error) from error
            self._alone = {item.key for item in group.items}
            return available
        group.seconds += time.monotonic() - began
        self._groups.append(group)
        return available

    def drop(self) -> None:
        """Drop the groups in progress."""
        self._groups = []

    @property
    def group(self) -> list[MediaItem]:
        """The items of all groups in progress."""
        return [item for group in self._groups for item in group.items]

    def _start(self, new: Iterable[MediaItem]) -> None:
        """Begin a group, if none is in progress or only a large one: minutes of an encoder hold up no small item."""
        running = {item.key for item in self.group}
        waiting = [item for item in new if item.key not in running]
        if self._groups:
            if len(self._groups) > 1 or not self._groups[0].is_large:
                return
            waiting = [item for item in waiting if item.size <= item.inputs.MAX_SIZE]
        if waiting:
            items = self._next_group(waiting)
            self._groups.append(Group(items, self._run(items)))

    def _next_group(self, new: Sequence[MediaItem]) -> list[MediaItem]:
        """Items of one modality for one call. Groups start in turn with the item that has waited longest and with the
        smallest: a small image doesn't wait for all large ones, nor a large one for all small ones."""
        self._oldest_first = not self._oldest_first
        first = new[0] if self._oldest_first else min(new, key=lambda item: item.size)
        group, size = [first], first.size
        if first.key in self._alone:
            return group
        others = (
            item
            for item in new
            if item.modality == first.modality and item is not first and item.key not in self._alone
        )
        for item in sorted(others, key=lambda item: item.size):
            if size + item.size > first.inputs.MAX_SIZE:
                break
            group.append(item)
            size += item.size
        return group

    def _run(self, group: Sequence[MediaItem]) -> Steps[dict[bytes, Tensor]]:
        device = self._model.decoder.device
        # Made ready before they are joined: a group may have images in uint8 and in float.
        parts = [item.inputs.ready() for item in group]
        tower = self._model.tower(parts[0].modality)
        if not isinstance(tower, PreparedTower):  # of a modality that was added later
            tower = prepare(tower)
        embeddings = yield from tower.slices(type(parts[0]).join(parts).to(device))
        self.calls += len(group)
        self.queries += len(group)
        each = embeddings.split([item.end - item.start for item in group])
        for item, part in zip(group, each, strict=True):
            # A view would keep the whole group's tensor in memory.
            self._store(item.key, part if len(group) == 1 else part.clone())
        return {item.key: part for item, part in zip(group, each, strict=True)}

    def _store(self, key: bytes, embeddings: Tensor) -> None:
        size = embeddings.numel() * embeddings.element_size()
        if size > self._budget:
            return
        self._cache[key] = embeddings
        self.bytes += size
        while self.bytes > self._budget:
            _, evicted = self._cache.popitem(last=False)
            self.bytes -= evicted.numel() * evicted.element_size()
