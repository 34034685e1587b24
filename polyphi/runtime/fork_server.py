"""Processes that are forked on request, each in milliseconds, from a first one that has loaded what they need.

>>> forks = ForkServer([sys.executable, "-m", "program"], environment={})     # it ends with fork_on_request(run)
>>> process = forks.start(b"payload", [descriptor])           # run(b"payload", [a copy of the descriptor]) in another
>>> process.wait()
0

The first process has one thread, so that it may fork. Its standard input is the other end of a socket, on which it
receives requests; when that is closed, it ends with all processes that it has forked:

    records    START or KILL, the number of a process, the length of its payload; with START, descriptors
    payload    of START

The first descriptor is the writing end of a pipe for the exit status, which the first process keeps.
"""

import gc
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

RECORD, STATUS = struct.Struct("<cQI"), struct.Struct("<i")
START, KILL = b"S", b"K"
CONTROL = 0
"""The descriptor on which the first process receives requests: its standard input."""
MAX_DESCRIPTORS = 4


def package_folders() -> list[str]:
    """The folders that this process imports from, for the `sys.path` of a process that starts isolated (-I -S)."""
    own = str(Path(__file__).parents[2])
    return [own, *(path for path in sys.path if Path(path).is_absolute())]


class ForkServer:
    """The first process, which forks the others. Another one is started in its place where it has ended, for example
    because the system had no memory left. Safe to use from several threads."""

    def __init__(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], data: bytes = b""
    ) -> None:
        """`data`: what its program reads (`read`) before it calls `fork_on_request`."""
        self._arguments, self._environment, self._data = arguments, environment, data
        self._lock = threading.Lock()
        self._numbers = count()
        self._closed = False
        self._launch()

    def _launch(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                self._arguments,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(self._environment),
                start_new_session=True,  # Ctrl-C is for this process
            )
        self._end = weakref.finalize(self, _end, self._control, self.process)
        with suppress(OSError):  # it has ended; the first request notices
            self._control.sendall(self._data)

    def start(self, payload: bytes = b"", descriptors: Sequence[int] = ()) -> "ForkedProcess":
        """Fork a process that runs with the payload and copies of the descriptors. Raises OSError where the system
        starts none, and after `close`."""
        status, theirs = os.pipe()
        process = ForkedProcess(self, next(self._numbers), status)
        try:
            record = RECORD.pack(START, process.number, len(payload))
            with self._lock:
                try:
                    self._send(record, payload, [theirs, *descriptors])
                except OSError:
                    if self._closed:
                        raise
                    self._end()
                    self._launch()
                    self._send(record, payload, [theirs, *descriptors])
        finally:
            os.close(theirs)
        return process

    def _send(self, record: bytes, payload: bytes, descriptors: Sequence[int]) -> None:
        socket.send_fds(self._control, [record], descriptors)
        self._control.sendall(payload)

    def kill(self, number: int) -> None:
        """End a process, whatever it is doing."""
        with suppress(OSError), self._lock:
            self._control.sendall(RECORD.pack(KILL, number, 0))

    def close(self) -> None:
        """End the first process and all others."""
        with self._lock:
            self._closed = True
            self._end()


class ForkedProcess:
    """A process that was forked, with the methods of `subprocess.Popen` that end one."""

    def __init__(self, server: ForkServer, number: int, status: int) -> None:
        self.number = number
        self.returncode: int | None = None
        self._server, self._status = server, status
        self._close = weakref.finalize(self, os.close, status)

    def kill(self) -> None:
        if self.returncode is None:
            self._server.kill(self.number)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal, when the process has ended. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            if not poll.poll(None if timeout is None else 1000 * timeout):
                raise subprocess.TimeoutExpired(str(self.number), timeout or 0)
            status = os.read(self._status, STATUS.size)
            # Nothing was written where the first process has ended, or could not fork.
            self.returncode = (
                os.waitstatus_to_exitcode(*STATUS.unpack(status)) if status else -signal.SIGKILL
            )
            self._close()
        return self.returncode


def _end(control: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    control.close()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it, and those that it has forked
    process.wait()


# ------------------------------------------------------------------------------ in the first process


def read(count: int) -> bytes:
    """The next bytes that the first process receives. Raises EOFError where they end before."""
    data = bytearray()
    while len(data) < count:
        piece = os.read(CONTROL, count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def fork_on_request(run: Callable[[bytes, list[int]], None]) -> None:
    """Fork a process that calls `run(payload, descriptors)` for each START, until the other end is closed; then end all
    of them."""
    control = socket.socket(fileno=CONTROL)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # without memory, the kernel ends this process and no other
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    # The handler itself does nothing: it may run anywhere, also within itself.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    gc.freeze()  # a collection would copy all pages
    processes: dict[int, tuple[int, int]] = {}  # number -> process id, pipe for its status
    with suppress(EOFError, OSError):
        while True:
            ready = select.select([CONTROL, woken], [], [])[0]
            if woken in ready:
                os.read(woken, 4096)
                _reap(processes)
            if CONTROL not in ready:
                continue
            record, descriptors, _, _ = socket.recv_fds(control, RECORD.size, MAX_DESCRIPTORS)
            record += read(RECORD.size - len(record))
            action, number, length = RECORD.unpack(record)
            if action == KILL:
                if number in processes:
                    os.kill(processes[number][0], signal.SIGKILL)
                continue
            payload, status = read(length), descriptors.pop(0)
            try:
                process = os.fork()
            except OSError:  # no memory: the pipe is closed without a status
                os.close(status)
            else:
                if not process:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    control.close()
                    for descriptor in (woken, waking, status, *(s for _, s in processes.values())):
                        os.close(descriptor)
                    _run(run, payload, descriptors)
                processes[number] = process, status
            for descriptor in descriptors:
                os.close(descriptor)
    os.killpg(0, signal.SIGKILL)


def _reap(processes: dict[int, tuple[int, int]]) -> None:
    """Send the status of each process that has ended."""
    for number, (process, descriptor) in list(processes.items()):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            del processes[number]
            with suppress(OSError):  # nobody waits for it any more
                os.write(descriptor, STATUS.pack(status))
            os.close(descriptor)


def _run(run: Callable[[bytes, list[int]], None], payload: bytes, descriptors: list[int]) -> None:
    """Run in the forked process, which ends here."""
    try:
        run(payload, descriptors)
        os._exit(0)
    finally:
        os._exit(1)
