"""Seconds of each step of a run, and the most memory that its processes took together: `timings.json`."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from polyphi.recipe import processes


class Timings:
    """The file `timings.json` of a run, which several processes update."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the seconds of a step, interrupted parts included."""
        start = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - start

            def add(timings: dict[str, Any]) -> dict[str, Any]:
                seconds = timings["seconds"]
                seconds[name] = round(seconds.get(name, 0.0) + spent, 1)
                return timings

            self._update(add)

    def note_memory(self, peak_bytes: int) -> None:
        self._update(lambda t: {**t, "peak_bytes": max(t["peak_bytes"], peak_bytes)})

    def _update(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        processes.update_json(self.path, {"seconds": {}, "peak_bytes": 0}, change)
