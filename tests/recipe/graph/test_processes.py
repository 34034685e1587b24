"""Locks between the processes of a run, and between a run and the children of a killed one."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from queue import Queue
from threading import Thread

from rich.console import Console

from polyphi.runtime.files import locked
from polyphi_recipe.graph.folder import RunFolder

HOLDS = """
import os, sys, time
from pathlib import Path
from polyphi.runtime.files import locked

with locked(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)  # by now the child has given up the lock
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


def free(path: Path) -> bool:
    with locked(path, wait=False) as acquired:
        return acquired


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "one"
    with locked(path) as acquired:
        assert acquired and not free(path)
    assert free(path)


def test_a_run_that_waits_for_another_one_names_it(tmp_path: Path) -> None:
    messages: Queue[str] = Queue()
    folder = RunFolder(tmp_path, Console(quiet=True))
    folder.report_plain = messages.put  # type: ignore[method-assign]

    def second() -> None:
        with folder.exclusive("vision_1_align"):
            messages.put("has it")

    thread = Thread(target=second)
    with folder.exclusive("vision_1_align"):
        thread.start()
        message = messages.get(timeout=60)
        assert "vision_1_align" in message and f"process {os.getpid()} on" in message
    assert messages.get(timeout=60) == "has it"
    thread.join()


def test_children_of_a_killed_run_hold_no_lock(tmp_path: Path) -> None:
    """Servers that share data between workers outlive a killed parent; with a lock the next run would wait forever."""
    path = tmp_path / "one"
    command = [sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        try:
            assert not free(path)
            process.kill()
            process.wait()
            os.kill(child, 0)  # is still there
            assert free(path)
        finally:
            os.kill(child, signal.SIGKILL)
