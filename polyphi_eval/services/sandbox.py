"""Run untrusted Python code, such as a model's, in processes with almost no access to the machine.

>>> run("print(6 * 7)").stdout
'42\\n'
>>> run("while True: pass", limits=Limits(seconds=1.0)).ended
'timeout'

    this process -> launcher (this file, as a script) -> first process of the namespaces -> the code

**Prevented** (by Linux namespaces and a filter of system calls, without further packages; root becomes a user that owns
no files): all network access, including loopback; seeing, signalling or tracing processes outside; files other than the
system's libraries and this Python with its packages, which are read-only; access to this process's environment and to
the kernel's keyrings; new namespaces; processes that outlive the run, however they detach; exceeding the `Limits`.

**Not prevented**: the code can read every installed package. Memory that no process has mapped or touched (full pipes
and sockets, anonymous shared memory that was given back) counts towards no limit during the run. A vulnerability of the
kernel in one of the allowed system calls is one of this sandbox. Run deliberately malicious code in a virtual machine.

Where the kernel or a container's filter allows no namespaces or no filter, `run` raises, unless `weak=True`: then there
are limits, an empty environment, a private temporary folder and, inside Python, a hook that forbids sockets, signals
and other programs. Where the kernel can filter system calls, code that circumvents the hook can't start, signal or
connect to another process either. But it can read and change its user's files, and so do anything that the user can.

docs/sandbox.md lists attacks and what each gets (tests/escapes.py).
"""

import ctypes
import errno
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
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

Ended = Literal["ok", "error", "timeout", "memory", "output", "disk", "killed"]
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
_KEYCTL, _JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1

# Arguments of system calls that the code may use.
_NEW_NAMESPACES, _THREAD = 0x7E020000, 0x00010000  # flags of clone: none of these; this one
_PRCTL = (2, 3, 4, 15, 16, 23, 38, 39, 0x53564D41)  # reads, dumpable, names of threads and memory
_FCNTL = (*range(8), 36, 37, 38, 1030, 1031, 1032)  # not those that send signals, and leases
# TCGETS, TCGETS2 and TIOCGWINSZ (is it a terminal, and how wide), FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTL = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# The network namespace has no network, but AF_VSOCK and others ignore it. Some programs make a socket and don't use it.
_UNIX, _INTERNET, _STREAM, _DATAGRAM = 1, (2, 10), 1, 2  # families, and types of sockets
_PROTOCOLS = (0, 6, 17)  # TCP and UDP
_BETWEEN_PROCESSES = (
    *("fork", "vfork", "setsid", "setpgid", "tkill", "pidfd_open", "setpriority"),
    *("sched_setaffinity", "sched_setparam", "sched_setscheduler"),
    *("socket", "bind", "connect", "listen", "accept", "accept4"),
)
"""System calls that make or change other processes, or connect to them: refused without namespaces."""


@dataclass(frozen=True)
class Limits:
    """Limits of a run: `seconds` of wall time and `cpu_seconds` of each process; bytes of memory (of each process, and
    monitored over all), of each file, of all files, of stdout and stderr; number of files and folders, also empty ones
    (each takes about 1 KiB of the kernel's memory); number of processes and threads; open files of each process."""

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 << 20
    file_bytes: int = 16 << 20
    disk_bytes: int = 64 << 20
    files: int = 10_000
    output_bytes: int = 1 << 20
    processes: int = 16
    open_files: int = 64


