"""The memory of this process.

>>> give_back()                                  # after much has been freed
"""

import ctypes
import os

MMAP_THRESHOLD = -3
"""glibc's number of the parameter for `mallopt`."""
LARGE = 4 << 20
"""Bytes from which a block gets a separate mapping: bodies of requests, long texts, activations."""


def keep_large_blocks_apart() -> None:
    """Give each block of 4 MiB or more a separate mapping, which is unmapped when the block is freed. Otherwise glibc
    takes blocks of up to 32 MiB from the heap once some of them were freed, and small blocks between them keep that
    memory resident. Elsewhere than with glibc nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE)


def give_back() -> None:
    """What is free in the heap goes back to the system: after large tensors or texts that may be hundreds of megabytes.
    Only glibc knows how; elsewhere nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
