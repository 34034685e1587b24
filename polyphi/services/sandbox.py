"""Run untrusted Python code, such as a model's, in processes with almost no access to the machine.

>>> run("print(6 * 7)").stdout
'42\\n'
>>> run("while True: pass", limits=Limits(seconds=1.0)).ended
'timeout'

    this process -> launcher (this file, as a script) -> first process of the namespaces -> the code

**Prevented** (by Linux namespaces, without further packages; root becomes a user that owns no files): all network
access, including loopback; seeing, signalling or tracing processes outside; files other than the system's libraries and
this Python with its packages, which are read-only; access to this process's environment; processes that outlive the
run, however they detach; exceeding the `Limits`.

**Not prevented**: the code can read every installed package. Memory that no process maps (a memfd, System V segments,
full pipes) counts towards no limit during the run. The code can use all system calls (there is no filter), so a
vulnerability of the kernel is one of this sandbox. Run deliberately malicious code in a virtual machine.

Where the kernel or a container's filter allows no namespaces, `run` raises, unless `weak=True`: then there are limits,
an empty environment, a temporary folder and, inside Python, a hook that forbids sockets, signals and other programs.
The code can then read its user's files, and malicious code can get around the hook.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Ended = Literal["ok", "error", "timeout", "memory", "output", "killed"]
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
"""Paths that programs need to start, in addition to this Python."""
BOX = "/box"
"""The working folder of the code, and the only writable one."""
DEVICES = ("null", "zero", "full", "random", "urandom")
FIRST_UID = 1 << 30
"""Run by root, the code gets user id `FIRST_UID` + process id: a user without files and other processes."""
NOBODY = 65534
SLACK = 96 << 20  # bytes that the launcher and an empty Python take

_NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # mnt uts ipc pid net
_USER_NAMESPACE = 0x10000000
_NOSUID_NODEV, _BIND, _REC, _PRIVATE, _DETACH = 2 | 4, 4096, 16384, 1 << 18, 2
_MOUNT_SETATTR, _HERE, _RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_DEATH_SIGNAL, _DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38


@dataclass(frozen=True)
class Limits:
    """Limits of a run: `seconds` of wall time and `cpu_seconds` of each process; bytes of memory (of each process, and
    monitored over all), of each file, of all files, of stdout and stderr; number of processes and threads; open files
    of each process."""

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 << 20
    file_bytes: int = 16 << 20
    disk_bytes: int = 64 << 20
    output_bytes: int = 1 << 20
    processes: int = 16
    open_files: int = 64


@dataclass(frozen=True)
class Result:
    """The result of a run. `ended`: "ok" (exit code 0), "error" (another code), "timeout", "memory", "output" (too
    much), or "killed" by a signal. `exit` is None if the run was stopped. `isolated`: whether it ran in namespaces."""

    stdout: str
    stderr: str
    exit: int | None
    ended: Ended
    seconds: float
    isolated: bool


def run(
    code: str,
    *,
    stdin: str = "",
    limits: Limits = Limits(),
    weak: bool = False,
    python: Path | None = None,
) -> Result:
    """Run `code` as a program and return its result. Raises ValueError if it can't be isolated and `weak` is False.
    `python`: interpreter of a virtual environment whose packages the code may use, instead of this Python's."""
    reason = unavailable()
    if reason and not weak:
        raise ValueError(
            f"code can't be isolated on this machine ({reason}): expected a Linux kernel, or container, that allows "
            "namespaces (for Docker: --security-opt seccomp=unconfined, or --privileged); weak=True runs it with "
            "limits only, which doesn't protect against malicious code"
        )
    return _run(code, stdin, limits, isolated=not reason, python=python)


@cache
def unavailable() -> str | None:
    """The reason why code can't be isolated on this machine, or None. Tested once per process."""
    try:
        _run("", "", Limits(), isolated=True)
    except OSError as error:
        return str(error)
    return None


