"""Fresh samples: where making a sample is cheap, a corpus is drawn from its generator instead of from shards. The
stream is endless and no sample comes twice.

>>> squares = Fresh(lambda n: document(f"{n}", f"{n} squared is {n * n}", "", ""), fingerprint="squares, version 1")
>>> squares.id(12), squares.sample(12).answer
('fresh-00000012', '12 squared is 144')
>>> Loader({"squares": 1, "documents": 2}, folder, make_rows, ..., fresh={"squares": squares})
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyphi.data.shards import Sample


@dataclass(frozen=True)
class Fresh:
    """An endless corpus. `make(n)` returns sample n, a pure function of n; it is sent to worker processes.
    `fingerprint` is a hash of everything that decides the samples: code, seed, raw material."""

    make: Callable[[int], Sample]
    fingerprint: str

    @property
    def manifest(self) -> dict[str, Any]:
        """What a run's manifest records of this corpus."""
        return {"fresh": self.fingerprint}

    def id(self, index: int) -> str:
        """The id of a sample, also of one that can't be made."""
        return f"fresh-{index:08d}"

    def sample(self, index: int) -> Sample:
        """A sample by its number. Raises ValueError where the generator does."""
        return self.make(index)
