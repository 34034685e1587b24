"""The stream of steps: draws become rows, rows fill a step's token budget. Its whole state is the number of draws
made.

A step takes draws in order while they fit `batch_tokens` (the first always does); a sample that makes no row, for
example one longer than the context, is left out and counted. Who makes the rows changes nothing: this process, a
thread, worker processes (workers.py), or other processes of a group, each of which makes its own part::

    draw          0    1    2    3    4    5  ...          each group of as many draws as processes is dealt anew
    process       1    0    0    1    1    0

Then every process knows what each sample holds, and has the rows of its own.
"""

import copy
import hashlib
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from polyphi.batch import Batch
from polyphi.data import workers as processes
from polyphi.data.draws import Draw, Draws, MakeRows, Skipped
from polyphi.data.fresh import Fresh
from polyphi.data.mix import Order
from polyphi.data.packing import Size
from polyphi.data.shards import Shards, place
from polyphi.runtime import distributed

LONGEST_DROUGHT = 1000
"""Samples of a corpus in a row that may be left out (a small corpus: all of it, once) before the mix is declared
unusable."""
CORRUPT_SHARE, CORRUPT_LEAST = 0.01, 20
"""The data are declared unusable when more than 1 % of the draws so far, and at least 20, were damaged samples."""
STEPS_AHEAD = 2
"""Steps' worth of tokens that a thread holds ready for the one in training."""
ROUND = 8
"""Draws that each process of a group makes before they tell each other what those hold."""


@dataclass(frozen=True)
class Step:
    """One step. `ids`, `sizes`, `numbers` (of their draws) and `processes` are those of all its samples, `samples` the
    rows of each that process `rank`, this one, has. `draws` is the number of draws made after it: where the next
    begins. `skipped` tells of samples left out, `cut` counts samples that were cut at the context and `lost` the tokens
    cut off; `corrupt` counts damaged samples since the first step of the run."""

    samples: list[list[Batch]]
    ids: list[str]
    sizes: list[Size]
    numbers: list[int]
    processes: list[int]
    draws: int
    make: Callable[[int], Draw]
    rank: int = 0
    world: int = 1
    skipped: list[Skipped] = field(default_factory=list)
    cut: int = 0
    lost: int = 0
    corrupt: int = 0

    @property
    def tokens(self) -> int:
        return sum(size.tokens for size in self.sizes)

    def own_ids(self) -> list[str]:
        """The ids of `samples`."""
        return [i for i, p in zip(self.ids, self.processes, strict=True) if p == self.rank]

    def others(self) -> list[list[Size]]:
        """What the samples of each other process hold."""
        placed = list(zip(self.sizes, self.processes, strict=True))
        return [
            [size for size, process in placed if process == other]
            for other in range(self.world)
            if other != self.rank
        ]

    def spare(self) -> list[Batch]:
        """The rows of the step's smallest sample where this process has no sample, else none."""
        if self.samples:
            return []
        smallest = min(range(len(self.ids)), key=lambda i: self.sizes[i].tokens)
        return self.make(self.numbers[smallest]).rows

    def without(self, ids: Collection[str]) -> "Step":
        """The step without the samples of these ids."""
        kept = [i for i, name in enumerate(self.ids) if name not in ids]
        mine = zip(self.own_ids(), self.samples, strict=True)
        return replace(
            self,
            samples=[rows for name, rows in mine if name not in ids],
            ids=[self.ids[i] for i in kept],
            sizes=[self.sizes[i] for i in kept],
            numbers=[self.numbers[i] for i in kept],
            processes=[self.processes[i] for i in kept],
        )

    def fingerprint(self) -> str:
        """Short hash of the ids in order."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Group:
    """The processes that read a mix in parallel: this one's `rank` of `world`, and `exchange`, which returns the draws
    of every process, given this one's."""

    rank: int = 0
    world: int = 1
    exchange: Callable[[list[Draw]], Sequence[list[Draw]]] = distributed.all_gather


