"""Child processes end with their parent."""

import ctypes
import signal
import sys

_DEATH_SIGNAL = 1  # of prctl


def die_with_parent() -> None:
    """Let Linux kill this new process when the thread that made it ends, and so when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
