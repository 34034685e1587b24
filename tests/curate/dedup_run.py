"""A deduplication, or a decontamination, in a process of its own: python dedup_run.py WORK ROWS [--die-after N]
[--known INDEX]

Documents are made as they are read, so that what a process holds is the pipeline's own. Prints its peak in bytes.
"""

import argparse
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from polyphi.curate.decontaminate import Decontaminate
from polyphi.curate.dedup import TEXTS, deduplicate
from polyphi.curate.documents import document
from polyphi.data.shards import document as raw

WORDS = [f"{a}{b}{c}" for a in ("ba", "de", "ki", "lo", "mu") for b in "nrst" for c in "aeiou"]
TASKS = 3


def text(number: int) -> str:
    """Every tenth document repeats the one before it with a few words changed."""
    said = random.Random(f"{number - number % 10}" if number % 10 < 2 else f"{number}").choices(
        WORDS, k=120
    )
    if number % 10 == 1:
        said[40] = "changed"
    return " ".join(said)


class Read(PipelineStep):
    """The documents of a rank; kills the process after `die_after` of them."""

    read = 0

    def __init__(self, rows: int, die_after: int) -> None:
        super().__init__()
        self.rows, self.die_after = rows, die_after

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for number in range(rank, self.rows, world_size):
            Read.read += 1
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
    """A step, and a writer of dropped documents, that puts them where the test sees them."""

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
    """This script, in a process of its own: (its exit status, its peak in bytes, 0 if it was killed)."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, *map(str, arguments)]
    # Files, not pipes: datatrove's helper process outlives a killed parent, and would hold a pipe open.
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.DEVNULL, start_new_session=True
        )
        status = process.wait(timeout=120)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the group is ours alone
        out.seek(0)
        told = out.read().split()
    return status, int(told[-1]) if status == 0 else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("rows", type=int)
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--known", type=Path)
    asked = parser.parse_args()
    reader, writer = Read(asked.rows, asked.die_after), Write(asked.work / "kept")
    if asked.known:
        step = Decontaminate(asked.known, asked.work / "ledger")
        logs = str(asked.work / "logs")
        LocalPipelineExecutor([reader, step, writer], TASKS, 1, logging_dir=logs).run()
    else:
        deduplicate(TEXTS, [reader], [writer], asked.work, tasks=TASKS, workers=1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
