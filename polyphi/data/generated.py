"""Fresh samples: a corpus whose samples are cheap is drawn from its generator instead of from shards. The stream is
endless and has no duplicates.

>>> squared = lambda n: document(f"{n}", f"{n} squared is {n * n}", "", "")
>>> squares = GeneratedSamples(squared, fingerprint="squares, version 1")
>>> squares.id(12), squares.sample(12).answer
('fresh-00000012', '12 squared is 144')
>>> Loader({"squares": 1, "documents": 2}, folder, make_rows, ..., generated={"squares": squares})
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyphi.data.sample import Sample


@dataclass(frozen=True)
class GeneratedSamples:
    """An endless corpus. `make(n)` returns sample n, a pure function of n; it is pickled for worker processes.
    `fingerprint` is a hash of everything that the samples depend on: code, seed, raw material."""

    make: Callable[[int], Sample]
    fingerprint: str

    @property
    def manifest(self) -> dict[str, Any]:
        """The entry for this corpus in a run's manifest."""
        return {"fresh": self.fingerprint}

    def id(self, index: int) -> str:
        """Return the id of a sample, also if its generator fails."""
        return f"fresh-{index:08d}"

    def sample(self, index: int) -> Sample:
        """Return a sample by its number. Raises ValueError if the generator does."""
        return self.make(index)
