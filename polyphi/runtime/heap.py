"""The memory of this process.

>>> give_back()                                  # after much has been freed
"""

import ctypes
import mmap
import os
from bisect import bisect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the server starts by this module, before torch is imported
    from torch import Tensor

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""The numbers of `mallopt`'s parameters in glibc."""
PAGE_OUT = 21
"""The number of MADV_PAGEOUT in Linux."""
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


def drop_pages(tensors: Iterable["Tensor"]) -> None:
    """Take the pages of tensors that are mapped from files out of memory; they are read again when they are used. For
    large weights that are rarely read. Tensors in other memory are unchanged. Does nothing without Linux."""
    advise = getattr(ctypes.CDLL(None), "madvise", None) if os.name == "posix" else None
    if advise is None or not os.path.exists("/proc/self/maps"):
        return
    mapped = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            limits, _, _, _, inode, *_ = line.split(maxsplit=5)
            if inode != "0":
                mapped.append(tuple(int(limit, 16) for limit in limits.split("-")))
    starts = [start for start, _ in mapped]
    for tensor in tensors:
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        place = bisect(starts, first) - 1
        if place < 0 or last > mapped[place][1] or tensor.device.type != "cpu":
            continue
        first += -first % mmap.PAGESIZE
        if last - first >= mmap.PAGESIZE:
            size = (last - first) // mmap.PAGESIZE * mmap.PAGESIZE
            advise(ctypes.c_void_p(first), ctypes.c_size_t(size), PAGE_OUT)
