"""Free memory goes back to the system where the system's library can do it."""

import ctypes

import psutil

from polyphi.runtime.heap import give_back


def test_free_memory_goes_back() -> None:
    """The last block keeps the heap from shrinking by itself."""
    blocks = [bytearray(60_000) for _ in range(2_000)]
    full = psutil.Process().memory_info().rss
    last = blocks.pop()
    del blocks
    give_back()
    left = psutil.Process().memory_info().rss
    assert last is not None
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        assert full - left > 80_000_000
