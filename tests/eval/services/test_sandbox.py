"""Hostile programs that test_escapes.py does not have: each attempt must fail and be reported."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from polyphi_eval.services import sandbox
from polyphi_eval.services.sandbox import Limits, run, unavailable
from tests.fixtures.other_user import NOBODY, in_public_python

isolated = pytest.mark.skipif(unavailable() is not None, reason=f"no namespaces: {unavailable()}")
QUICK = Limits(seconds=60.0, cpu_seconds=20)
"""For programs that end at once, on a slow machine too."""


def processes_of_sandboxes() -> list[psutil.Process]:
    """The processes of sandboxes, except those of concurrent tests."""
    own = psutil.Process()
    beside = {p.pid for p in (own.parent() or own).children()} - {own.pid}
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line == [sys.executable, "-s", "-P", "-B", "main.py"] or sandbox.__file__ in line:
            with suppress(psutil.NoSuchProcess):
                if not beside & {p.pid for p in process.parents()}:
                    processes.append(process)
    return processes


def test_a_program_runs() -> None:
    result = run("import sys\nprint(input()[::-1])\nprint('é', file=sys.stderr)", stdin="olleh\n")
    assert (result.stdout, result.stderr, result.exit, result.ended) == ("hello\n", "é\n", 0, "ok")


@isolated
def test_a_python_that_is_a_link_runs(public_folder: Path) -> None:
    """A link to its folder, a link to that one's program, a virtual environment by links, and a link to that."""
    program = Path(sys.executable).resolve()
    (public_folder / "python").symlink_to(program.parents[1])
    folders = [public_folder / name for name in ("bin", "environment/bin")]
    for folder in folders:
        folder.mkdir(parents=True)
    (folders[0] / "python").symlink_to(f"../python/bin/{program.name}")
    (folders[1] / "python").symlink_to(folders[0] / "python")
    (folders[1] / "../pyvenv.cfg").write_text(f"home = {program.parent}\n")
    (public_folder / "link").symlink_to("environment")
    code = (
        f"import sys; sys.path += {sys.path!r}\n"
        "from polyphi_eval.services.sandbox import run\nprint(run('import sys; print(sys.executable)').stdout)"
    )
    for path in (f"python/bin/{program.name}", "bin/python", "link/bin/python"):
        python = public_folder / path
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stdout.strip() == str(python), done.stderr
        assert run("import sys; print(sys.executable)", python=python).stdout.strip() == str(python)


def test_errors_are_told() -> None:
    result = run("1/0")
    assert result.ended == "error" and result.exit == 1
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert run("import sys; sys.exit(7)").exit == 7
    assert run("import os; os.kill(os.getpid(), 9)").ended == "killed"


@isolated
def test_the_same_twice() -> None:
    code = "print({'a', 'b', 'c', 'd'}, hash('x'))"
    assert run(code).stdout == run(code).stdout != ""


def test_endless_output_ends() -> None:
    limits = Limits(seconds=60.0, output_bytes=100_000)
    for code in (
        "while True: print('x' * 1000)",
        "import os\nwhile True: os.write(2, b'y' * 9999)",
    ):
        result = run(code, limits=limits)
        assert result.ended == "output"
        assert len(result.stdout) + len(result.stderr) <= 200_000


@isolated
def test_many_processes_get_no_more_memory_than_one() -> None:
    code = """
import os, time
for _ in range(8):
    if not os.fork():
        break
x = bytearray(b"1") * (48 << 20)
time.sleep(90)
"""
    result = run(code, limits=Limits(seconds=60.0, memory_bytes=100 << 20))
    assert result.ended == "memory"
    assert processes_of_sandboxes() == []


@isolated
def test_the_disk_stays_empty() -> None:
    code = """
try:
    for n in range(40):
        open(f"f{n}", "wb").write(bytes(4 << 20))
except OSError as error:
    print(error.strerror, n)
"""
    text, number = run(code, limits=QUICK).stdout.rsplit(maxsplit=1)
    assert text == "No space left on device" and 10 <= int(number) <= 16


