"""Rows made by worker processes, through grain: its random access over our order of draws, and its processes.

Worker w of N makes every N-th draw, and the draws come back in order. So the stream, and the one number that is its
state, are the same for any N. Workers are fresh interpreters ("spawn"): a script that trains with workers keeps its
work under `if __name__ == "__main__":`.
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

DRAWS_AHEAD = 8
"""Finished draws that wait per worker."""
ENDLESS = 1 << 60
STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals that a terminal or a scheduler sends to all processes at once."""


@dataclass(frozen=True)
class _Parcel:
    """A draw on its way between processes. Tensors travel as arrays: torch would pass each by a file descriptor, of
    which there are too few."""

    draw: Draw
    rows: list[dict[str, Any]]

    @classmethod
    def of(cls, draw: Draw) -> "_Parcel":
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


class _From(Sequence[_Parcel]):
    """The draws from a group on, as grain asks for them."""

    def __init__(self, source: Draws, start: int) -> None:
        self._source = source
        self._start = start

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> _Parcel:  # type: ignore[override]
        try:
            return _Parcel.of(self._source[self._start + index])
        except Exception as error:
            if type(error).__module__ == "builtins":
                raise
            # Others may not survive the way: then the parent would wait for ever.
            raise RuntimeError(f"{type(error).__name__}: {error}") from error


def draws(source: Draws, start: int, count: int) -> Generator[Draw, None, None]:
    """`source[start]`, `source[start + 1]`, ... made by `count` processes. Close the iterator to end them; they also
    end with this process, however it ends. What goes wrong in one is raised here. Raises ValueError where grain
    isn't installed."""
    grain = _grain()
    made = iter(
        grain.MapDataset.source(_From(source, start))
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        .mp_prefetch(grain.MultiprocessingOptions(count, DRAWS_AHEAD), _start_worker)
    )
    try:
        # Ctrl-C is for this process, which ends the workers when its step is done. They inherit that it is held back;
        # but Python's resource tracker, when it starts, lets it through again, so it starts first.
        resource_tracker.ensure_running()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            parcel = next(made)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        while True:
            yield parcel.open()
            parcel = next(made)
    finally:
        made.close()


def _grain() -> Any:
    # It warns that its profiler can't be used without jax; nobody asked for that.
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import grain
    except ImportError:
        raise ValueError(
            'worker processes need grain; pip install "polyphi[workers]", or train with --workers 0'
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
    """Workers where nobody said how many: none beside a CPU that trains; beside a GPU its share of the cores, at most
    8, if grain is there."""
    import importlib.util

    if device.type == "cpu" or importlib.util.find_spec("grain") is None:
        return 0
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))
