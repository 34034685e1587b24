"""Length-bucketed batches: sequences of similar length share one padded batch, of decoder and Conformer alike.

Lengths 3, 9 and 4 in one pack (letters are tokens of a sequence, `.` is padding)::

    a a a b b b b b b b b b c c c c   ->   one bucket   a a a . . . . . .
                                                        c c c c . . . . .
                                                        b b b b b b b b b
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Bucket(NamedTuple):
    """Sequences of similar length, padded on the right: `gather` [S * L] is the index of their tokens in the pack
    (padding repeats token 0), `is_token` is False at padding, None where there is none."""

    sequences: int
    longest: int
    gather: Int[Tensor, " SL"]
    is_token: Bool[Tensor, "S L"] | None


def buckets(lengths: Sequence[int]) -> tuple[tuple[Bucket, ...], Int[Tensor, " T"]]:
    """(buckets with at most a quarter or 8 tokens of padding per sequence, in order of length, index of each token of
    the pack in the concatenated buckets)."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    result, index, size = [], np.empty(starts[-1], dtype=np.int64), 0
    order = sorted(range(len(lengths)), key=lambda s: lengths[s])
    while order:
        shortest = lengths[order[0]]
        members = [s for s in order if lengths[s] <= max(shortest + 8, shortest * 5 // 4)]
        order = order[len(members) :]
        longest = lengths[members[-1]]
        is_token = np.arange(longest) < np.array([lengths[s] for s in members])[:, None]
        tokens = np.where(is_token, starts[members][:, None] + np.arange(longest), 0)
        index[tokens[is_token]] = size + np.flatnonzero(is_token)
        size += is_token.size
        mask = None if is_token.all() else torch.from_numpy(is_token)
        result.append(Bucket(len(members), longest, torch.from_numpy(tokens.ravel()), mask))
    return tuple(result), torch.from_numpy(index)
