"""The memory of this process.

>>> give_back()                                  # after much has been freed
"""

import ctypes
import os


def give_back() -> None:
    """What is free in the heap goes back to the system: after large tensors or texts that may be hundreds of megabytes.
    Only glibc knows how; elsewhere nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
