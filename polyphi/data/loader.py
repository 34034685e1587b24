"""The stream of steps: draws become rows, rows fill a step's token budget. Its whole state is the number of draws
made.

A step takes draws in order while they fit `batch_tokens` (the first always does); a sample that makes no row, for
example one longer than the context, is left out and counted. A thread makes the next steps while one trains; the
stream is the same without it.
"""

import hashlib
import queue
import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polyphi.batch import Batch
from polyphi.data.mix import Order
from polyphi.data.shards import Sample, Shards

MakeRows = Callable[[str, Sample], list[Batch]]
"""(corpus, sample) -> the sample's rows; ValueError where it can't be used."""

LONGEST_DROUGHT = 1000
"""Samples of a corpus in a row that may be left out (a small corpus: all of it, once) before the mix is declared
unusable."""
STEPS_AHEAD = 2
"""Finished steps that wait for the one in training."""


@dataclass(frozen=True)
class Step:
    """One step's samples (each a list of rows), their ids, and the number of draws made after it: where the next
    begins. `skipped` tells of each sample left out: (corpus, why)."""

    samples: list[list[Batch]]
    ids: list[str]
    draws: int
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(len(row) for rows in self.samples for row in rows)

    def without(self, ids: Collection[str]) -> "Step":
        """The step without the samples of these ids."""
        if not set(ids) & set(self.ids):
            return self
        kept = [(s, i) for s, i in zip(self.samples, self.ids, strict=True) if i not in ids]
        return replace(self, samples=[s for s, _ in kept], ids=[i for _, i in kept])

    def fingerprint(self) -> str:
        """Short hash of the ids in order."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()[:12]


class Loader:
    """Steps of at most `batch_tokens` tokens over all processes. `folder` holds a corpus folder per name in
    `weights`."""

    def __init__(
        self,
        weights: Mapping[str, float],
        folder: Path,
        make_rows: MakeRows,
        *,
        batch_tokens: int,
        seed: int,
        split: str = "train",
        curriculum: Collection[str] = (),
        late: Mapping[str, int] | None = None,
    ) -> None:
        self._shards = {name: Shards(Path(folder) / name / split) for name in weights}
        sizes = {name: len(s) for name, s in self._shards.items()}
        self._order = Order(weights, sizes, seed, curriculum, late)
        self._make_rows = make_rows
        self._batch_tokens = batch_tokens
        self._draws = 0
        self._drought: Counter[str] = Counter()
        self.manifests: dict[str, dict[str, Any]] = {
            name: s.manifest for name, s in self._shards.items()
        }

    def state(self) -> int:
        """Draws made. While `ahead` runs, the thread may be further than the steps that were handed out: then a
        step's own `draws` is the state after it."""
        return self._draws

    def restore(self, draws: int) -> None:
        """Go on from a state."""
        self._draws = draws

    def step(self) -> Step:
        """The next step. Raises ValueError if a corpus gives nothing that can be used."""
        samples: list[list[Batch]] = []
        ids: list[str] = []
        skipped: list[tuple[str, str]] = []
        tokens = 0
        while tokens < self._batch_tokens:
            name, index = self._order.draw(self._draws)
            sample = self._shards[name][index]
            try:
                rows = self._make_rows(name, sample)
            except ValueError as error:
                reason = f"{name}/{sample.id}: {error}"
                self._refuse(name, reason)
                skipped.append((name, reason))
                self._draws += 1
                continue
            size = sum(map(len, rows))
            if samples and tokens + size > self._batch_tokens:
                break
            self._drought[name] = 0
            self._draws += 1
            samples.append(rows)
            ids.append(f"{name}/{sample.id}")
            tokens += size
        return Step(samples, ids, self._draws, skipped)

    def _refuse(self, name: str, reason: str) -> None:
        self._drought[name] += 1
        if self._drought[name] >= max(8, min(LONGEST_DROUGHT, len(self._shards[name]))):
            raise ValueError(
                f"{self._drought[name]} samples of {name!r} in a row could not be used, the last {reason}; "
                "give the stage a longer context or leave the corpus out of its mix"
            )

    def ahead(self, steps: int) -> Generator[Step, None, None]:
        """The next `steps` steps, made by a thread. Close the iterator (`contextlib.closing`) to end the thread
        early."""
        ready: queue.Queue[Step | BaseException] = queue.Queue(maxsize=STEPS_AHEAD)
        stop = threading.Event()

        def hand_out(item: Step | BaseException) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for _ in range(steps):
                    hand_out(self.step())
                    if stop.is_set():
                        return
            except BaseException as error:
                hand_out(error)

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
