"""Which sample comes n-th: a pure function of (mix, seed, n), so that a run resumes by remembering one number.

Corpora take turns by weight, as seats are dealt to parties (Webster's rule): the k-th sample of a corpus is due at
time (k + 1/2) / share, and draws follow their due times. Every prefix of the stream has the wanted shares to within a
sample or so. A corpus that comes late is due from its own time on. Within a corpus each epoch is a permutation of its
own.
"""

import hashlib
from collections.abc import Collection, Mapping

import numpy as np

EPOCHS_KEPT = 2
"""Permutations held per corpus: the current one, and one for a look back."""


class Order:
    """The endless order of draws. `sizes` gives the rows of each corpus; `weights` their shares (ratios matter). The
    first epoch of a corpus named in `curriculum` is the corpus's own order; one named in `late` joins after so many
    draws of those that aren't.

    >>> order = Order({"a": 2, "b": 1}, {"a": 10, "b": 5}, seed=0)
    >>> [order.draw(n)[0] for n in range(6)]
    ['a', 'b', 'a', 'a', 'b', 'a']
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        sizes: Mapping[str, int],
        seed: int,
        curriculum: Collection[str] = (),
        late: Mapping[str, int] | None = None,
    ) -> None:
        if empty := [name for name in weights if not sizes[name]]:
            raise ValueError(f"the mix draws from corpora without rows: {', '.join(empty)}")
        self.names = tuple(weights)
        self._shares = [weights[n] / sum(weights.values()) for n in self.names]
        self._sizes = [sizes[n] for n in self.names]
        late = late or {}
        early = sum(s for n, s in zip(self.names, self._shares, strict=True) if n not in late)
        self._starts = [late.get(n, 0) / early for n in self.names]
        self._seed = seed
        self._curriculum = frozenset(curriculum)
        self._epochs: dict[tuple[int, int], np.ndarray] = {}
        self._next = 0  # the draw that `_taken` is the state before: draws in a row needn't look for their place
        self._taken = [0] * len(self.names)

    def draw(self, n: int) -> tuple[str, int]:
        """Corpus and row of draw n."""
        if n != self._next:
            self._seek(n)
        corpus = self._turn()
        epoch, place = divmod(self._taken[corpus] - 1, self._sizes[corpus])
        return self.names[corpus], int(self._epoch(corpus, epoch)[place])

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

    def _epoch(self, corpus: int, epoch: int) -> np.ndarray:
        if epoch == 0 and self.names[corpus] in self._curriculum:
            return np.arange(self._sizes[corpus])
        if (corpus, epoch) not in self._epochs:
            held = sorted(key for key in self._epochs if key[0] == corpus)
            for old in held[: max(0, len(held) - EPOCHS_KEPT + 1)]:
                del self._epochs[old]
            key = hashlib.sha256(f"{self._seed} {self.names[corpus]} {epoch}".encode()).digest()
            generator = np.random.default_rng(int.from_bytes(key[:8], "big"))
            self._epochs[corpus, epoch] = generator.permutation(self._sizes[corpus])
        return self._epochs[corpus, epoch]
