"""`timings.json`: seconds of each step of a run, and the peak memory of all its processes."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from polyphi_recipe.graph import processes


class Timings:
    """The file `timings.json` of a run, which several processes update."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the seconds of a step to its entry, those of interrupted attempts included."""
        start = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - start

            def add(timings: dict[str, Any]) -> dict[str, Any]:
                seconds = timings["seconds"]
                seconds[name] = round(seconds.get(name, 0.0) + elapsed, 1)
                return timings

            self._update(add)

    def note_memory(self, peak_bytes: int) -> None:
        self._update(lambda t: {**t, "peak_bytes": max(t["peak_bytes"], peak_bytes)})

    def _update(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        processes.update_json(self.path, {"seconds": {}, "peak_bytes": 0}, change)
