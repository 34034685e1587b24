"""Draws: the rows of a sample, or the reason why there are none. Random access: any process can make any draw."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from polyphi.data.mix import Order
from polyphi.data.packing import RowSize
from polyphi.data.sample import Sample, SampleSource, Unfit
from polyphi.processing.processor import TooLong
from polyphi.types.batch import Batch

MakeRows = Callable[[str, Sample], list[Batch]]
"""(corpus, sample) -> the sample's rows. Raises `TooLong` or `Unfit` if the sample is valid but unusable, another
ValueError if it is damaged."""


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out, with the reason. "corrupt" is an unreadable image, audio or row, or a fresh sample
    whose generator fails."""

    corpus: str
    id: str
    category: Literal["corrupt", "too_long", "unfit"]
    reason: str

    @property
    def name(self) -> str:
        return f"{self.corpus}/{self.id}"

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Draw:
    """Result of a draw: rows (empty if another process has them), their `size`, and the number of tokens `lost` by
    truncation to the context; or the reason why there are none."""

    corpus: str
    id: str
    rows: list[Batch]
    size: RowSize = field(default_factory=RowSize)
    lost: int = 0
    skipped: Skipped | None = None

    @property
    def name(self) -> str:
        return f"{self.corpus}/{self.id}"


class Draws:
    """The draws of process `rank` of `world`, by number: `draws[i]` is one of the i-th group of `world` draws. Its
    position in the group differs from group to group, so that no periodic mix gives one process all images."""

    def __init__(
        self,
        order: Order,
        sources: Mapping[str, SampleSource],
        make_rows: MakeRows,
        rank: int,
        world: int,
    ) -> None:
        self._order = order
        self._sources = sources
        self._make_rows = make_rows
        self._rank = rank
        self._world = world

    def __deepcopy__(self, memo: dict[int, Any]) -> "Draws":
        """Return another reader of the same draws, without shared state."""
        order, sources = copy.deepcopy((self._order, self._sources), memo)
        return Draws(order, sources, self._make_rows, self._rank, self._world)

    def __getitem__(self, group: int) -> Draw:
        return self.make(self.numbers(group)[self._rank])

    def numbers(self, group: int) -> list[int]:
        """Return the number of each process's draw in a group."""
        offset = int.from_bytes(hashlib.sha256(str(group).encode()).digest()[:8], "big")
        return [group * self._world + (r + offset) % self._world for r in range(self._world)]

    def make(self, number: int) -> Draw:
        """Return draw `number`, of any process."""
        corpus, index = self._order.draw(number)
        source = self._sources[corpus]
        id = source.id(index)
        category: Literal["corrupt", "too_long", "unfit"]
        try:
            rows = self._make_rows(corpus, source.sample(index))
            return Draw(corpus, id, rows, RowSize.of(rows), sum(r.lost for r in rows))
        except TooLong as error:
            category, reason = "too_long", str(error)
        except Unfit as error:
            category, reason = "unfit", str(error)
        except ValueError as error:
            category, reason = "corrupt", str(error)
        return Draw(corpus, id, [], skipped=Skipped(corpus, id, category, reason))