@isolated
def test_a_fork_bomb_stays_small() -> None:
    code = """
import os, time
made = 0
try:
    while True:
        if not os.fork():
            time.sleep(60)
        made += 1
except BlockingIOError:
    print(made)
"""
    result = run(code, limits=Limits(seconds=60.0, processes=10))
    assert result.ended == "ok" and 5 <= int(result.stdout) <= 11
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert run(bomb, limits=Limits(seconds=1.0, processes=10)).ended == "timeout"
    assert processes_of_sandboxes() == []


@isolated
def test_nothing_lives_on() -> None:
    code = """
import os, time, signal
if not os.fork():
    os.setsid()
    if not os.fork():
        for number in range(1, 32):
            if number not in (9, 17, 19): signal.signal(number, signal.SIG_IGN)
        time.sleep(60)
    os._exit(0)
print("bye")
"""
    assert run(code).stdout == "bye\n"
    assert processes_of_sandboxes() == []


@isolated
def test_nothing_outlives_whoever_started_it(tmp_path: Path) -> None:
    """Not even if it is killed and can't clean up."""
    code = (
        "from polyphi_eval.services.sandbox import Limits, run; "
        "run('import time; time.sleep(60)', limits=Limits(seconds=60))"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    deadline = time.monotonic() + 30
    seen: set[int] = set()  # first the trial of namespaces runs, which soon ends by itself
    while len(seen) < 4 or not processes_of_sandboxes():
        seen |= {p.pid for p in processes_of_sandboxes()}
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    assert processes_of_sandboxes()
    starter.kill()
    starter.wait()
    while processes_of_sandboxes():
        assert time.monotonic() < deadline
        time.sleep(0.02)


STANDARD_LIBRARY = """
import asyncio, concurrent.futures, fcntl, mmap, multiprocessing, os, select, shutil, signal, socket, sqlite3
import subprocess, sys, tempfile, threading, time
from pathlib import Path

def square(n): return n * n

def main():
    assert subprocess.run(["/bin/sh", "-c", "echo $((6 * 7)) | cat"], capture_output=True).stdout == b"42\\n"
    for method in "fork", "spawn", "forkserver":
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
    with multiprocessing.Manager() as manager:
        assert manager.list([1])[0] == 1
    for executor in concurrent.futures.ProcessPoolExecutor, concurrent.futures.ThreadPoolExecutor:
        with executor(2) as pool:
            assert list(pool.map(square, range(4))) == [0, 1, 4, 9]
    async def child():
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(1)", stdout=-1)
        return (await process.communicate())[0]
    assert asyncio.run(child()) == b"1\\n"
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    signal.pause()
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as file:
        Path(folder, "a", "b").mkdir(parents=True)
        Path(folder, "a", "c").symlink_to("b")
        os.link(file.name, Path(folder, "a", "d"))
        shutil.copytree(Path(folder, "a"), Path(folder, "e"))
        os.mkfifo(Path(folder, "fifo"))
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
        file.truncate(4096)
        mmap.mmap(file.fileno(), 4096).flush()
        sqlite3.connect(Path(folder, "db")).execute("create table t (a)").connection.commit()
    left, right = socket.socketpair()
    poll = select.epoll()
    poll.register(right)
    left.sendall(b"x")
    assert poll.poll(5) and right.recv(1) == b"x"
    os.set_blocking(right.fileno(), False)
    os.set_inheritable(right.fileno(), True)
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    os.nice(1), os.sched_setaffinity(0, os.sched_getaffinity(0)), os.getpgid(0), os.isatty(0), os.statvfs(".")
    thread = threading.Thread(target=time.sleep, args=(0.01,))
    thread.start(), thread.join()
    print("all ran")

if __name__ == "__main__":
    main()
"""


@isolated
def test_programs_may_use_the_standard_library() -> None:
    result = run(STANDARD_LIBRARY, limits=Limits(seconds=120.0, cpu_seconds=60, processes=32))
    assert result.stdout == "all ran\n", result.stderr


@pytest.mark.parametrize("mask", [0o077, 0])
@isolated
def test_the_umask_of_the_user_has_no_effect(mask: int) -> None:
    before = os.umask(mask)
    try:
        result = run("import os; print(oct(os.umask(0)), oct(os.stat('main.py').st_mode))")
    finally:
        os.umask(before)
    assert result.stdout == "0o22 0o100644\n"


def test_a_failure_of_the_sandbox_has_a_text() -> None:
    with pytest.raises(OSError, match="no-such-python"):
        run("pass", python=Path("/usr/bin/no-such-python"), weak=True)


@isolated
def test_only_the_systems_files_are_seen(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    secret.chmod(0o644)
    code = f"""
import os
for path in ({str(secret)!r}, {__file__!r}, {sandbox.__file__!r}, "/etc/passwd", "/proc/1/environ"):
    try: print("read", path, open(path).read(10))
    except OSError as error: print(error.strerror)
for path in ("/usr/x", "/x", os.path.dirname(os.__file__) + "/x"):
    try: open(path, "w"); print("wrote", path)
    except OSError as error: print(error.strerror)
print(sorted(os.listdir("/")), os.listdir("."))
"""
    output = run(code).stdout
    assert "read" not in output and "wrote" not in output, output
    assert "'usr'" in output and "['main.py']" in output


@isolated
def test_it_is_nobody() -> None:
    code = """
import os, ctypes
print(os.getuid(), os.getgroups())
libc = ctypes.CDLL(None, use_errno=True)
print(libc.mount(b"none", b"/usr", b"tmpfs", 0, None), libc.chroot(b"/tmp"), libc.setuid(0))
"""
    who, failed = run(code).stdout.splitlines()
    assert not who.startswith("0 ")
    assert failed == "-1 -1 -1"


@isolated
def test_nothing_stays_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    run("open('f', 'w').write('x'); import os; os.makedirs('a/b'); os.chmod('a', 0)")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that any user may read; pytest's folders are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@isolated
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_a_user_who_is_not_root_is_isolated_too(public_folder: Path) -> None:
    """With a user namespace, which root doesn't need."""
    code = """
result = sandbox.run("import os; print(os.getuid(), os.listdir('/'))\\nwhile True: os.fork()")
print(result.isolated, result.stdout, result.stderr)
"""
    output = in_public_python(code, public_folder, NOBODY)
    assert output.startswith("True 65534 ['tmp', ") and "home" not in output
    assert "BlockingIOError" in output


def test_where_it_can_not_be_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "unavailable", lambda: "unshare: Operation not permitted")
    with pytest.raises(
        ValueError, match=r"can't be isolated.*unshare: Operation not permitted.*weak=True"
    ):
        run("print(1)")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_without_namespaces_there_are_limits_and_a_hook(public_folder: Path) -> None:
    code = """
sandbox.unavailable = lambda: "because"
limits = sandbox.Limits(seconds=0.1)
print(sandbox.run("print(1)", weak=True))
for code in ("import socket; socket.socket()", "import os; os.kill(1, 0)", "import os; os.fork()",
             "import subprocess; subprocess.run(['true'])", "import os; os.listdir('/root')"):
    print("PermissionError" in sandbox.run(code, weak=True).stderr)
print(sandbox.run("while True: pass", limits=limits, weak=True).ended)
"""
    for user in (0, NOBODY):
        first, *forbidden, last = in_public_python(code, public_folder, user).splitlines()
        assert "stdout='1\\n', stderr='', exit=0, ended='ok'" in first and "isolated=False" in first
        assert forbidden == ["True"] * 5 and last == "timeout"
