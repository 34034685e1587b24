"""The stream of steps: draws become rows, rows fill a step's token budget. Its only state is the number of draws.

A step takes draws in order while they fit `batch_tokens` (the first always fits); a sample without rows, for example
one longer than the context, is left out and counted. The stream is the same if the rows are made by this process, a
thread, worker processes (workers.py), or the processes of a group, each of which makes its part::

    draw          0    1    2    3    4    5  ...          each group of `world` draws is distributed in a new order
    process       1    0    0    1    1    0

Every process then has the sizes of all samples, and the rows of its own samples.
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

from polyphi.data import workers as processes
from polyphi.data.draws import Draw, Draws, MakeRows, Skipped
from polyphi.data.generated import GeneratedSamples
from polyphi.data.mix import Order
from polyphi.data.packing import RowSize
from polyphi.runtime import distributed
from polyphi.types.batch import Batch

MAX_CONSECUTIVE_SKIPS = 1000
"""Consecutive samples of a corpus (or as many as a smaller corpus has) that may be left out before the loader raises
an error."""
MAX_CORRUPT_SHARE, MIN_CORRUPT = 0.01, 20
"""The loader raises an error when more than 1 % of the draws so far, and at least 20, are damaged samples."""
PREFETCH_STEPS = 2
"""Steps whose tokens the prefetching thread holds ready."""
DRAWS_PER_EXCHANGE = 8
"""Draws that each process of a group makes before the processes exchange their sizes."""


@dataclass(frozen=True)
class StepRows:
    """The rows of one step. `ids`, `sizes`, `numbers` (of their draws) and `processes` are those of all its samples,
    `samples` the rows of those that belong to this process, `rank`. `draws` is the total number of draws after it,
    where the next step begins. `skipped` holds the samples left out, `cut` is the number of truncated samples and
    `lost` that of their truncated tokens; `corrupt` counts damaged samples since the first step of the run."""

    samples: list[list[Batch]]
    ids: list[str]
    sizes: list[RowSize]
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
        """Return the ids of `samples`."""
        return [i for i, p in zip(self.ids, self.processes, strict=True) if p == self.rank]

    def other_sizes(self) -> list[list[RowSize]]:
        """Return the sizes of the samples of each other process."""
        placed = list(zip(self.sizes, self.processes, strict=True))
        return [
            [size for size, process in placed if process == other]
            for other in range(self.world)
            if other != self.rank
        ]

    def spare_rows(self) -> list[Batch]:
        """Return the rows of the step's smallest sample if this process has no sample, else an empty list."""
        if self.samples:
            return []
        smallest = min(range(len(self.ids)), key=lambda i: self.sizes[i].tokens)
        return self.make(self.numbers[smallest]).rows

    def without(self, ids: Collection[str]) -> "StepRows":
        """Return the step without the samples of these ids."""
        indices = [i for i, name in enumerate(self.ids) if name not in ids]
        own = zip(self.own_ids(), self.samples, strict=True)
        return replace(
            self,
            samples=[rows for name, rows in own if name not in ids],
            ids=[self.ids[i] for i in indices],
            sizes=[self.sizes[i] for i in indices],
            numbers=[self.numbers[i] for i in indices],
            processes=[self.processes[i] for i in indices],
        )

    def fingerprint(self) -> str:
        """Return a short hash of the ids in order."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class ReaderGroup:
    """The processes that read a mix in parallel: this one's `rank` of `world`, and `exchange`, which returns the draws
    of every process for those of this one."""

    rank: int = 0
    world: int = 1
    exchange: Callable[[list[Draw]], Sequence[list[Draw]]] = distributed.all_gather


class Loader:
    """Steps of at most `batch_tokens` tokens over all processes. `folder`, a path or an address (shards.py), holds a
    corpus folder per name in `weights`; corpora in `generated` are drawn from generators instead (generated.py).

    `workers` processes make the rows (0: this process). In a `group` each process makes the rows of its part.
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
        generated: Mapping[str, GeneratedSamples] = {},
        workers: int = 0,
        group: ReaderGroup = ReaderGroup(),
    ) -> None:
        # needs pyarrow, which a stage file does without
        from polyphi.data.shards import Shards, join_path

        shards = {n: Shards(join_path(folder, n, split)) for n in weights if n not in generated}
        sources = {name: generated.get(name) or shards[name] for name in weights}
        self._sizes = {n: len(shards[n]) if n in shards else None for n in weights}
        windows = {name: s.window for name, s in shards.items()}
        order = Order(weights, self._sizes, seed, curriculum, late, windows)
        self.source = Draws(order, sources, make_rows, group.rank, group.world)
        self._second_source = copy.deepcopy(self.source)  # the thread uses `source`
        self._batch_tokens = batch_tokens
        self._workers = workers
        self._rank, self._world, self._exchange = group.rank, group.world, group.exchange
        self._consecutive_skips: Counter[str] = Counter()
        self._last_corrupt: deque[str] = deque(maxlen=MIN_CORRUPT)
        self._draws_iterator: Generator[Draw, None, None] | None = None
        self._prefetch = False
        self.restore(0)
        self.manifests: dict[str, dict[str, Any]] = {n: s.manifest for n, s in sources.items()}

    def state(self) -> int:
        """Return the number of draws so far."""
        return self._draws

    def restore(self, draws: int, corrupt: int = 0) -> None:
        """Resume after `draws` draws with `corrupt` damaged samples among them."""
        self.close()
        self._draws = draws
        self._corrupt = corrupt
        self._group = draws // self._world
        self._ready: deque[tuple[int, Draw]] = deque()
        self._draws_to_drop = draws % self._world  # draws of the first group before `draws`

    def close(self) -> None:
        """Stop the worker processes; the next step restarts them."""
        if self._draws_iterator is not None:
            self._draws_iterator.close()
            self._draws_iterator = None
            # Prefetched draws are made again.
            self.restore(self._draws, self._corrupt)

    def step(self) -> StepRows:
        """Return the next step. Raises ValueError if a corpus has no usable samples, or too many are damaged."""
        accepted: list[tuple[int, int, Draw]] = []  # number, process, draw
        skipped: list[Skipped] = []
        tokens = 0
        while tokens < self._batch_tokens:
            if not self._ready:
                self._fill_ready()
            process, draw = self._ready[0]
            if draw.skipped is None:
                if accepted and tokens + draw.size.tokens > self._batch_tokens:
                    break  # it starts the next step
                self._consecutive_skips[draw.corpus] = 0
                accepted.append((self._draws, process, draw))
                tokens += draw.size.tokens
            self._ready.popleft()
            self._draws += 1
            if draw.skipped is not None:
                self._count_skipped(draw.skipped)
                skipped.append(draw.skipped)
        draws = [draw for _, _, draw in accepted]
        return StepRows(
            [draw.rows for _, process, draw in accepted if process == self._rank],
            [draw.name for draw in draws],
            [draw.size for draw in draws],
            [number for number, _, _ in accepted],
            [process for _, process, _ in accepted],
            self._draws,
            self._second_source.make,
            self._rank,
            self._world,
            skipped,
            cut=sum(draw.lost > 0 for draw in draws),
            lost=sum(draw.lost for draw in draws),
            corrupt=self._corrupt,
        )

    def _fill_ready(self) -> None:
        """Append draws to `_ready`: this process's own, and those of the others without rows."""
        if self._draws_iterator is None:
            self._draws_iterator = self._start_draws()
        if self._world == 1:
            self._ready.append((0, next(self._draws_iterator)))
            return
        own = [next(self._draws_iterator) for _ in range(DRAWS_PER_EXCHANGE)]
        all_draws = self._exchange([replace(draw, rows=[]) for draw in own])
        for i in range(DRAWS_PER_EXCHANGE):
            numbers = self.source.numbers(self._group)
            for r in sorted(range(self._world), key=numbers.__getitem__):
                self._ready.append((r, own[i] if r == self._rank else all_draws[r][i]))
            self._group += 1
        for _ in range(self._draws_to_drop):
            self._ready.popleft()
        self._draws_to_drop = 0

    def _count_skipped(self, skipped: Skipped) -> None:
        name = skipped.corpus
        self._consecutive_skips[name] += 1
        size = self._sizes[name] or MAX_CONSECUTIVE_SKIPS
        if self._consecutive_skips[name] >= max(8, min(MAX_CONSECUTIVE_SKIPS, size)):
            raise ValueError(
                f"{self._consecutive_skips[name]} samples of {name!r} in a row could not be used, the last {skipped}; "
                "give the stage a longer context or leave the corpus out of its mix"
            )
        if skipped.category != "corrupt":
            return
        self._corrupt += 1
        self._last_corrupt.append(skipped.name)
        if self._corrupt >= MIN_CORRUPT and self._corrupt > MAX_CORRUPT_SHARE * self._draws:
            raise ValueError(
                f"{self._corrupt} of {self._draws} samples are damaged, more than {MAX_CORRUPT_SHARE:.0%}; the last "
                f"{skipped}; build or copy these corpora again: {', '.join(self._last_corrupt)}"
            )

    def _start_draws(self) -> Generator[Draw, None, None]:
        """Return an iterator over this process's draws from its state on, by workers, a thread or this process."""
        start, source = self._group, self.source
        if self._workers:
            draws = processes.draws(source, start, self._workers)
        else:
            draws = (source[group] for group in count(start))
        max_tokens = PREFETCH_STEPS * self._batch_tokens // self._world
        return _threaded(draws, max_tokens) if self._prefetch else draws

    def steps(self, number: int, *, ahead: bool = False) -> Generator[StepRows, None, None]:
        """Yield the next `number` steps; with `ahead` a thread prefetches draws. Close the iterator
        (`contextlib.closing`) to stop the thread and worker processes early."""
        self.close()
        self._prefetch = ahead
        try:
            for _ in range(number):
                yield self.step()
        finally:
            self._prefetch = False
            self.close()


def _threaded(draws: Generator[Draw, None, None], max_tokens: int) -> Generator[Draw, None, None]:
    """Yield the draws from a thread that pauses while the waiting draws have `max_tokens` tokens or more."""
    ready: queue.SimpleQueue[Draw | BaseException] = queue.SimpleQueue()
    changed = threading.Condition()
    waiting_tokens, stop = 0, False

    def below_limit() -> bool:
        return stop or waiting_tokens < max_tokens

    def work() -> None:
        nonlocal waiting_tokens
        try:
            with closing(draws):
                for draw in draws:
                    with changed:
                        waiting_tokens += max(1, draw.size.tokens)
                        ready.put(draw)
                        changed.wait_for(below_limit)
                        if stop:
                            return
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=work, daemon=True, name="loader")
    thread.start()
    try:
        while True:
            result = ready.get()
            if isinstance(result, BaseException):
                raise result
            with changed:
                waiting_tokens -= max(1, result.size.tokens)
                changed.notify()
            yield result
    finally:
        with changed:
            stop = True
            changed.notify()
        thread.join()
