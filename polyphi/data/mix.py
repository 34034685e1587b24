"""The order of samples: a pure function of (mix, seed, n), so that a run resumes from one number.

Corpora take turns by weight, as in Webster's rule for seats in a parliament: the k-th sample of a corpus is due at time
(k + 1/2) / share, and draws are in the order of their due times. Every prefix of the stream has the requested shares to
within about one sample. A late corpus is due from its start time on. Within a corpus each epoch is a new permutation;
an endless corpus has no epochs, its rows are in order.

A corpus larger than the cache of its shards can't be read in arbitrary order: each sample would read a row group. It
has a window: blocks of neighbouring rows are shuffled over the corpus, then rows within as many blocks as fit the
cache::

    blocks    0 1 2 3 4 5 6 7        ->  5 2 | 7 0 | 4 1 | 3 6       windows of two blocks
    rows      within each window, all of its rows in any order
"""

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

BLOCK = 64
"""Neighbouring rows that are shuffled together; a row group of the shards."""
PERMUTATIONS_PER_CORPUS = 4
"""Cached permutations per corpus: of blocks and of rows, for the current and the previous window."""


class Order:
    """The endless order of draws. `sizes` is the number of rows of each corpus (None: endless, rows 0, 1, 2, ...),
    `weights` their shares (only ratios matter). The first epoch of a corpus in `curriculum` is in the order of its
    rows; one in `late` joins after that many draws of the corpora that aren't. `windows` limits the rows of a corpus
    that are shuffled at a time (a multiple of 64).

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
        self._permutations: OrderedDict[tuple[int, str], np.ndarray] = OrderedDict()
        self._next = 0  # `_counts` is the state before this draw: consecutive draws need no `_seek`
        self._counts = [0] * len(self.names)

    def draw(self, n: int) -> tuple[str, int]:
        """Return corpus and row of draw n."""
        if not self._next <= n <= self._next + len(self.names):
            self._seek(n)
        while self._next < n:
            self._turn()
        corpus = self._turn()
        return self.names[corpus], self._row(corpus, self._counts[corpus] - 1)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for worker processes, without cached permutations."""
        return self.__dict__ | {"_permutations": OrderedDict()}

    def _due(self, corpus: int, k: int) -> float:
        return self._starts[corpus] + (k + 0.5) / self._shares[corpus]

    def _turn(self) -> int:
        """Advance by one draw and return its corpus. For equal due times the first corpus comes first."""
        due = [self._due(c, count) for c, count in enumerate(self._counts)]
        corpus = due.index(min(due))
        self._counts[corpus] += 1
        self._next += 1
        return corpus

    def _seek(self, n: int) -> None:
        """Set the state before draw n directly: at time t a corpus with start time s has had all samples that were due
        before t, which are (t - s) times its share to within one."""
        time = self._time(max(0, n - len(self.names)))
        for corpus, share in enumerate(self._shares):
            count = max(0, int((time - self._starts[corpus]) * share) - 1)
            # About two iterations, with the same numbers as `_turn` compares, so that rounding is the same.
            while self._due(corpus, count) < time:
                count += 1
            self._counts[corpus] = count
        self._next = sum(self._counts)
        assert self._next <= n
        while self._next < n:
            self._turn()

    def _time(self, draws: float) -> float:
        """Return the time after `draws` draws; their rate is the sum of the shares of the corpora that have started."""
        active_share, time = 0.0, 0.0
        for start, share in sorted(zip(self._starts, self._shares, strict=True)):
            if active_share and draws <= (start - time) * active_share:
                break
            draws -= (start - time) * active_share
            active_share, time = active_share + share, start
        return time + draws / active_share

    def _row(self, corpus: int, count: int) -> int:
        """Return the row of sample number `count` of a corpus."""
        size, window = self._sizes[corpus], self._windows[corpus]
        if size is None:
            return count
        epoch, position = divmod(count, size)
        if epoch == 0 and self.names[corpus] in self._curriculum:
            return position
        if window >= size:
            return int(self._permutation(corpus, f"{epoch}", size)[position])
        first = position // window * window
        rows = self._permutation(corpus, f"{epoch} window {first}", min(window, size - first))
        slot, row = divmod(first + int(rows[position - first]), BLOCK)
        whole_blocks = size // BLOCK  # rows after the last whole block stay last
        if slot < whole_blocks:
            slot = int(self._permutation(corpus, f"{epoch} blocks", whole_blocks)[slot])
        return slot * BLOCK + row

    def _permutation(self, corpus: int, name: str, size: int) -> np.ndarray:
        if (corpus, name) not in self._permutations:
            key = hashlib.sha256(f"{self._seed} {self.names[corpus]} {name}".encode()).digest()
            generator = np.random.default_rng(int.from_bytes(key[:8], "big"))
            self._permutations[corpus, name] = generator.permutation(size)
            if len(self._permutations) > PERMUTATIONS_PER_CORPUS * len(self.names):
                self._permutations.popitem(last=False)
        self._permutations.move_to_end((corpus, name))
        return self._permutations[corpus, name]
