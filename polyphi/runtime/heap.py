"""The memory of this process.

>>> give_back()                                  # after much has been freed
"""

import ctypes
import os

MMAP_THRESHOLD = -3
"""The number of `mallopt`'s parameter in glibc."""
LARGE = 4 << 20
"""Bytes from which a block gets a separate mapping: bodies of requests, long texts, activations."""


def keep_large_blocks_apart() -> None:
    """Give each block of 4 MiB or more a separate mapping, which is unmapped when the block is freed. Otherwise glibc
    takes blocks of up to 32 MiB from the heap once some of them were freed, and small blocks between them keep that
    memory resident. Does nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE)


def give_back() -> None:
    """Return the heap's free memory to the system: hundreds of megabytes after large tensors or texts. Does nothing
    without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
