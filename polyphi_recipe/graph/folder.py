"""The folder of a run, which several processes of the run write: its paths, locks, times and messages."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from polyphi.runtime import distributed
from polyphi.runtime.files import locked
from polyphi.train.checkpoint import MANIFEST
from polyphi_recipe.graph.timings import Timings


class RunFolder:
    """The folder of a run (graph.py lists its files), and the console that its messages are printed to."""

    def __init__(self, path: Path, console: Console | None = None) -> None:
        self.path = Path(path)
        self.console = console or Console()
        self.data, self.stages = self.path / "data", self.path / "stages"
        self.tokenizer = self.path / "tokenizer"
        self.timings = Timings(self.path / "timings.json")

    def is_trained(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return (self.stages / stage / MANIFEST).exists()

    def has_training_rows(self, corpus: str) -> bool:
        """Whether the training split of a corpus is built."""
        return (self.data / corpus / "train/manifest.json").exists()

    @contextlib.contextmanager
    def exclusive(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """A lock on making the corpus, tokenizer or stage `name`: other processes of the run wait until it exists. With
        `shared`, the processes of a torchrun make it together: the first one holds the lock for all of them."""
        if shared:
            distributed.start()
        if shared and distributed.rank() > 0:
            distributed.wait()
            yield
            return

        def report(holder: str) -> None:
            self.report_plain(f"{name}: waits for {holder}, which is working on it in {self.path}")

        with locked(self.path / ".locks" / name, report=report):
            if shared:
                distributed.wait()
            yield

    def report(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def report_plain(self, text: str) -> None:
        """Report a text that may quote others: brackets in it are no markup."""
        self.console.print(text, highlight=False, markup=False)
