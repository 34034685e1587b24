"""The stream of steps: draws become rows, rows fill a step's token budget. Its whole state is the number of draws made.

A step takes draws while they fit `batch_tokens`; a sample that doesn't fit `context` is skipped and counted. The next step is made
by a thread while the current one trains; the stream is the same with and without it.
"""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from polyphi.batch import Batch
from polyphi.data.mix import Order
from polyphi.data.shards import Sample, Shards

MakeRows = Callable[[str, Sample], list[Batch]]
"""(corpus, sample) -> the sample's rows; ValueError where it doesn't fit."""

LONGEST_DROUGHT = 1000
"""Draws in a row that may be skipped before the mix is declared unusable."""


@dataclass(frozen=True)
class Step:
    """One step's samples (each a list of rows), their ids, and the number of draws made after it."""

    samples: list[list[Batch]]
    ids: list[str]
    draws: int
    skipped: int

    @property
    def tokens(self) -> int:
        return sum(len(row) for rows in self.samples for row in rows)

    def fingerprint(self) -> str:
        """Short hash of the ids in order."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()[:12]


class Loader:
    """Steps of about `batch_tokens` tokens over all processes, from draw `start` on."""

    def __init__(
        self,
        weights: Mapping[str, float],
        folder: Path,
        make_rows: MakeRows,
        *,
        batch_tokens: int,
        seed: int,
        start: int = 0,
        split: str = "train",
    ) -> None:
        self._shards = {name: Shards(Path(folder) / name / split) for name in weights}
        self._order = Order(weights, {name: len(s) for name, s in self._shards.items()}, seed)
        self._make_rows = make_rows
        self._batch_tokens = batch_tokens
        self._draws = start
        self.manifests = {name: s.manifest for name, s in self._shards.items()}

    def step(self) -> Step:
        """The next step. Raises ValueError if nothing fits."""
        samples: list[list[Batch]] = []
        ids: list[str] = []
        tokens = skipped = drought = 0
        while tokens < self._batch_tokens:
            name, index = self._order.draw(self._draws)
            sample = self._shards[name][index]
            try:
                rows = self._make_rows(name, sample)
            except ValueError as reason:
                self._draws, skipped, drought = self._draws + 1, skipped + 1, drought + 1
                if drought == LONGEST_DROUGHT:
                    raise ValueError(f"{drought} samples in a row could not be used, the last from {name}: {reason}") from None
                continue
            size = sum(map(len, rows))
            if samples and tokens + size > self._batch_tokens:
                break
            self._draws, drought = self._draws + 1, 0
            samples.append(rows)
            ids.append(f"{name}/{sample.id}")
            tokens += size
        return Step(samples, ids, self._draws, skipped)

    def ahead(self, steps: int) -> Iterator[Step]:
        """The next `steps` steps, each made while the one before is used."""
        ready: queue.Queue[Step | BaseException] = queue.Queue(maxsize=2)
        stop = threading.Event()

        def work() -> None:
            for _ in range(steps):
                try:
                    item: Step | BaseException = self.step()
                except BaseException as error:
                    item = error
                while not stop.is_set():
                    try:
                        ready.put(item, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if stop.is_set() or isinstance(item, BaseException):
                    return

        thread = threading.Thread(target=work, daemon=True, name="loader")
        thread.start()
        try:
            for _ in range(steps):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()
