"""The memory of keys and values."""

import torch

from polyphi.engine.cache import BLOCK, Cache, SequenceCache
from polyphi.model.attention import KVCache


def test_it_returns_all_that_was_put_in() -> None:
    cache = SequenceCache(reserve=4)
    keys, values = torch.randn(2, 3 * BLOCK, 2, 8), torch.randn(2, 3 * BLOCK, 2, 8)
    start = 0
    for length in (1, 5, BLOCK, 1, 2 * BLOCK - 7):
        for layer in range(2):
            span = slice(start, start + length)
            k, v = cache.update(layer, keys[layer, span], values[layer, span])
            assert torch.equal(k, keys[layer, : start + length])
            assert torch.equal(v, values[layer, : start + length])
        start += length
        assert len(cache) == start
    cache.clear()
    assert len(cache) == 0
    k, _ = cache.update(0, keys[0, :3], values[0, :3])
    assert torch.equal(k, keys[0, :3])


def test_reserved_memory_is_not_moved() -> None:
    cache = SequenceCache(reserve=100)
    k, _ = cache.update(0, torch.zeros(10, 1, 4), torch.zeros(10, 1, 4))
    for _ in range(90):
        again, _ = cache.update(0, torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
        assert again.data_ptr() == k.data_ptr()


def test_sequences_are_apart() -> None:
    cache = Cache([SequenceCache(), SequenceCache()])
    assert isinstance(cache, KVCache)
    for n in (1, 2):
        new = torch.arange(5.0)[:, None, None].expand(5, 1, 4)
        keys, values = cache.extend(0, new, -new, [3, 2])
        assert keys[0][:, 0, 0].tolist() == [0, 1, 2] * n
        assert values[1][:, 0, 0].tolist() == [-3, -4] * n
