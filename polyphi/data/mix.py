"""Which sample comes n-th: a pure function of (mix, seed, n), so that a run resumes by remembering one number.

Corpora take turns by weight, as seats are dealt to parties (Webster's rule): the k-th sample of a corpus is due at
time (k + 1/2) / share, and draws follow their due times. Every prefix of the stream has the wanted shares to within a
sample or so. A corpus that comes late is due from its own time on. Within a corpus each epoch is a permutation of its
own; an endless corpus has no epochs, its rows come in order.

A corpus larger than the cache of its shards can't be read in any order: each sample would cost a row group of its own.
It has a window: blocks of neighbouring rows are shuffled over the corpus, then rows within as many blocks as the cache
holds::

    blocks    0 1 2 3 4 5 6 7        ->  5 2 | 7 0 | 4 1 | 3 6       windows of two blocks
    rows      within each window, all of its rows in any order
"""

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

BLOCK = 64
"""Neighbouring rows that are shuffled as one; a row group of the shards."""
HELD = 4
"""Permutations held per corpus: of the blocks and of the rows, now and for a look back."""


class Order:
    """The endless order of draws. `sizes` gives the rows of each corpus (None: endless, rows 0, 1, 2, ...); `weights`
    their shares (ratios matter). The first epoch of a corpus named in `curriculum` is the corpus's own order; one
    named in `late` joins after so many draws of those that aren't. `windows` bounds how many rows of a corpus are in
    turn at a time (a multiple of 64).

    >>> order = Order({"a": 2, "b": 1}, {"a": 10, "b": 5}, seed=0)
    >>> [order.draw(n)[0] for n in range(6)]
    ['a', 'b', 'a', 'a', 'b', 'a']
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        sizes: Mapping[str, int | None],
        seed: int,
        curriculum: Collection[str] = (),
        late: Mapping[str, int] | None = None,
        windows: Mapping[str, int] | None = None,
    ) -> None:
        if empty := [name for name in weights if sizes[name] == 0]:
            raise ValueError(f"the mix draws from corpora without rows: {', '.join(empty)}")
        self.names = tuple(weights)
        self._shares = [weights[n] / sum(weights.values()) for n in self.names]
        self._sizes = [sizes[n] for n in self.names]
        late = late or {}
        early = sum(s for n, s in zip(self.names, self._shares, strict=True) if n not in late)
        self._starts = [late.get(n, 0) / early for n in self.names]
        self._seed = seed
        self._curriculum = frozenset(curriculum)
        self._windows = [(windows or {}).get(n, sizes[n] or 0) for n in self.names]
        self._held: OrderedDict[tuple[int, str], np.ndarray] = OrderedDict()
        self._next = 0  # the draw that `_taken` is the state before: draws in a row needn't look for their place
        self._taken = [0] * len(self.names)

    def draw(self, n: int) -> tuple[str, int]:
        """Corpus and row of draw n."""
        if not self._next <= n <= self._next + len(self.names):
            self._seek(n)
        while self._next < n:
            self._turn()
        corpus = self._turn()
        return self.names[corpus], self._row(corpus, self._taken[corpus] - 1)

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: permutations are made anew."""
        return self.__dict__ | {"_held": OrderedDict()}

    def _due(self, corpus: int, k: int) -> float:
        return self._starts[corpus] + (k + 0.5) / self._shares[corpus]

    def _turn(self) -> int:
        """Take the next draw; returns its corpus. Of equal due times the first corpus goes first."""
        due = [self._due(c, taken) for c, taken in enumerate(self._taken)]
        corpus = due.index(min(due))
        self._taken[corpus] += 1
        self._next += 1
        return corpus

    def _seek(self, n: int) -> None:
        """To the state before draw n, without walking there: at time t a corpus that began at time s has had all its
        samples that were due before t, which is (t - s) times its share to within one."""
        time = self._time(max(0, n - len(self.names)))
        for corpus, share in enumerate(self._shares):
            taken = max(0, int((time - self._starts[corpus]) * share) - 1)
            # Twice or so, by the very numbers that `_turn` compares, so that no rounding differs.
            while self._due(corpus, taken) < time:
                taken += 1
            self._taken[corpus] = taken
        self._next = sum(self._taken)
        assert self._next <= n
        while self._next < n:
            self._turn()

    def _time(self, draws: float) -> float:
        """When so many draws have been made: their number grows with time by the shares of those that have begun."""
        begun, time = 0.0, 0.0
        for start, share in sorted(zip(self._starts, self._shares, strict=True)):
            if begun and draws <= (start - time) * begun:
                break
            draws -= (start - time) * begun
            begun, time = begun + share, start
        return time + draws / begun

    def _row(self, corpus: int, taken: int) -> int:
        """The row that comes after so many samples of the corpus."""
        size, window = self._sizes[corpus], self._windows[corpus]
        if size is None:
            return taken
        epoch, place = divmod(taken, size)
        if epoch == 0 and self.names[corpus] in self._curriculum:
            return place
        if window >= size:
            return int(self._permutation(corpus, f"{epoch}", size)[place])
        first = place // window * window
        rows = self._permutation(corpus, f"{epoch} window {first}", min(window, size - first))
        slot, row = divmod(first + int(rows[place - first]), BLOCK)
        whole = size // BLOCK  # rows behind the last whole block stay last
        if slot < whole:
            slot = int(self._permutation(corpus, f"{epoch} blocks", whole)[slot])
        return slot * BLOCK + row

    def _permutation(self, corpus: int, name: str, size: int) -> np.ndarray:
        if (corpus, name) not in self._held:
            key = hashlib.sha256(f"{self._seed} {self.names[corpus]} {name}".encode()).digest()
            generator = np.random.default_rng(int.from_bytes(key[:8], "big"))
            self._held[corpus, name] = generator.permutation(size)
            if len(self._held) > HELD * len(self.names):
                self._held.popitem(last=False)
        self._held.move_to_end((corpus, name))
        return self._held[corpus, name]
