"""Ctrl-C during training: the first one stops the run after the current step, the second one at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_received = False


def record_interrupts() -> None:
    """Record every later Ctrl-C of this process. One that is raised where Python ignores exceptions (such as the
    callback of a weak reference) then takes effect at the first step of the next `Interruptible`."""
    signal.signal(signal.SIGINT, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    global _received  # noqa: PLW0603 - a signal handler can't store it elsewhere
    _received = True
    raise KeyboardInterrupt


class Interruptible:
    """Context manager that records the first Ctrl-C (or SIGTERM), so that the caller can finish and save the step, and
    returns a function that says whether there was one. A second Ctrl-C raises KeyboardInterrupt at once."""

    def __enter__(self) -> Callable[[], bool]:
        self._interrupted = _received
        self._handlers: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)
            }
        return lambda: self._interrupted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
