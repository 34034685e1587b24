"""Faults at each step of each write: work runs in a forked process, whose `files.on_step` stops it, fails, or loses
what isn't on the disk yet, at one step of one write.

A `Point` is a step of the writes of one file, under a name without numbers and random parts; a fault is tried where the
work reaches it for the first time.
"""

import errno
import json
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, NamedTuple

from polyphi.runtime import files
from polyphi.runtime.files import Step

Fault = Literal["crash", "error", "full", "torn", "lost", "second"]
FAULTS: tuple[Fault, ...] = ("crash", "error", "full", "torn", "lost", "second")
"""The process ends; an exception; no space left; the power fails, and of what wasn't synced half is on the disk, or
nothing; a second process does the same work meanwhile."""
FULL: tuple[Step, ...] = ("created", "written", "appended", "synced")
"""Steps at which a disk can be full."""
STOPPED = 86
SECONDS = 0.5
"""A process whose next step doesn't come so soon after it asked for a lock is taken to wait for it."""
RANDOM = re.compile(r"\.[0-9a-f]{8}\.partial|[0-9a-f]{12,}|\d+")


class Point(NamedTuple):
    """A step of the writes of one file."""

    step: str
    name: str


def point(step: str, path: Path, root: Path) -> Point:
    """The point of a step; files outside `root` are named by their whole path."""
    name = os.path.relpath(path, root)
    return Point(step, RANDOM.sub("#", name))


@dataclass
class Disk:
    """Called at each step. Notes the points; makes a fault at the first step of `at`, or at step number `at`. `ask` is
    called there for a second process, and waits until that has gone as far as it can."""

    root: Path
    fault: Fault | None = None
    at: Point | int | None = None
    ask: Callable[[], None] = lambda: None
    points: list[Point] = field(default_factory=list)
    durable: dict[int, int] = field(default_factory=dict)
    """Inode -> bytes that are on the disk, whatever happens."""

    def __post_init__(self) -> None:
        for path in self._files():
            self.durable[path.stat().st_ino] = path.stat().st_size

    def __call__(self, step: Step, path: Path) -> None:
        if step == "synced" and path.is_file():
            self.durable[path.stat().st_ino] = path.stat().st_size
        here = point(step, path, self.root)
        is_there = self.at == len(self.points) if isinstance(self.at, int) else self.at == here
        self.points.append(here)
        if self.fault is not None and is_there:
            fault, self.fault = self.fault, None
            self._make(fault)

    def _make(self, fault: Fault) -> None:
        match fault:
            case "error":
                raise RuntimeError("a fault of a test")
            case "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case "second":
                self.ask()
            case _:
                if fault != "crash":
                    self._fail_power(half=fault == "torn")
                os._exit(STOPPED)

    def _fail_power(self, half: bool) -> None:
        for path in self._files():
            state = path.stat()
            on_disk = self.durable.get(state.st_ino, 0)
            if state.st_size > on_disk:
                os.truncate(path, on_disk + (state.st_size - on_disk) // 2 * half)

    def _files(self) -> Iterator[Path]:
        return (p for p in self.root.rglob("*") if p.is_file() and not p.is_symlink())


Work = Callable[[Path], None]


@dataclass
class Process:
    """A forked process that does some work in a folder. `steps` are the names of its steps, a line each; it waits for a
    line on `go` where its disk asks for a second process."""

    pid: int
    steps: IO[bytes]
    go: IO[bytes]
    log: Path

    def wait(self) -> int:
        """Its exit code."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.steps.close()
        self.go.close()
        return code

    def until_blocked(self) -> None:
        """Return when it has ended, or waits for a lock."""
        while line := self.steps.readline():
            if line == b"locking\n" and not select.select([self.steps], [], [], SECONDS)[0]:
                return


def start(work: Work, disk: Disk, log: Path) -> Process:
    """Do `work` in the disk's folder in a forked process, which leaves the points in a file beside `log`."""
    steps, sends = os.pipe()
    waits, go = os.pipe()
    if pid := os.fork():
        os.close(sends)
        os.close(waits)
        return Process(
            pid, os.fdopen(steps, "rb", buffering=0), os.fdopen(go, "wb", buffering=0), log
        )
    code = 1
    try:
        os.setsid()
        with log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)

        def on_step(step: Step, path: Path) -> None:
            os.write(sends, f"{step}\n".encode())
            disk(step, path)

        def ask() -> None:
            os.write(sends, b"second\n")
            os.read(waits, 1)

        disk.ask, files.on_step = ask, on_step
        work(disk.root)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if os.environ.get("POLYPHI_TEST_TRACEBACKS"):
            traceback.print_exc()
    finally:
        log.with_suffix(".points").write_text(json.dumps(disk.points))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def points_of(log: Path) -> list[Point]:
    """The points that a process left."""
    return [Point(*p) for p in json.loads(log.with_suffix(".points").read_text())]


def finish(process: Process, work: Work, root: Path, log: Path) -> tuple[int, int | None]:
    """Wait for a process, and do the same work in a second one where it asks for that. The exit codes of both."""
    second = None
    while line := process.steps.readline():
        if line == b"second\n":
            second = start(work, Disk(root), log)
            second.until_blocked()
            process.go.write(b"\n")
    if second is None:
        return process.wait(), None
    second.until_blocked()
    return process.wait(), second.wait()