class Loader:
    """Steps of at most `batch_tokens` tokens over all processes. `folder`, a path or an address (shards.py), holds a
    corpus folder per name in `weights`; corpora named in `fresh` are drawn from there instead (fresh.py).

    `workers` processes make the rows; 0: this one. In a `group` each process makes the rows of its part.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        folder: Path | str,
        make_rows: MakeRows,
        *,
        batch_tokens: int,
        seed: int,
        split: str = "train",
        curriculum: Collection[str] = (),
        late: Mapping[str, int] | None = None,
        fresh: Mapping[str, Fresh] = {},
        workers: int = 0,
        group: Group = Group(),
    ) -> None:
        shards = {n: Shards(place(folder, n, split)) for n in weights if n not in fresh}
        sources = {name: fresh.get(name) or shards[name] for name in weights}
        self._sizes = {n: len(shards[n]) if n in shards else None for n in weights}
        windows = {name: s.window for name, s in shards.items()}
        order = Order(weights, self._sizes, seed, curriculum, late, windows)
        self.source = Draws(order, sources, make_rows, group.rank, group.world)
        self._again = copy.deepcopy(self.source)  # not in use by the thread
        self._batch_tokens = batch_tokens
        self._workers = workers
        self._rank, self._world, self._exchange = group.rank, group.world, group.exchange
        self._drought: Counter[str] = Counter()
        self._damaged: deque[str] = deque(maxlen=CORRUPT_LEAST)
        self._made: Generator[Draw, None, None] | None = None
        self._ahead = False
        self.restore(0)
        self.manifests: dict[str, dict[str, Any]] = {n: s.manifest for n, s in sources.items()}

    def state(self) -> int:
        """Draws made."""
        return self._draws

    def restore(self, draws: int, corrupt: int = 0) -> None:
        """Go on after so many draws, of which so many were damaged samples."""
        self.close()
        self._draws = draws
        self._corrupt = corrupt
        self._group = draws // self._world
        self._ready: deque[tuple[int, Draw]] = deque()
        self._behind = draws % self._world  # draws of the first group that belong to the past

    def close(self) -> None:
        """End the worker processes; the next step starts them again."""
        if self._made is not None:
            self._made.close()
            self._made = None
            # What was made but not used is made again.
            self.restore(self._draws, self._corrupt)

    def step(self) -> Step:
        """The next step. Raises ValueError if a corpus gives nothing that can be used, or too much is damaged."""
        taken: list[tuple[int, int, Draw]] = []  # number, process, draw
        skipped: list[Skipped] = []
        tokens = 0
        while tokens < self._batch_tokens:
            if not self._ready:
                self._round()
            process, draw = self._ready[0]
            if draw.skipped is None:
                if taken and tokens + draw.size.tokens > self._batch_tokens:
                    break  # it stays the next
                self._drought[draw.corpus] = 0
                taken.append((self._draws, process, draw))
                tokens += draw.size.tokens
            self._ready.popleft()
            self._draws += 1
            if draw.skipped is not None:
                self._refuse(draw.skipped)
                skipped.append(draw.skipped)
        draws = [draw for _, _, draw in taken]
        return Step(
            [draw.rows for _, process, draw in taken if process == self._rank],
            [draw.name for draw in draws],
            [draw.size for draw in draws],
            [number for number, _, _ in taken],
            [process for _, process, _ in taken],
            self._draws,
            self._again.make,
            self._rank,
            self._world,
            skipped,
            cut=sum(draw.lost > 0 for draw in draws),
            lost=sum(draw.lost for draw in draws),
            corrupt=self._corrupt,
        )

    def _round(self) -> None:
        """More draws: this process's own, and what the others tell of theirs."""
        if self._made is None:
            self._made = self._make()
        if self._world == 1:
            self._ready.append((0, next(self._made)))
            return
        own = [next(self._made) for _ in range(ROUND)]
        told = self._exchange([replace(draw, rows=[]) for draw in own])
        for i in range(ROUND):
            numbers = self.source.numbers(self._group)
            for r in sorted(range(self._world), key=numbers.__getitem__):
                self._ready.append((r, own[i] if r == self._rank else told[r][i]))
            self._group += 1
        for _ in range(self._behind):
            self._ready.popleft()
        self._behind = 0

    def _refuse(self, skipped: Skipped) -> None:
        name = skipped.corpus
        self._drought[name] += 1
        size = self._sizes[name] or LONGEST_DROUGHT
        if self._drought[name] >= max(8, min(LONGEST_DROUGHT, size)):
            raise ValueError(
                f"{self._drought[name]} samples of {name!r} in a row could not be used, the last {skipped}; "
                "give the stage a longer context or leave the corpus out of its mix"
            )
        if skipped.kind != "corrupt":
            return
        self._corrupt += 1
        self._damaged.append(skipped.name)
        if self._corrupt >= CORRUPT_LEAST and self._corrupt > CORRUPT_SHARE * self._draws:
            raise ValueError(
                f"{self._corrupt} of {self._draws} samples are damaged, more than {CORRUPT_SHARE:.0%}; the last "
                f"{skipped}; build or copy these corpora again: {', '.join(self._damaged)}"
            )

    def _make(self) -> Generator[Draw, None, None]:
        """This process's draws from where its state is, by whoever makes them."""
        start, source = self._group, self.source
        if self._workers:
            made = processes.draws(source, start, self._workers)
        else:
            made = (source[group] for group in count(start))
        most = STEPS_AHEAD * self._batch_tokens // self._world
        return _threaded(made, most) if self._ahead else made

    def steps(self, number: int, *, ahead: bool = False) -> Generator[Step, None, None]:
        """The next so many steps; `ahead`: a thread makes draws while one is in use. Close the iterator
        (`contextlib.closing`) to end thread and worker processes early."""
        self.close()
        self._ahead = ahead
        try:
            for _ in range(number):
                yield self.step()
        finally:
            self._ahead = False
            self.close()


def _threaded(draws: Generator[Draw, None, None], most: int) -> Generator[Draw, None, None]:
    """The same draws, made by a thread until those that wait have `most` tokens."""
    ready: queue.SimpleQueue[Draw | BaseException] = queue.SimpleQueue()
    room = threading.Condition()
    waiting, stop = 0, False

    def has_room() -> bool:
        return stop or waiting < most

    def work() -> None:
        nonlocal waiting
        try:
            with closing(draws):
                for draw in draws:
                    with room:
                        waiting += max(1, draw.size.tokens)
                        ready.put(draw)
                        room.wait_for(has_room)
                        if stop:
                            return
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=work, daemon=True, name="loader")
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            with room:
                waiting -= max(1, item.size.tokens)
                room.notify()
            yield item
    finally:
        with room:
            stop = True
            room.notify()
        thread.join()
