"""Processes that tests start and kill. They are forked from one that has imported torch and polyphi already, which
takes seconds of CPU each time."""

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOAD = ["polyphi.corpora.tools", "polyphi.curate.pipeline", "polyphi.curate.decontaminate"]


def start(code: str, *arguments: str, out: Path | None = None) -> BaseProcess:
    """Run code as `python -c` does, as the leader of a process group; what it prints goes to a file, or nowhere."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_run, args=(code, arguments, out))
    process.start()
    return process


def _run(code: str, arguments: tuple[str, ...], out: Path | None) -> None:
    os.setsid()
    sys.argv = ["-c", *arguments]
    with Path(out or os.devnull).open("w") as file, Path(os.devnull).open("w") as nothing:
        os.dup2(file.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    exec(code, {"__name__": "__main__"})
    sys.stdout.flush()
