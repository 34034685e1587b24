"""Worker processes that make rows: torch's DataLoader over the numbers of draws.

Worker w of N makes every N-th draw, and the draws are returned in order. The stream and its state, one number, are
therefore the same for any N. Workers are new interpreters ("spawn"): a script that trains with workers needs
`if __name__ == "__main__":`.
"""

import io
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Generator
from functools import cached_property
from itertools import count
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from polyphi.data.draws import Draw, Draws
from polyphi.devices import cpu

DRAWS_AHEAD = 8
"""Prefetched draws per worker."""
STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals that a terminal or a scheduler sends to all processes of a group."""


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays: torch's queues would use a file descriptor for each and exceed their limit."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


class _PickledDraws(Dataset[bytes]):
    """Draws, or the errors instead of them, by group, as they are sent between processes."""

    def __init__(self, source: Draws) -> None:
        import cloudpickle  # which pickles lambdas and functions of a script, too

        self._pickled_source = cloudpickle.dumps(source)

    @cached_property
    def _source(self) -> Draws:
        source: Draws = pickle.loads(self._pickled_source)
        return source

    def __getitem__(self, group: int) -> bytes:
        result: Draw | Exception
        try:
            result = self._source[group]
        except Exception as error:
            # Other exceptions may fail to unpickle.
            is_builtin = type(error).__module__ == "builtins"
            result = error if is_builtin else RuntimeError(f"{type(error).__name__}: {error}")
            result.add_note(f"In a worker process:\n{traceback.format_exc()}")
        buffer = io.BytesIO()
        _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(result)
        return buffer.getvalue()


def draws(source: Draws, start: int, workers: int) -> Generator[Draw, None, None]:
    """Yield `source[start]`, `source[start + 1]`, ... from `workers` processes. Close the iterator to stop them; they
    also stop when this process ends, even if killed. Their exceptions are raised here."""
    loader = DataLoader(
        _PickledDraws(source),
        batch_size=None,
        sampler=count(start),  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=DRAWS_AHEAD,
        multiprocessing_context="spawn",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # for its seeds; the default generator is the training's
    )
    # This process handles Ctrl-C and stops the workers after its step. They inherit the blocked signals, but the start
    # of Python's resource tracker unblocks them, so it is started first.
    resource_tracker.ensure_running()
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        iterator: Any = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
    try:
        for pickled in iterator:
            result: Draw | Exception = pickle.loads(pickled)
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        # Its destructor waits for the last reference, which an error's traceback may hold.
        iterator._shutdown_workers()


def _start_worker(worker: int) -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def default(device: torch.device) -> int:
    """Return the default number of workers: 0 for training on a CPU; for a GPU its share of the cores, at most 8."""
    if device.type == "cpu":
        return 0
    return max(1, min(8, cpu.usable() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))
