"""Ctrl-C in long work: once, and it ends well; twice, and it ends."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interruptible:
    """Ctrl-C (and SIGTERM) asks once: the step is finished and saved. A second one stops at once."""

    def __enter__(self) -> Callable[[], bool]:
        self._asked = False
        self._old: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return lambda: self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
