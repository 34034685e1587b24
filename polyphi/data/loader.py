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
import zlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from polyphi import dist
from polyphi.batch import Batch
from polyphi.data.mix import Order
from polyphi.data.packing import Size
from polyphi.data.shards import Sample, Shards, place
from polyphi.processing.processor import TooLong

MakeRows = Callable[[str, Sample], list[Batch]]
"""(corpus, sample) -> the sample's rows. `TooLong` and `Unfit` where the sample is sound but can't be used, another
ValueError where it is damaged."""

LONGEST_DROUGHT = 1000
"""Samples of a corpus in a row that may be left out (a small corpus: all of it, once) before the mix is declared
unusable."""
CORRUPT_SHARE, CORRUPT_LEAST = 0.01, 20
"""The data are declared unusable when more than 1 % of the draws so far, and at least 20, were damaged samples."""
STEPS_AHEAD = 2
"""Steps' worth of tokens that a thread holds ready for the one in training."""
ROUND = 8
"""Draws that each process of a group makes before they tell each other what those hold."""


class Unfit(ValueError):
    """A sound sample that a stage can't learn from, such as one without an answer."""


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out, and why. "corrupt" is damage: a picture, a clip or a row that can't be read."""

    corpus: str
    id: str
    kind: Literal["corrupt", "too_long", "unfit", "excluded"]
    reason: str

    def __str__(self) -> str:
        return f"{self.corpus}/{self.id}: {self.reason}"


@dataclass(frozen=True)
class Draw:
    """What a draw gave: rows (none where another process has them) of that `size`, of which documents lost `lost`
    tokens at the context's end; or why there are none."""

    corpus: str
    id: str
    rows: list[Batch]
    size: Size = field(default_factory=Size)
    lost: int = 0
    skipped: Skipped | None = None

    @property
    def name(self) -> str:
        return f"{self.corpus}/{self.id}"


class Draws:
    """Rows by number: `draws[n]` is what draw n gives, whoever asks. The part of process `rank` of `world`: its i-th
    draw is one of the i-th group of `world` draws, which one differs from group to group, so that no rhythm of the mix
    gives one process all pictures."""

    def __init__(
        self, order: Order, shards: Mapping[str, Shards], make_rows: MakeRows, rank: int, world: int
    ) -> None:
        self._order = order
        self._shards = shards
        self._make_rows = make_rows
        self._rank = rank
        self._world = world

    def __deepcopy__(self, memo: dict[int, Any]) -> "Draws":
        """Another reader of the same draws, with no state in common."""
        order, shards = copy.deepcopy((self._order, self._shards), memo)
        return Draws(order, shards, self._make_rows, self._rank, self._world)

    def __getitem__(self, group: int) -> Draw:
        return self.make(self.numbers(group)[self._rank])

    def numbers(self, group: int) -> list[int]:
        """The draw that each process makes of a group."""
        turn = zlib.crc32(str(group).encode())
        return [group * self._world + (r + turn) % self._world for r in range(self._world)]

    def make(self, number: int) -> Draw:
        """What a draw gives, whosever it is."""
        corpus, index = self._order.draw(number)
        row = self._shards[corpus].row(index)
        kind: Literal["corrupt", "too_long", "unfit"]
        try:
            rows = self._make_rows(corpus, Shards.parse(row))
            return Draw(corpus, row["id"], rows, Size.of(rows), sum(r.lost for r in rows))
        except TooLong as error:
            kind, reason = "too_long", str(error)
        except Unfit as error:
            kind, reason = "unfit", str(error)
        except ValueError as error:
            kind, reason = "corrupt", str(error)
        return Draw(corpus, row["id"], [], skipped=Skipped(corpus, row["id"], kind, reason))


