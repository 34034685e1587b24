"""Processes that tests start and kill. They are forked from one that has imported torch and polyphi already, which
takes seconds of CPU each time."""

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOAD = [
    "polyphi_recipe.corpora.tools",
    "polyphi_recipe.dedup.decontaminate",
    "polyphi_recipe.pipeline.pipeline",
    "polyphi.train.trainer",
]


def start(
    code: str,
    *arguments: str,
    out: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Run code as `python -c` does, as the leader of a process group; what it prints goes to a file, or nowhere.
    `environment` is added to our own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_run, args=(code, arguments, out, dict(environment or {})))
    process.start()
    return process


def killed(
    code: str, *arguments: str, times: int, within: float, log: Path | None = None
) -> Iterator[int]:
    """`start` the code `times` times and kill it, within so many seconds after it began; yields after each kill."""
    delays = random.Random(0)
    for number in range(times):
        process = start(code, *arguments, out=log)
        time.sleep(delays.uniform(0, within))
        process.kill()
        process.join()
        yield number


def _run(
    code: str, arguments: tuple[str, ...], out: Path | None, environment: dict[str, str]
) -> None:
    os.setsid()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    with Path(out or os.devnull).open("w") as file, Path(os.devnull).open("w") as nothing:
        os.dup2(file.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    exec(code, {"__name__": "__main__"})
    sys.stdout.flush()
