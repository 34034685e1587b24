"""Which sample comes n-th: a pure function of (mix, seed, n), so a run resumes by remembering one number.

Corpora take turns by weight: draw n goes to the corpus that is furthest behind its share, which keeps every prefix of the
stream within one sample of the wanted shares. Within a corpus each epoch is a permutation of its own.
"""

import hashlib
from collections.abc import Mapping

import numpy as np


class Order:
    """The endless order of draws. `sizes` gives the rows of each corpus; `weights` their shares (ratios matter).

    >>> order = Order({"a": 2, "b": 1}, {"a": 10, "b": 5}, seed=0)
    >>> [order.draw(n)[0] for n in range(3)]
    ['a', 'b', 'a']
    """

    def __init__(self, weights: Mapping[str, float], sizes: Mapping[str, int], seed: int) -> None:
        if empty := [name for name in weights if not sizes[name]]:
            raise ValueError(f"the mix draws from corpora without rows: {', '.join(empty)}")
        self.names = list(weights)
        self._shares = np.array([weights[n] for n in self.names], dtype=np.float64) / sum(weights.values())
        self._sizes = dict(sizes)
        self._seed = seed
        self._turns: list[tuple[int, int]] = []  # (corpus, how many of it came before), grown as asked for
        self._counts = np.zeros(len(self.names), dtype=np.int64)
        self._epochs: dict[tuple[str, int], np.ndarray] = {}

    def draw(self, n: int) -> tuple[str, int]:
        """Corpus and row of draw n."""
        while len(self._turns) <= n:
            behind = self._shares * (len(self._turns) + 1) - self._counts
            corpus = int(behind.argmax())
            self._turns.append((corpus, int(self._counts[corpus])))
            self._counts[corpus] += 1
        corpus, before = self._turns[n]
        name = self.names[corpus]
        epoch, place = divmod(before, self._sizes[name])
        return name, int(self._epoch(name, epoch)[place])

    def _epoch(self, name: str, epoch: int) -> np.ndarray:
        if (name, epoch) not in self._epochs:
            for old in [key for key in self._epochs if key[0] == name and key[1] < epoch - 1]:
                del self._epochs[old]
            key = hashlib.sha256(f"{self._seed} {name} {epoch}".encode()).digest()
            generator = np.random.default_rng(int.from_bytes(key[:8], "big"))
            self._epochs[name, epoch] = generator.permutation(self._sizes[name])
        return self._epochs[name, epoch]
