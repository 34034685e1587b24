"""Work in steps: a generator that yields where it may pause or stop, and returns its result.

>>> def double(values: list[int]) -> Steps[list[int]]:
...     doubled = []
...     for value in values:
...         yield
...         doubled.append(2 * value)
...     return doubled
>>> result_of(double([1, 2]))
[2, 4]

Encoders run in steps of a layer, and the server decodes the images of a request in steps of an image
(serve/admission/threads.py): in between, others have their turns.

Work that waits within a step ends when its result isn't needed any more: it asks `is_stopped`.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Steps = Generator[None, None, T]


Stop = Callable[[], bool]
_stop: ContextVar[Stop | None] = ContextVar("stop", default=None)


@contextmanager
def stopped_by(stop: Stop) -> Iterator[None]:
    """A context in which `is_stopped`, called by this thread, returns what `stop` returns."""
    token = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(token)


def is_stopped() -> bool:
    """Whether the result of the work that this thread is doing isn't needed any more."""
    stop = _stop.get()
    return stop is not None and stop()


def result_of(steps: Steps[T]) -> T:
    """Run all steps and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def timed(steps: Steps[T]) -> Steps[tuple[T, float]]:
    """Return the result of the steps and the seconds that they ran, without pauses between them."""
    seconds = 0.0
    while True:
        started_at = time.monotonic()
        try:
            next(steps)
        except StopIteration as end:
            return end.value, seconds + time.monotonic() - started_at
        seconds += time.monotonic() - started_at
        yield


def run_all(function: Callable[P, Steps[T]]) -> Callable[P, T]:
    """Return the function that runs all steps of `function` and returns their result."""

    @wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> T:
        return result_of(function(*args, **options))

    return run
