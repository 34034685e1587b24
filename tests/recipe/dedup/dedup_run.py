"""A deduplication, or a decontamination, in a separate process: python dedup_run.py WORK ROWS [--die-after N]
[--known INDEX]

Documents are generated while they are read, so that the memory of the process is the pipeline's. Prints the growth in
bytes during reading.
"""

import argparse
import contextlib
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from polyphi.data.shards import document as raw
from polyphi_recipe.dedup.decontaminate import Decontaminate
from polyphi_recipe.dedup.dedup import TEXTS, deduplicate
from polyphi_recipe.pipeline.documents import document
from tests.fixtures import forked

WORDS = [f"{a}{b}{c}" for a in ("ba", "de", "ki", "lo", "mu") for b in "nrst" for c in "aeiou"]
TASKS = 3


def text(number: int) -> str:
    """Every tenth document repeats the one before it with a few words changed."""
    words = random.Random(f"{number - number % 10}" if number % 10 < 2 else f"{number}").choices(
        WORDS, k=400
    )
    if number % 10 == 1:
        words[40] = "changed"
    return " ".join(words)


class Read(PipelineStep):
    """The documents of a rank; kills the process after `die_after` of them."""

    read = first = most = 0

    def __init__(self, rows: int, die_after: int) -> None:
        super().__init__()
        self.rows, self.die_after = rows, die_after

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for number in range(rank, self.rows, world_size):
            Read.read += 1
            if Read.read % 50 == 0:  # the process's overall peak is during its imports
                Read.most = max(Read.most, psutil.Process().memory_info().rss)
                Read.first = Read.first or Read.most
            if Read.read == self.die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            # Neighbours in number are neighbours in a rank, so that both kinds of pairs occur.
            yield document(raw(f"d{number}", text(number), "", "MIT"))


class Write(PipelineStep):
    """Ids and lineage, a file per rank."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{rank}.txt").open("w") as out:
            for one in data:
                out.write(f"{one.id} {one.metadata['lineage']}\n")


class Take:
    """A step, and a writer of dropped documents, that appends documents to a list."""

    def __init__(self, seen: list[Document]) -> None:
        self.seen = seen

    def __deepcopy__(self, memo: Any) -> "Take":
        return self  # the executor copies its steps

    def __enter__(self) -> "Take":
        return self

    def __exit__(self, *_: object) -> None: ...

    def write(self, one: Document, rank: int = 0) -> None:
        self.seen.append(one)

    def __call__(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        self.seen += list(data)


def start(*arguments: object) -> tuple[int, int]:
    """Run this script in a separate process; return (exit status, growth in bytes during reading; 0 if it was
    killed)."""
    # Files, not pipes: datatrove's helper process outlives a killed parent, and would hold a pipe open.
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        process = forked.start(
            "from tests.recipe.dedup import dedup_run; dedup_run.main()",
            *map(str, arguments),
            out=out,
        )
        process.join(120)
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(
                process.pid, signal.SIGKILL
            )  # the group contains only this process and its children
        status = process.exitcode
        assert status is not None, "the run takes more than two minutes"
        output = out.read_text().split()
    return status, int(output[-1]) if status == 0 else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("rows", type=int)
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--known", type=Path)
    options = parser.parse_args()
    reader, writer = Read(options.rows, options.die_after), Write(options.work / "kept")
    if options.known:
        step = Decontaminate(options.known, options.work / "ledger")
        logs = str(options.work / "logs")
        LocalPipelineExecutor([reader, step, writer], TASKS, 1, logging_dir=logs).run()
    else:
        deduplicate(TEXTS, [reader], [writer], options.work, tasks=TASKS, workers=1)
    print(Read.most - Read.first)


if __name__ == "__main__":
    main()