@dataclass(frozen=True)
class SandboxResult:
    """The result of a run. `ended`: "ok" (exit code 0), "error" (another code), "timeout", "memory", "output" (too
    much), "disk" (too many or too large files, without namespaces; in them writing fails), or "killed" by a signal.
    `exit` is None if the run was stopped. `isolated`: whether it ran in namespaces."""

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
) -> SandboxResult:
    """Run `code` as a program and return its result. Raises ValueError if it can't be isolated and `weak` is False.
    `python`: interpreter of a virtual environment whose packages the code may use, instead of this Python's."""
    reason = unavailable()
    if reason and not weak:
        raise ValueError(
            f"code can't be isolated on this machine ({reason}): expected a Linux kernel, or container, that allows "
            "namespaces and filters of system calls (for Docker: --security-opt seccomp=unconfined, or --privileged); "
            "weak=True runs it with limits only, which doesn't protect against malicious code"
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
) -> SandboxResult:
    with (
        # Private (mode 0700): another user who could replace the program would run it as this one.
        tempfile.TemporaryDirectory(prefix="polyphi-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as stdin_file,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        for name in ("root", "box"):
            Path(folder, name).mkdir(mode=0o700)
        main = Path(folder, "box", "main.py")
        main.touch(mode=0o600)
        main.write_text(code, encoding="utf-8", errors="replace")
        stdin_file.write(stdin.encode(errors="replace"))
        stdin_file.seek(0)
        reading, writing = os.pipe()
        job = {
            "folder": folder,
            "limits": asdict(limits),
            "isolated": isolated,
            "command": [str(python or sys.executable), "-s", "-P", "-B"]
            + (["main.py"] if isolated else ["-c", _GUARD]),
            "readable": [*SYSTEM, *_prefixes(python)],
            "report": writing,
            "syscall_filter": _syscall_filter_file(),
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
            box = None if isolated else Path(folder, "box")
            stopped = _watch(process, started + limits.seconds, limits, (out, err), box)
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
    return SandboxResult(texts[0], texts[1], exit, ended, seconds, isolated)


def _prefixes(python: Path | None) -> list[str]:
    """A Python interpreter and its installation folders, which may be links."""
    if python is None:
        return [sys.executable, sys.base_prefix, sys.prefix]
    return [
        str(python.absolute()),
        *(str(path.parents[1]) for path in (python.resolve(), python.absolute())),
    ]


def _watch(
    process: subprocess.Popen[bytes],
    deadline: float,
    limits: Limits,
    outputs: tuple[Any, ...],
    box: Path | None,
) -> Ended | None:
    """Waits for the process of a run. Returns the reason to stop it, or None when it ended by itself. `box`: the
    working folder, if the file system doesn't limit its size."""
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
            if box and _is_full(box, limits):
                return "disk"
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


def _is_full(box: Path, limits: Limits) -> bool:
    """Whether a folder has more files or bytes than allowed. Code that hides or moves its files isn't noticed."""
    folders, count, size = [str(box)], 0, 0
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:  # files come and go
            for entry in entries:
                count += 1
                size += entry.stat(follow_symlinks=False).st_size
                if count > limits.files or size > limits.disk_bytes:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return False


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
    """Runs in the launcher: enters the namespaces, drops privileges, starts the code, and reports its exit code."""
    report, isolated = job["report"], job["isolated"]
    os.set_inheritable(report, False)
    os.umask(0o022)  # the code's user reads what root makes here
    # Python's handler would let the code interrupt the first process, which ignores signals without a handler.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _prctl(_DEATH_SIGNAL, signal.SIGKILL)
    _leave_keyring()
    # Before this process can't read the file any more.
    syscall_filter = _syscall_filter(job["syscall_filter"])
    box, user = Path(job["folder"], "box"), FIRST_UID + os.getpid()
    if isolated:
        code = (box / "main.py").read_bytes()
        _enter_namespaces()
        if first := os.fork():
            signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
            os.waitpid(first, 0)
            return
        _private_root(f"{job['folder']}/root", job["readable"], job["limits"])
        box = Path(BOX)
        (box / "main.py").write_bytes(code)
    elif os.geteuid() == 0:
        user = _give(box, user)
    os.chdir(box)
    if os.geteuid() == 0:
        _drop_privileges(user)
    _prctl(_DEATH_SIGNAL, signal.SIGKILL)  # a change of user clears it
    _prctl(_NO_NEW_PRIVILEGES, 1)
    _prctl(_DUMPABLE, 0)  # no tracing of this process, no reading of its memory
    worker = os.fork()
    if not worker:
        _prctl(_DEATH_SIGNAL, signal.SIGKILL)  # without namespaces it could leave the process group
        _exec_code(job, str(box), syscall_filter)
    while (ended := os.wait())[0] != worker:  # the first process inherits orphans
        pass
    os.write(report, _line(exit=os.waitstatus_to_exitcode(ended[1])))


def _line(**fields: Any) -> bytes:
    """A report as a line of JSON; only the first line is used."""
    return json.dumps(fields).encode() + b"\n"


def _syscall_filter_file() -> str:
    from polyphi.runtime import syscall_filter

    return str(syscall_filter.__file__)


def _syscall_filter(file: str) -> Any:
    """The module in polyphi/runtime/syscall_filter.py: this file runs alone, without the package."""
    sys.path.append(str(Path(file).parent))
    return import_module("syscall_filter")


def _leave_keyring() -> None:
    """Enters a new session keyring, where the kernel has keyrings: the user's keys are not reached through it. As the
    same user the code could still name the user's keyring, which the filter prevents."""
    if number := _KEYCTL.get(os.uname().machine):
        with suppress(OSError):
            _call("syscall", ctypes.c_long(number), _JOIN_SESSION_KEYRING, None)


def _exec_code(job: dict[str, Any], home: str, syscall_filter: Any) -> None:
    """Sets the resource limits, filters system calls and executes the code."""
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
    try:
        syscall_filter.install(_allowed_calls(syscall_filter, job["isolated"]))
    except OSError:
        if job["isolated"]:
            raise
    program = job["command"][0]
    try:
        os.execve(program, job["command"], environment)
    except OSError as error:
        message = f"{program} can't be started in the sandbox: {error.strerror}"
        raise OSError(message) from None


def _allowed_calls(syscall_filter: Any, isolated: bool) -> dict[str, Any]:
    """The system calls that the code may make. Without namespaces, those that make processes or sockets or reach
    another process aren't among them."""
    require = syscall_filter.Argument
    calls = dict.fromkeys(syscall_filter.NUMBERS, ()) | {
        "clone": (require(0, (0,), mask=_NEW_NAMESPACES),),
        "fcntl": (require(1, _FCNTL, error=errno.EINVAL),),
        "ioctl": (require(1, _IOCTL, error=errno.ENOTTY),),
        "prctl": (require(0, (*_PRCTL, _DEATH_SIGNAL), error=errno.EINVAL),),
        "socket": (
            require(0, (_UNIX, *_INTERNET), error=errno.EAFNOSUPPORT),
            require(1, (_STREAM, _DATAGRAM), mask=0xF, error=errno.EPROTONOSUPPORT),
            require(2, _PROTOCOLS, error=errno.EPROTONOSUPPORT),
        ),
        "socketpair": (require(0, (_UNIX,), error=errno.EAFNOSUPPORT),),
    }
    if isolated:
        return calls
    own = os.getpid()
    return {
        name: arguments for name, arguments in calls.items() if name not in _BETWEEN_PROCESSES
    } | {
        "clone": (require(0, (_THREAD,), mask=_NEW_NAMESPACES | _THREAD),),
        "kill": (require(0, (own,)),),
        "tgkill": (require(0, (own,)),),
        "prlimit64": (require(0, (0, own)),),
        "prctl": (require(0, _PRCTL, error=errno.EINVAL),),
        # A socket for datagrams could send them to any socket of this machine.
        "socketpair": (require(0, (_UNIX,)), require(1, (_STREAM,), mask=0xF)),
    }


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


def _private_root(root: str, readable: list[str], limits: dict[str, Any]) -> None:
    """Switches to a new root with the readable paths, read-only, and a writable box in memory."""
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID_NODEV, "mode=755,size=1m")
    _bind(root, readable)
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
    size = f"size={limits['disk_bytes']},nr_inodes={limits['files']}"
    _mount("tmpfs", root + BOX, "tmpfs", _NOSUID_NODEV, f"mode=1777,{size}")
    for name in DEVICES:
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _BIND)
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _DETACH)


