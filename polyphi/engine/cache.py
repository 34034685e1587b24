"""What attention remembers of each sequence: keys and values of every layer, in one stretch of memory per sequence.

>>> cache = Cache([SequenceCache(reserve=300), SequenceCache(reserve=20)])
>>> keys, values = cache.extend(0, k, v, [4, 1])    # layer 0; k, v [5 K d] appended; all [n K d] of each come back

It fits the `KVCache` protocol of `model/attention.py`. Keys are stored after RoPE, so a sequence that changes its
LongRoPE table must be cleared and run again (`runner.py` does it).
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

BLOCK = 256
"""Tokens by which a sequence's memory grows."""


class SequenceCache:
    """Keys and values of one sequence. `reserve` tokens are allocated at once; then it grows by halves, in blocks."""

    def __init__(self, reserve: int = BLOCK) -> None:
        self.reserve = reserve
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._lengths: list[int] = []

    def __len__(self) -> int:
        """Tokens held, by every layer; only to be asked between forwards."""
        return self._lengths[-1] if self._lengths else 0

    def clear(self) -> None:
        """Forgets the tokens and keeps the memory."""
        self._lengths = [0] * len(self._lengths)

    def update(
        self, layer: int, k: Float[Tensor, "t K d"], v: Float[Tensor, "t K d"]
    ) -> tuple[Float[Tensor, "n K d"], Float[Tensor, "n K d"]]:
        """Appends to a layer and returns all it holds, as views."""
        if layer == len(self._lengths):  # first forward: layers come in order
            self._keys.append(k.new_empty(0, *k.shape[1:]))
            self._values.append(v.new_empty(0, *v.shape[1:]))
            self._lengths.append(0)
        start = self._lengths[layer]
        end = start + len(k)
        self._keys[layer] = self._with_room(self._keys[layer], start, end)
        self._values[layer] = self._with_room(self._values[layer], start, end)
        self._keys[layer][start:end] = k
        self._values[layer][start:end] = v
        self._lengths[layer] = end
        return self._keys[layer][:end], self._values[layer][:end]

    def _with_room(self, held: Tensor, used: int, needed: int) -> Tensor:
        if needed <= len(held):
            return held
        capacity = max(needed, self.reserve, len(held) * 3 // 2)
        larger = held.new_empty(-(-capacity // BLOCK) * BLOCK, *held.shape[1:])
        larger[:used] = held[:used]
        return larger


class Cache:
    """The caches of the sequences of one forward, in the order of its `Batch`."""

    def __init__(self, sequences: Sequence[SequenceCache]) -> None:
        self.sequences = sequences

    def extend(
        self,
        layer: int,
        k: Float[Tensor, "T K d"],
        v: Float[Tensor, "T K d"],
        lengths: Sequence[int],
    ) -> tuple[list[Float[Tensor, "n K d"]], list[Float[Tensor, "n K d"]]]:
        parts = zip(self.sequences, k.split(list(lengths)), v.split(list(lengths)), strict=True)
        pairs = [sequence.update(layer, key, value) for sequence, key, value in parts]
        return [key for key, _ in pairs], [value for _, value in pairs]
