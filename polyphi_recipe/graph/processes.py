"""Several processes of one run: running commands in parallel, measuring the memory of all processes, and changing
shared JSON files."""

import contextlib
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

from polyphi.devices import cpu
from polyphi.runtime.children import die_with_parent
from polyphi.runtime.files import locked, write_json


def run_parallel(
    commands: Mapping[str, Sequence[str]],
    report: Callable[[str], None],
    program: str = "polyphi.cli",
) -> bool:
    """Run commands of a program (a module) in parallel, each with an equal share of the cores, and report their lines.
    Returns False without running anything where there is one core or one command. Raises RuntimeError where a command
    fails."""
    cores = cpu.usable()
    if cores < 2 or len(commands) < 2:
        return False
    threads = str(max(1, cores // len(commands)))
    # oneDNN keeps a kernel for each of the last 1,024 shapes, and packs have many: a third of the memory.
    environment = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", **os.environ}
    environment |= {"OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", program, *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # this process forwards Ctrl-C to them, once
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no threads of ours hold locks here
        )
        for name, command in commands.items()
    }
    relays = [
        threading.Thread(target=_relay, args=(process, report), daemon=True)
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
            f"the process for {failed} failed, see its message above; run the same command again to resume"
        )
    return True


def _relay(process: subprocess.Popen[str], report: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        report(line.rstrip("\n"))


def update_json(path: Path, default: Any, change: Callable[[Any], Any]) -> None:
    """Replace the content of a JSON file by `change(content)`, under a lock, since several processes change it."""
    with locked(path.with_name(f".{path.name}.lock")):
        write_json(path, change(json.loads(path.read_text()) if path.exists() else default))


@contextlib.contextmanager
def memory_tracked(note: Callable[[int], None]) -> Iterator[None]:
    """A context that calls `note` with each new maximum of the memory of this process and its children, in bytes,
    measured every two seconds; a page that several processes share counts once where the system reports it."""
    peak, own_process = 0, psutil.Process()

    def measure() -> None:
        nonlocal peak
        total = 0
        for process in (own_process, *own_process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it may have ended
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.uss)
        if total > peak:
            peak = total
            note(total)

    with periodically(2.0, measure, "memory"):
        yield


@contextlib.contextmanager
def periodically(seconds: float, act: Callable[[], None], name: str) -> Iterator[None]:
    """A context in which a thread with the given name calls `act` every `seconds`."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            act()

    thread = threading.Thread(target=run, daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
