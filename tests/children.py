"""Child processes of this one."""

from collections.abc import Callable

import psutil

Children = Callable[[], list[psutil.Process]]


def new_children() -> Children:
    """A function that returns the processes started from now on that haven't ended. (Earlier tests may have left some
    that serve the whole session.)"""
    earlier = set(psutil.Process().children())
    return lambda: [child for child in psutil.Process().children() if child not in earlier]
