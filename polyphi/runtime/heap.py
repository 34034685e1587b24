"""The memory of this process.

>>> give_back()                                  # after much has been freed
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""The numbers of `mallopt`'s parameters in glibc."""
LARGE = 4 << 20
"""Bytes from which a block gets a separate mapping: bodies of requests, long texts, activations."""


def keep_large_blocks_apart() -> None:
    """Give each block of 4 MiB or more a separate mapping, which is unmapped when the block is freed. Otherwise glibc
    takes blocks of up to 32 MiB from the heap once some of them were freed, and small blocks between them keep that
    memory resident. Does nothing without glibc."""
    _set(MMAP_THRESHOLD, LARGE)


@contextmanager
def reuse_freed_blocks() -> Iterator[None]:
    """A context in which freed blocks of any size stay in the heap for the next ones, up to `give_back`. Otherwise
    glibc maps each block above 32 MiB anew, and the system fills its pages with zeros: a tenth of a training step with
    large activations. Does nothing without glibc."""
    _set(MMAP_MAX, 0)
    _set(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:  # the most that glibc sets by itself
        _set(MMAP_MAX, 65536)
        _set(MMAP_THRESHOLD, 32 << 20)
        _set(TRIM_THRESHOLD, 64 << 20)


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(parameter, value)


def give_back() -> None:
    """Return the heap's free memory to the system: hundreds of megabytes after large tensors or texts. Does nothing
    without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
