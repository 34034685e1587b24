"""Processes that are forked on request."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from polyphi.runtime.fork_server import ForkServer

ROOT = Path(__file__).parents[3]
Start = Callable[[str], ForkServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a first process whose others run some code with `payload` and `descriptors`."""
    servers = []

    def started(code: str) -> ForkServer:
        program = (
            f"import os, sys, time; sys.path.append({str(ROOT)!r})\n"
            "from polyphi.runtime.fork_server import fork_on_request\n"
            f"def run(payload, descriptors):\n    {code}\nfork_on_request(run)"
        )
        servers.append(ForkServer([sys.executable, "-c", program], environment={}))
        return servers[-1]

    yield started
    for server in servers:
        server.close()


def output(server: ForkServer, payload: bytes = b"") -> bytes:
    """What a process writes to its descriptor before it ends with status 0."""
    reading, writing = os.pipe()
    process = server.start(payload, [writing])
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    assert process.wait(30) == 0
    return data


def test_a_process_has_its_payload_and_its_descriptors(start: Start) -> None:
    server = start("os.write(descriptors[0], payload[::-1])")
    assert output(server, b"abc") == b"cba"
    assert output(server, bytes(200_000)) == bytes(200_000)


@pytest.mark.parametrize(
    ("code", "status"),
    [("os._exit(3)", 3), ("os.abort()", -signal.SIGABRT), ("1 / 0", 1), ("pass", 0)],
)
def test_the_exit_status_is_the_process_s_own(start: Start, code: str, status: int) -> None:
    process = start(code).start()
    assert process.wait(30) == process.wait(30) == status


def test_a_process_that_is_killed_ends_and_no_other_does(start: Start) -> None:
    server = start("time.sleep(600)")
    first, second = server.start(), server.start()
    first.kill()
    assert first.wait(30) == -signal.SIGKILL
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.05)


def test_a_process_has_nothing_of_the_others(start: Start) -> None:
    """It could report another exit status for them."""
    server = start(
        "time.sleep(600) if payload else os.write(descriptors[0], "
        "' '.join(os.readlink(f'/proc/self/fd/{n}') for n in range(99) if os.path.exists(f'/proc/self/fd/{n}'))"
        ".encode())"
    )
    others = [server.start(b"sleep") for _ in range(3)]
    files = output(server).decode().split()
    assert files.count("/dev/null") == 2  # standard output and error
    assert len(files) == 3 and sum(name.startswith("pipe:") for name in files) == 1
    assert all(other.returncode is None for other in others)


def test_another_first_process_is_started_where_it_was_killed(start: Start) -> None:
    server = start("time.sleep(600 if payload else 0)")
    lost = server.start(b"sleep")
    killed = server.process
    killed.kill()
    killed.wait()
    assert lost.wait(30) == -signal.SIGKILL  # its status is not known any more
    assert server.start().wait(30) == 0
    assert server.process is not killed


def test_the_end_of_the_first_process_is_that_of_all(start: Start) -> None:
    server = start("time.sleep(600)")
    server.start()
    first, deadline = psutil.Process(server.process.pid), time.monotonic() + 30
    while not (children := first.children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.close()
    psutil.wait_procs(children, 30)
    assert not any(child.is_running() for child in children)
    with pytest.raises(OSError):
        server.start()