@dataclass(frozen=True)
class Step:
    """One step. `samples` are the rows of each sample that this process has, `ids` and `sizes` those of all samples;
    `others` are the sizes of the other processes' samples, process by process, and `spare` is the step's smallest
    sample where this process has none. `draws` is the number of draws made after it: where the next begins. `skipped`
    tells of samples left out, `cut` counts samples that were cut at the context and `lost` the tokens cut off;
    `corrupt` counts damaged samples since the first step of the run."""

    samples: list[list[Batch]]
    ids: list[str]
    sizes: list[Size]
    draws: int
    skipped: list[Skipped] = field(default_factory=list)
    cut: int = 0
    lost: int = 0
    corrupt: int = 0
    others: list[list[Size]] = field(default_factory=list)
    spare: list[Batch] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(size.tokens for size in self.sizes)

    def fingerprint(self) -> str:
        """Short hash of the ids in order."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()[:12]


class Loader:
    """Steps of at most `batch_tokens` tokens over all processes. `folder`, a path or an address (shards.py), holds a
    corpus folder per name in `weights`.

    `workers` processes make the rows; 0: this one. In a group of `world` processes each makes the rows of its part,
    and `exchange` gives everyone what each of them says. Samples named in `exclude`, as "corpus/id", are left out.
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
        workers: int = 0,
        exclude: Collection[str] = (),
        rank: int = 0,
        world: int = 1,
        exchange: Callable[[list[Draw]], Sequence[list[Draw]]] = dist.gathered,
    ) -> None:
        shards = {name: Shards(place(folder, name, split)) for name in weights}
        self._sizes = {name: len(s) for name, s in shards.items()}
        windows = {name: s.window for name, s in shards.items()}
        order = Order(weights, self._sizes, seed, curriculum, late, windows)
        self._source = Draws(order, shards, make_rows, rank, world)
        self._again = copy.deepcopy(self._source)  # not in use by the thread
        self._batch_tokens = batch_tokens
        self._workers = workers
        self._exclude = frozenset(exclude)
        self._rank = rank
        self._world = world
        self._exchange = exchange
        self._drought: Counter[str] = Counter()
        self._damaged: deque[str] = deque(maxlen=CORRUPT_LEAST)
        self._made: Generator[Draw, None, None] | None = None
        self._ahead = False
        self.restore(0)
        self.manifests: dict[str, dict[str, Any]] = {n: s.manifest for n, s in shards.items()}

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
            if draw.name in self._exclude:
                why = Skipped(draw.corpus, draw.id, "excluded", "excluded from this run")
                draw = replace(draw, rows=[], skipped=why)
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
        parts: list[list[Draw]] = [[] for _ in range(self._world)]
        for _, process, draw in taken:
            parts[process].append(draw)
        own, others = parts[self._rank], parts[: self._rank] + parts[self._rank + 1 :]
        smallest = min(taken, key=lambda one: one[2].size.tokens)[0]
        draws = [draw for _, _, draw in taken]
        return Step(
            [draw.rows for draw in own],
            [draw.name for draw in draws],
            [draw.size for draw in draws],
            self._draws,
            skipped,
            cut=sum(draw.lost > 0 for draw in draws),
            lost=sum(draw.lost for draw in draws),
            corrupt=self._corrupt,
            others=[[draw.size for draw in part] for part in others],
            spare=[] if own else self._again.make(smallest).rows,
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
            numbers = self._source.numbers(self._group)
            for r in sorted(range(self._world), key=numbers.__getitem__):
                self._ready.append((r, own[i] if r == self._rank else told[r][i]))
            self._group += 1
        for _ in range(self._behind):
            self._ready.popleft()
        self._behind = 0

    def _refuse(self, skipped: Skipped) -> None:
        name = skipped.corpus
        self._drought[name] += 1
        if self._drought[name] >= max(8, min(LONGEST_DROUGHT, self._sizes[name])):
            raise ValueError(
                f"{self._drought[name]} samples of {name!r} in a row could not be used, the last {skipped}; "
                "give the stage a longer context or leave the corpus out of its mix"
            )
        if skipped.kind != "corrupt":
            return
        self._corrupt += 1
        self._damaged.append(f"{name}/{skipped.id}")
        if self._corrupt >= CORRUPT_LEAST and self._corrupt > CORRUPT_SHARE * self._draws:
            raise ValueError(
                f"{self._corrupt} of {self._draws} samples are damaged, more than {CORRUPT_SHARE:.0%}; the last "
                f"{skipped}; build or copy these corpora again: {', '.join(self._damaged)}"
            )

    def _make(self) -> Generator[Draw, None, None]:
        """This process's draws from where its state is, by whoever makes them."""
        made = self._made_here()
        if self._workers:
            from polyphi.data import workers

            made = workers.draws(self._source, self._group, self._workers)
        most = STEPS_AHEAD * self._batch_tokens // self._world
        return _threaded(made, most) if self._ahead else made

    def _made_here(self) -> Generator[Draw, None, None]:
        for group in count(self._group):
            yield self._source[group]

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