def _run(
    code: str, stdin: str, limits: Limits, isolated: bool, python: Path | None = None
) -> Result:
    with (
        tempfile.TemporaryDirectory(prefix="polyphi-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as stdin_file,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        for name in ("root", "box"):
            Path(folder, name).mkdir()
        Path(folder, "box", "main.py").write_text(code, encoding="utf-8", errors="replace")
        if not isolated:  # the code runs as another user
            Path(folder).chmod(0o711)
            Path(folder, "box").chmod(0o777)
        stdin_file.write(stdin.encode(errors="replace"))
        stdin_file.seek(0)
        reading, writing = os.pipe()
        job = {
            "folder": folder,
            "limits": asdict(limits),
            "isolated": isolated,
            "python": str(python or sys.executable),
            "readable": [*SYSTEM, *_prefixes(python)],
            "report": writing,
        }
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", __file__, json.dumps(job)],
            stdin=stdin_file,
            stdout=out,
            stderr=err,
            env={},
            cwd="/",
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        stopped: Ended | None = None
        try:
            stopped = _watch(process, started + limits.seconds, limits, (out, err))
        finally:
            _end(process, isolated)
            with open(reading, "rb") as pipe:
                pipe_data = pipe.read()
        seconds = time.monotonic() - started
        texts = [_text(file, limits.output_bytes) for file in (out, err)]
        output_full = (
            sum(os.fstat(file.fileno()).st_size for file in (out, err)) > limits.output_bytes
        )
    report: dict[str, Any] = json.loads(pipe_data.partition(b"\n")[0] or b"{}")
    if "failed" in report:
        raise OSError(report["failed"])
    exit = report.get("exit") if stopped is None else None
    ended = stopped or ("output" if output_full else _end_reason(exit, texts[1]))
    return Result(texts[0], texts[1], exit, ended, seconds, isolated)


def _prefixes(python: Path | None) -> list[str]:
    """The installation folders of a Python interpreter."""
    if python is None:
        return [sys.base_prefix, sys.prefix]
    return [str(python.resolve().parents[1]), str(python.absolute().parents[1])]


def _watch(
    process: subprocess.Popen[bytes], deadline: float, limits: Limits, outputs: tuple[Any, ...]
) -> Ended | None:
    """Waits for the process. Returns the reason to stop it, or None when it ended by itself."""
    last_check = time.monotonic()
    while process.poll() is None:
        now = time.monotonic()
        if now > deadline:
            return "timeout"
        if sum(os.fstat(file.fileno()).st_size for file in outputs) > limits.output_bytes:
            return "output"
        if now - last_check > 0.1:
            last_check = now
            if _memory(process.pid) > limits.memory_bytes + SLACK:
                return "memory"
        time.sleep(0.005)
    return None


def _memory(pid: int) -> int:
    """Resident bytes of a process and its descendants."""
    import psutil

    total = 0
    try:
        top = psutil.Process(pid)
        for process in (top, *top.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:  # a process that is just ending
        pass
    return total


def _end(process: subprocess.Popen[bytes], isolated: bool) -> None:
    """Ends all processes of a run: on SIGTERM the launcher kills the namespace's first process, and the kernel kills
    the others before the launcher's wait returns."""
    if isolated and process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _text(file: Any, limit: int) -> str:
    file.seek(0)
    text: str = file.read(limit).decode(errors="replace")
    return text


def _end_reason(exit: int | None, stderr: str) -> Ended:
    if exit == 0:
        return "ok"
    if exit == -signal.SIGXCPU:
        return "timeout"
    if exit is None or exit < 0:
        return "killed"
    last = stderr.rstrip().rpartition("\n")[2]
    return "memory" if last.startswith("MemoryError") else "error"


# ------------------------------------------------------------------------------ the launcher

# The program that runs the code where there are no namespaces.
_GUARD = """
import sys
def _guard(event, _, forbidden=("socket.", "os.kill", "os.fork", "os.exec", "os.posix_spawn", "os.system",
                                "subprocess.", "ctypes.", "pty.")):
    if event.startswith(forbidden):
        raise PermissionError(event + " is forbidden here")
sys.argv = ["main.py"]
sys.addaudithook(_guard)
with open("main.py", encoding="utf-8") as _file:
    _code = compile(_file.read(), "main.py", "exec")
exec(_code, {"__name__": "__main__"})
"""


def _launch(job: dict[str, Any]) -> None:
    """In the launcher: enters the namespaces, drops privileges, starts the code, and reports its exit code."""
    report, isolated = job["report"], job["isolated"]
    os.set_inheritable(report, False)
    _prctl(_DEATH_SIGNAL, signal.SIGKILL)
    box = Path(job["folder"], "box")
    code, user = (box / "main.py").read_bytes(), FIRST_UID + os.getpid()
    if isolated:
        _enter_namespaces()
        if first := os.fork():
            signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
            os.waitpid(first, 0)
            return
        _private_root(f"{job['folder']}/root", job["readable"], job["limits"]["disk_bytes"])
        box = Path(BOX)
        (box / "main.py").write_bytes(code)
    os.chdir(box)
    if os.geteuid() == 0:
        _drop_privileges(user)
    _prctl(_DEATH_SIGNAL, signal.SIGKILL)  # a change of user clears it
    _prctl(_NO_NEW_PRIVILEGES, 1)
    _prctl(_DUMPABLE, 0)  # no tracing of this process, no reading of its memory
    worker = os.fork()
    if not worker:
        _exec_code(job, str(box))
    while (ended := os.wait())[0] != worker:  # the first process inherits orphans
        pass
    os.write(report, _line(exit=os.waitstatus_to_exitcode(ended[1])))


def _line(**fields: Any) -> bytes:
    """A report as a line of JSON; only the first line is used."""
    return json.dumps(fields).encode() + b"\n"


def _exec_code(job: dict[str, Any], home: str) -> None:
    """Sets the resource limits and executes the code."""
    limits = job["limits"]
    for resource_type, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, max(limits["file_bytes"], limits["output_bytes"] + 1)),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"] + 2),
        (resource.RLIMIT_CORE, 0),
    ):
        # CPU time: one second between SIGXCPU and SIGKILL, to distinguish it from other kills.
        hard_limit = resource.getrlimit(resource_type)[1]
        hard_limit = (
            value + 1 if hard_limit == resource.RLIM_INFINITY else min(hard_limit, value + 1)
        )
        resource.setrlimit(
            resource_type,
            (
                min(value, hard_limit),
                hard_limit if resource_type == resource.RLIMIT_CPU else min(value, hard_limit),
            ),
        )
    environment = {"HOME": home, "TMPDIR": home, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    environment |= {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    program = ["main.py"] if job["isolated"] else ["-c", _GUARD]
    python = job["python"]
    os.execve(python, [python, "-s", "-P", "-B", *program], environment)


def _enter_namespaces() -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _NAMESPACES | (_USER_NAMESPACE if user else 0))
    if user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            Path("/proc/self", name).write_text(text)


def _private_root(root: str, readable: list[str], disk_bytes: int) -> None:
    """Switches to a new root with the readable paths, read-only, and a writable box in memory."""
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID_NODEV, "mode=755,size=1m")
    bound: list[str] = []
    for path in readable:
        if any(path == there or path.startswith(f"{there}/") for there in bound):
            continue
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.exists(path):
            _make_mount_point(path, root + path)
            _mount(path, root + path, None, _BIND | _REC)
            bound.append(path)
    for name in DEVICES:
        _make_mount_point(f"/dev/{name}", f"{root}/dev/{name}")
    os.symlink(BOX, f"{root}/dev/shm")  # for locks of multiprocessing
    os.mkdir(root + BOX)
    if not os.path.lexists(f"{root}/tmp"):  # this Python may be installed there
        os.symlink(BOX, f"{root}/tmp")
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NOSUID_NODEV, 0, 0, 0)
    numbers = [
        ctypes.c_long(n) for n in (_MOUNT_SETATTR, _HERE, _RECURSIVE, ctypes.sizeof(attributes))
    ]
    _call("syscall", *numbers[:2], root.encode(), numbers[2], attributes, numbers[3])
    _mount("tmpfs", root + BOX, "tmpfs", _NOSUID_NODEV, f"mode=1777,size={disk_bytes}")
    for name in DEVICES:
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _BIND)
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _DETACH)


def _make_mount_point(source: str, target: str) -> None:
    """Creates an empty folder or file as a mount point."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).touch()


def _drop_privileges(user: int) -> None:
    os.setgroups([])
    try:
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError:  # in a container that maps few user ids
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _mount(
    source: str, target: str, file_system: str | None, flags: int, options: str = ""
) -> None:
    _call(
        "mount",
        *(source.encode(), target.encode(), file_system.encode() if file_system else None),
        *(ctypes.c_ulong(flags), options.encode()),
    )


def _prctl(option: int, value: int) -> None:
    _call("prctl", option, ctypes.c_ulong(value), *(ctypes.c_ulong(0),) * 3)


def _call(name: str, *arguments: Any) -> None:
    """Calls a function of the C library; raises OSError if it fails."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise OSError(f"this system has no {name}")
    if function(*arguments) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


if __name__ == "__main__":
    _job = json.loads(sys.argv[1])
    try:
        _launch(_job)
    except BaseException as _error:
        os.write(_job["report"], _line(failed=str(_error)))
    os._exit(0)
