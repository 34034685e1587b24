"""Worker processes that make rows, with grain: random access to the order of draws in grain's processes.

Worker w of N makes every N-th draw, and the draws are returned in order. The stream and its state, one number, are
therefore the same for any N. Workers are new interpreters ("spawn"): a script that trains with workers needs
`if __name__ == "__main__":`.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyphi.batch import Batch
from polyphi.data.draws import Draw, Draws
from polyphi.runtime import cpu
from polyphi.runtime.installation import pip_install

DRAWS_AHEAD = 8
"""Prefetched draws per worker."""
ENDLESS = 1 << 60
STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals that a terminal or a scheduler sends to all processes of a group."""


@dataclass(frozen=True)
class _PickledDraw:
    """A draw in the form that is sent between processes. Tensors are sent as arrays: torch would use a file descriptor
    for each and exceed their limit."""

    draw: Draw
    rows: list[dict[str, Any]]

    @classmethod
    def of(cls, draw: Draw) -> "_PickledDraw":
        rows = [{f.name: _array(getattr(row, f.name)) for f in fields(Batch)} for row in draw.rows]
        return cls(replace(draw, rows=[]), rows)

    def open(self) -> Draw:
        return replace(
            self.draw,
            rows=[
                Batch(**{name: _tensor(value) for name, value in row.items()}) for row in self.rows
            ],
        )


def _array(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


class _GrainSource(Sequence[_PickledDraw]):
    """The draws from a group on, as a data source of grain."""

    def __init__(self, source: Draws, start: int) -> None:
        self._source = source
        self._start = start

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> _PickledDraw:  # type: ignore[override]
        try:
            return _PickledDraw.of(self._source[self._start + index])
        except Exception as error:
            if type(error).__module__ == "builtins":
                raise
            # Other exceptions may fail to unpickle; the parent would then wait for ever.
            raise RuntimeError(f"{type(error).__name__}: {error}") from error


def draws(source: Draws, start: int, count: int) -> Generator[Draw, None, None]:
    """Yield `source[start]`, `source[start + 1]`, ... from `count` processes. Close the iterator to stop them; they
    also stop when this process ends, even if killed. Their exceptions are raised here. Raises ValueError without
    grain."""
    grain = _grain()
    iterator = iter(
        grain.MapDataset.source(_GrainSource(source, start))
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        .mp_prefetch(grain.MultiprocessingOptions(count, DRAWS_AHEAD), _start_worker)
    )
    try:
        # This process handles Ctrl-C and stops the workers after its step. They inherit the blocked signals, but the
        # start of Python's resource tracker unblocks them, so it is started first.
        resource_tracker.ensure_running()
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            pickled = next(iterator)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        while True:
            yield pickled.open()
            pickled = next(iterator)
    finally:
        iterator.close()


def _grain() -> Any:
    # Suppress its warning that the profiler needs jax.
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import grain
    except ImportError:
        raise ValueError(
            f"worker processes need grain; {pip_install('workers')}, or train with --workers 0"
        ) from None
    finally:
        log.setLevel(level)
    return grain


def _start_worker(worker: int, workers: int) -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def default(device: torch.device) -> int:
    """Return the default number of workers: 0 for training on a CPU; for a GPU its share of the cores, at most 8, if
    grain is installed."""
    import importlib.util

    if device.type == "cpu" or importlib.util.find_spec("grain") is None:
        return 0
    return max(1, min(8, cpu.usable() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))
