"""Length-bucketed batches."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.model.buckets import buckets


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=12))
def test_buckets_cover_every_token_once_with_little_padding(lengths):
    batches, index = buckets(lengths)
    tokens = torch.cat([bucket.gather for bucket in batches])
    assert torch.equal(tokens[index], torch.arange(sum(lengths)))
    assert sum(bucket.sequences for bucket in batches) == len(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for bucket in batches:
        table = bucket.gather.view(bucket.sequences, bucket.longest)
        is_token = (
            torch.ones_like(table, dtype=torch.bool) if bucket.is_token is None else bucket.is_token
        )
        counts = is_token.sum(1)
        assert counts.max() == bucket.longest <= max(counts.min() + 8, counts.min() * 5 // 4)
        for line, mask in zip(table, is_token, strict=True):
            assert len(set(owner[line[mask].tolist()])) == 1  # the tokens of one sequence only
