"""Locks between the processes of a run, and between a run and what is left of one that was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from polyphi.runtime.files import locked

HOLDS = """
import os, sys, time
from pathlib import Path
from polyphi.runtime.files import locked

with locked(Path(sys.argv[1])):
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def free(path: Path) -> bool:
    with locked(path, wait=False) as mine:
        return mine


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "one"
    with locked(path) as mine:
        assert mine and not free(path)
    assert free(path)


def test_what_a_killed_run_has_forked_holds_no_lock(tmp_path: Path) -> None:
    """As the servers do that share things between workers: they outlive who is killed, and the next run waited for
    ever."""
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
