"""Ctrl-C during training: the first one stops after the current step, the second one at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_came = False


def remember() -> None:
    """From now on no Ctrl-C is lost in this process: one that is raised where Python drops errors (in the callback of a
    weak reference, say) takes effect at the first step of the next `Interruptible`."""
    signal.signal(signal.SIGINT, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    global _came  # noqa: PLW0603 - a signal's handler has nowhere else
    _came = True
    raise KeyboardInterrupt


class Interruptible:
    """The first Ctrl-C (or SIGTERM) is noted: the caller finishes and saves the step. A second one stops at once."""

    def __enter__(self) -> Callable[[], bool]:
        self._asked = _came
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
