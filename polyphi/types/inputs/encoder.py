"""Inputs of encoders, which the model reads beside tokens, by modality."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Int
from torch import Tensor


def tensors(fields_of: Any) -> dict[str, Tensor]:
    """The tensors among the fields of a dataclass, by name."""
    values = ((f.name, getattr(fields_of, f.name)) for f in fields(fields_of))
    return {name: value for name, value in values if isinstance(value, Tensor)}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a modality's encoder: its items (images, clips, ...) in order.

    `layouts` has for each item what decides its number of tokens. `slots` are the positions in `Batch.ids` of the
    placeholders that the items fill, in order. `label_ids`, if a training objective needs them, give the text of items:
    rows (item, ..., token id). All other tensors are values that only the encoder reads.
    """

    NAME: ClassVar[str]
    """Name of the modality, where all inputs of a class have the same one."""
    SIZE_UNIT: ClassVar[str]
    """The unit that `size` counts, in the plural."""
    MAX_SIZE: ClassVar[int]
    """Largest `size` of one call of the encoder; a larger item runs alone."""

    layouts: tuple[Any, ...]
    slots: Int[Tensor, " n"] | None = None
    label_ids: Int[Tensor, "_ _"] | None = None

    @property
    def modality(self) -> str:
        """The name of the modality."""
        return self.NAME

    @property
    def tokens(self) -> list[int]:
        """The number of tokens of each item."""
        raise NotImplementedError

    @property
    def features(self) -> list[int] | None:
        """The number of rows of the encoder's output for each item; None where it isn't known."""
        return self.tokens

    @property
    def size(self) -> int:
        """The size of the inputs, with which the time and memory of the encoder grow."""
        raise NotImplementedError

    @property
    def padding_share(self) -> float:
        """Share of what the encoder reads that is padding."""
        return 0.0

    @property
    def identity(self) -> tuple[Tensor, ...]:
        """The tensors that tell items with equal layouts apart."""
        return tuple(t for name, t in self.tensors.items() if name not in ("slots", "label_ids"))

    def ready(self) -> Self:
        """The items in the form that the encoder reads."""
        return self

    def split(self) -> Iterator[Self]:
        """Each item as its own inputs, without slots and words, and without copying values."""
        raise NotImplementedError

    @classmethod
    def join(cls, parts: Sequence[Self], starts: Sequence[int] = ()) -> Self:
        """The items of several inputs, in order; `starts` is added to the slots of each."""
        tensors: dict[str, list[Tensor]] = {}
        items = 0
        for part, start in zip(parts, starts or [0] * len(parts), strict=True):
            for name, tensor in part.tensors.items():
                if name == "slots":
                    tensor = tensor + start
                if name == "label_ids":
                    tensor = torch.cat([tensor[:, :1] + items, tensor[:, 1:]], dim=1)
                tensors.setdefault(name, []).append(tensor)
            items += len(part.layouts)
        layouts = tuple(layout for part in parts for layout in part.layouts)
        # One part isn't copied: an hour of audio has 115 MB.
        joined = {n: torch.cat(each) if len(each) > 1 else each[0] for n, each in tensors.items()}
        return cls(layouts=layouts, **joined)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return tensors(self)

    def to(self, device: torch.device | str) -> Self:
        """A copy of the inputs on a device."""
        return replace(
            self,
            **{n: t.to(device, non_blocking=True) for n, t in self.tensors.items()},  # type: ignore[arg-type]
        )

    def without_values(self) -> "Inputs":
        """A copy of the inputs without values."""
        return Inputs(layouts=self.layouts, slots=self.slots, label_ids=self.label_ids)
