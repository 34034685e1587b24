"""Several processes in one run: commands side by side, what one makes the others wait for, what all of them weigh, and
the files that all of them change."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from polyphi.runtime.files import locked, write_json


def side_by_side(commands: Mapping[str, Sequence[str]], tell: Callable[[str], None]) -> bool:
    """Commands of ours at once, with a fair share of the cores each. Their lines come out here; one that fails stops
    the run (RuntimeError). False where there is one core or one command: the caller then does the work itself."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if cores < 2 or len(commands) < 2:
        return False
    threads = str(max(1, cores // len(commands)))
    # oneDNN keeps a kernel for each of the last 1,024 shapes, and packs have many: a third of the memory.
    environment = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", **os.environ}
    environment |= {"OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "polyphi.cli", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C reaches them through us, once
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads of ours hold locks here
        )
        for name, command in commands.items()
    }
    relays = [
        threading.Thread(target=_relay, args=(process, tell), daemon=True)
        for process in running.values()
    ]
    for relay in relays:
        relay.start()
    try:
        codes = {name: process.wait() for name, process in running.items()}
    except KeyboardInterrupt:  # each finishes its step and saves
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.wait()
        raise
    for relay in relays:
        relay.join()
    if failed := ", ".join(name for name, code in codes.items() if code):
        raise RuntimeError(
            f"what led to {failed} failed, see its message above; run again to go on"
        )
    return True


def _relay(process: subprocess.Popen[str], tell: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for told in process.stdout:
        tell(told.rstrip("\n"))


def _die_with_parent() -> None:
    """In a new process on Linux: be killed when the parent is, so that nobody writes on in a killed run's folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def update_json(path: Path, default: Any, change: Callable[[Any], Any]) -> None:
    """Change a JSON file that several processes of a run change."""
    with locked(path.with_name(f".{path.name}.lock")):
        write_json(path, change(json.loads(path.read_text()) if path.exists() else default))


@contextlib.contextmanager
def weighed(note: Callable[[int], None]) -> Iterator[None]:
    """Meanwhile note each new maximum of the memory that this process and those it starts take together, in bytes,
    looked at every two seconds; a page that several share counts once (where the system tells)."""
    most, me = 0, psutil.Process()

    def weigh() -> None:
        nonlocal most
        now = 0
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it may have ended
                taken = process.memory_full_info()
                now += getattr(taken, "pss", taken.uss)
        if now > most:
            most = now
            note(now)

    with repeated(2.0, weigh, "memory"):
        yield


@contextlib.contextmanager
def repeated(seconds: float, act: Callable[[], None], name: str) -> Iterator[None]:
    """Meanwhile a thread of that name acts every so many seconds."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(seconds):
            act()

    thread = threading.Thread(target=run, daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