def _bind(root: str, readable: list[str]) -> None:
    """Makes paths readable below a new root. Links are links there, too, since Python finds its folders by the links to
    it; what they name is readable as well."""
    paths = sorted(readable, key=len)  # a folder before what is in it
    bound: list[str] = []
    links: dict[str, str] = {}
    for path in paths:  # the loop also reads the targets that it appends
        if path in links:
            continue
        if link := next((link for link in links if path.startswith(f"{link}/")), None):
            paths.append(links[link] + path.removeprefix(link))
            continue
        is_bound = any(path == there or path.startswith(f"{there}/") for there in bound)
        if os.path.islink(path):
            folder = os.path.dirname(path)
            target = os.path.normpath(os.path.join(os.path.realpath(folder), os.readlink(path)))
            links[path] = target
            paths.append(target)
            if not is_bound:
                os.makedirs(root + folder, exist_ok=True)
                os.symlink(target, root + path)
        elif os.path.exists(path) and not is_bound:
            _make_mount_point(path, root + path)
            _mount(path, root + path, None, _BIND | _REC)
            bound.append(path)


def _make_mount_point(source: str, target: str) -> None:
    """Creates an empty folder or file as a mount point."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).touch()


def _give(box: Path, user: int) -> int:
    """Gives the working folder, outside namespaces, to a user without other files. Returns the user's id."""
    try:
        os.chown(box, user, user)
    except OSError:  # in a container that maps few user ids
        user = NOBODY
        os.chown(box, user, user)
    os.chown(box / "main.py", user, user)
    os.chown(box.parent, -1, user)
    box.parent.chmod(0o710)
    return user


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
        os.write(_job["report"], _line(failed=str(_error) or type(_error).__name__))
    os._exit(0)
