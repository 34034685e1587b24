"""Attacks on the sandbox (polyphi_eval/services/sandbox.py), and what each gets with and without namespaces.

`python -m tests.escapes` prints them as the table of docs/sandbox.md.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent

from tests.fixtures.other_user import NOBODY, in_public_python

KEY, SECRET = "polyphi-test", "hunter2"
LIMITS = {"seconds": 60.0, "cpu_seconds": 20, "files": 300, "processes": 8}
WORDS = {
    "done": "**possible**",
    "opened": "possible, without a network",
    "no effect": "no effect",
    "not there": "not there",
    "ENOENT": "no such file",
    "EBADF": "no such file",
    "ESRCH": "no such process",
    "EAGAIN": "fails at the limit (`EAGAIN`)",
    "EFBIG": "fails at the limit (`EFBIG`)",
    "ENOSPC": "fails at the limit (`ENOSPC`)",
    "memory": "fails at the limit (`MemoryError`)",
    "timeout": "stopped at the limit",
    "output": "stopped at the limit",
    "disk": "stopped at the limit",
    "killed": "the program is killed",
}
"""What the table says for an outcome. All others are errors of refused system calls."""


@dataclass(frozen=True)
class Attack:
    """A program's attempt: the body of a function that returns an outcome, raises OSError, or else got what it wanted
    ("done"). `isolated` and `weak`: the outcomes with namespaces, and without them past the hook; of outcomes that
    depend on the machine, the first is that of the table. `alone`: it may end its process, and `limits` are other ones
    than `LIMITS`."""

    what: str
    code: str
    isolated: tuple[str, ...]
    weak: tuple[str, ...]
    alone: bool = False
    limits: tuple[tuple[str, float], ...] = ()


def attack(
    what: str, code: str, isolated: str, weak: str, alone: bool = False, **limits: float
) -> Attack:
    outcomes = (tuple(text.split(" | ")) for text in (isolated, weak))
    return Attack(
        what, dedent(code).strip(), *outcomes, alone or bool(limits), tuple(limits.items())
    )


PRELUDE = """
import ctypes, errno, fcntl, json, mmap, os, resource, signal, socket, struct, sys, time
PID, PORT, FOLDER, KEY, SECRET = json.loads(CONSTANTS)
NUMBERS = {
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "unshare": (272, 97),
    "setns": (308, 268), "clone": (56, 220), "clone3": (435, 435), "mount": (165, 40), "fsopen": (430, 430),
    "pivot_root": (155, 41), "ptrace": (101, 117), "process_vm_readv": (310, 270), "pidfd_getfd": (438, 438),
    "rt_sigqueueinfo": (129, 138), "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "bpf": (321, 280),
    "perf_event_open": (298, 241), "kexec_load": (246, 104), "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "personality": (135, 92), "fanotify_init": (300, 262), "quotactl": (179, 60), "init_module": (175, 105),
    "landlock_create_ruleset": (444, 444),
}
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    number = ctypes.c_long(NUMBERS[name][os.uname().machine == "aarch64"])
    arguments = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if (value := libc.syscall(number, *arguments)) < 0:
        raise OSError(ctypes.get_errno(), name)
    return value

def outcome(attempt):
    try:
        return attempt() or "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def of_all(attempts):
    return ", ".join(sorted(set(map(outcome, attempts))))
"""

ATTACKS = (
    # files
    attack(
        "read a private file of the user",
        "return 'done' if SECRET in open(f'{FOLDER}/secret').read() else 'other'",
        "ENOENT",
        "done",
    ),
    attack(
        "write a file next to it",
        "open(f'{FOLDER}/new', 'w').write('x')",
        "ENOENT",
        "done",
    ),
    attack(
        "read /etc/shadow",
        "open('/etc/shadow').read()",
        "ENOENT",
        "EACCES",
    ),
    attack(
        "change a program of the system",
        "open('/usr/bin/env', 'r+b')",
        "EACCES | EROFS",
        "EACCES | ETXTBSY",
    ),
    attack(
        "make a device",
        "os.mknod('disk', 0o60666, os.makedev(8, 0))",
        "EPERM",
        "EPERM",
    ),
    attack(
        "mount a file system",
        """
            return of_all([
                lambda: call("mount", b"none", b"/box", b"tmpfs", 0, None),
                lambda: call("fsopen", b"tmpfs", 0),
                lambda: call("pivot_root", b".", b"."),
            ])
        """,
        "ENOSYS",
        "ENOSYS",
    ),
    attack(
        "open a file by its handle",
        "call('open_by_handle_at', -100, b'x' * 64, 0)",
        "ENOSYS",
        "ENOSYS",
    ),
    # sockets
    attack(
        "open a socket of families 3 to 45 (netlink, packet, Bluetooth, vsock, AF_ALG, XDP, ...), of five types",
        """
            kinds = [(f, t) for f in range(3, 46) if f != socket.AF_INET6 for t in range(1, 6)]
            return of_all(lambda f=f, t=t: socket.socket(f, t, 0).close() for f, t in kinds)
        """,
        "EAFNOSUPPORT",
        "ENOSYS",
    ),
    attack(
        "open a socket for the internet",
        """
            return of_all(lambda t=t: socket.socket(socket.AF_INET, t).close() or "opened" for t in (1, 2))
        """,
        "opened",
        "ENOSYS",
    ),
    attack(
        "open an internet socket of another protocol than TCP and UDP",
        """
            kinds = (1, 132), (5, 0), (1, 262), (2, 1), (3, 255), (6, 33)  # SCTP, MPTCP, ping, raw, DCCP
            return of_all(
                lambda f=f, t=t, p=p: socket.socket(f, t, p).close()
                for f in (socket.AF_INET, socket.AF_INET6) for t, p in kinds
            )
        """,
        "EPROTONOSUPPORT",
        "ENOSYS",
    ),
    attack(
        "connect to a server of this machine",
        "socket.create_connection(('127.0.0.1', PORT), 1)",
        "ENETUNREACH",
        "ENOSYS",
    ),
    attack(
        "connect to a Unix socket of the user, such as an SSH agent's",
        "socket.socket(socket.AF_UNIX).connect(f'{FOLDER}/agent')",
        "ENOENT",
        "ENOSYS",
    ),
    attack(
        "send a datagram to that socket from a socket pair",
        """
            a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            a.sendto(b'x', f'{FOLDER}/agent')
        """,
        "ENOENT",
        "EPERM",
    ),
    # keyrings
    attack(
        "read a key of the user's keyrings",
        """
            buffer = ctypes.create_string_buffer(100)
            def read(number):
                call("keyctl", 11, number, buffer, 100)
                return "done" if buffer.value == SECRET.encode() else "other"
            return of_all([
                lambda: read(call("request_key", b"user", KEY.encode(), None, 0)),
                lambda: read(call("keyctl", 10, -4, b"user", KEY.encode(), 0)),
            ])
        """,
        "ENOSYS",
        "ENOSYS",
    ),
    attack(
        "add a key to them",
        "call('add_key', b'user', b'x', b'x', 1, -4)",
        "ENOSYS",
        "ENOSYS",
    ),
    # namespaces and the kernel
    attack(
        "enter new namespaces (unshare, clone, clone3, setns)",
        """
            def clone():
                if not call("clone", 0x10000000 | 17, 0, 0, 0, 0):
                    os._exit(0)
            return of_all([
                clone,
                lambda: call("clone3", struct.pack("Q", 0x10000000) + bytes(56), 64),
                lambda: call("unshare", 0x10000000),
                lambda: call("setns", 0, 0),
            ])
        """,
        "ENOSYS, EPERM",
        "ENOSYS, EPERM",
    ),
    attack(
        "use io_uring, userfaultfd, bpf, perf events, kexec, modules, fanotify, quotas, personality, Landlock",
        """
            names = "io_uring_setup", "userfaultfd", "bpf", "perf_event_open", "kexec_load"
            names += "init_module", "fanotify_init", "quotactl", "personality", "landlock_create_ruleset"
            return of_all(lambda name=name: call(name, 0, 0, 0, 0, 0) for name in names)
        """,
        "ENOSYS",
        "ENOSYS",
    ),
    attack(
        "make 32-bit system calls, which have other numbers",
        """
            if os.uname().machine != "x86_64":
                return "no effect"
            code = mmap.mmap(-1, 4096, prot=7)
            code.write(bytes.fromhex("b814000000cd80c3"))  # getpid by int 0x80
            address = ctypes.addressof(ctypes.c_char.from_buffer(code))
            ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        """,
        "killed | no effect",
        "killed | no effect",
        alone=True,
    ),
    attack(
        "add its own filter of system calls",
        """
            def filters(value):
                if libc.prctl(22, ctypes.c_ulong(2), ctypes.c_ulong(value), 0, 0):
                    raise OSError(ctypes.get_errno(), '')
            return outcome(lambda: filters(0))
        """,
        "EINVAL",
        "EINVAL",
    ),
    # other processes
    attack(
        "send any signal to process 1 and to the first process of the sandbox",
        """
            signals = [(p, n) for p in (1, os.getppid()) for n in range(1, 65)]
            return of_all(lambda p=p, n=n: os.kill(p, n) or "no effect" for p, n in signals)
        """,
        "no effect",
        "EPERM",
    ),
    attack(
        "send a signal to the process that runs the sandbox",
        "os.kill(PID, 0)",
        "ESRCH",
        "EPERM",
    ),
    attack(
        "signal that process by a pidfd, a queued signal or the owner of a file",
        """
            return of_all([
                lambda: signal.pidfd_send_signal(0, 0),
                lambda: call("rt_sigqueueinfo", PID, 0, bytes(128)),
                lambda: fcntl.fcntl(0, fcntl.F_SETOWN, PID),
            ])
        """,
        "EINVAL, ENOSYS",
        "EINVAL, ENOSYS",
    ),
    attack(
        "change that process's limits, priority or CPUs",
        """
            return of_all([
                lambda: resource.prlimit(PID, resource.RLIMIT_CORE, (0, 0)) and "done",
                lambda: os.setpriority(os.PRIO_PROCESS, PID, 19),
                lambda: os.sched_setaffinity(PID, {0}),
            ])
        """,
        "ESRCH",
        "ENOSYS, EPERM",
    ),
    attack(
        "trace that process, read its memory or copy its open files (ptrace, process_vm_readv, pidfd_getfd)",
        """
            return of_all([
                lambda: call("ptrace", 16, PID, 0, 0),
                lambda: call("process_vm_readv", PID, 0, 0, 0, 0, 0),
                lambda: call("pidfd_getfd", 0, 0, 0),
            ])
        """,
        "ENOSYS",
        "ENOSYS",
    ),
    attack(
        "write to that process's memory in /proc",
        "open(f'/proc/{PID}/mem', 'r+b').close()",
        "ENOENT",
        "done | EACCES | EPERM",
    ),
    attack(
        "read that process's environment in /proc",
        "return 'done' if SECRET in open(f'/proc/{PID}/environ').read() else 'other'",
        "ENOENT",
        "done | EACCES | EPERM",
    ),
    attack(
        "kill all processes that it has permission to kill",
        "os.kill(-1, signal.SIGKILL)",
        "ESRCH",
        "EPERM",
    ),
    attack(
        "kill its process group",
        "os.kill(0, signal.SIGKILL)",
        "killed",
        "EPERM",
        alone=True,
    ),
    attack(
        "leave its process group, and end the first process",
        """
            os.setsid()
            os.kill(os.getppid(), signal.SIGKILL)
            return 'no effect'
        """,
        "no effect",
        "ENOSYS",
    ),
    # what it inherits
    attack(
        "find a secret in its environment",
        "return 'done' if SECRET in str(os.environ) else 'not there'",
        "not there",
        "not there",
    ),
    attack(
        "find an inherited file other than stdin, stdout and stderr",
        """
            def is_open(n): return os.fstat(n) and 'done'
            return of_all(lambda n=n: is_open(n) for n in range(3, 1024))
        """,
        "EBADF",
        "EBADF",
        alone=True,
    ),
    # limits
    attack(
        "create empty files without end",
        """
            n = 0
            while True:
                open(f'f{n}', 'w').close()
                n += 1
                time.sleep(0.001)
        """,
        "ENOSPC",
        "disk",
        alone=True,
    ),
    attack(
        "fill the disk with many files",
        """
            n = 0
            while True:
                open(f'f{n}', 'wb').write(bytes(8 << 20))
                n += 1
                time.sleep(0.03)
        """,
        "ENOSPC",
        "disk",
        disk_bytes=33554432,
    ),
    attack(
        "write a large file",
        "open('f', 'wb').write(bytes(1 << 20) * 20)",
        "EFBIG",
        "EFBIG",
    ),
    attack(
        "allocate too much memory",
        "bytearray(1 << 34)",
        "memory",
        "memory",
        alone=True,
    ),
    attack(
        "hold memory in anonymous files, shared segments or message queues (memfd, System V)",
        """
            return of_all([
                lambda: call("memfd_create", b"x", 0),
                lambda: call("memfd_secret", 0),
                lambda: call("shmget", 0, 1 << 20, 0o1600),
                lambda: call("msgget", 0, 0o1600),
            ])
        """,
        "ENOSYS",
        "ENOSYS",
    ),
    attack(
        "compute forever",
        "while True: pass",
        "timeout",
        "timeout",
        cpu_seconds=1,
    ),
    attack(
        "sleep forever",
        "time.sleep(600)",
        "timeout",
        "timeout",
        seconds=0.5,
    ),
    attack(
        "fork forever",
        """
            while True:
                if not os.fork():
                    time.sleep(600)
        """,
        "EAGAIN",
        "EPERM",
        alone=True,
    ),
    attack(
        "print forever",
        "while True: os.write(2, b'x' * 9999)",
        "output",
        "output",
        output_bytes=100000,
    ),
)

UNHOOKED = "exec(compile(open('main.py').read(), 'main.py', 'exec'), {'__name__': '__main__'})"
"""Runs a program without the hook that Python has where there are no namespaces."""
OUTER = """
import ctypes, json, os, socket
from concurrent.futures import ThreadPoolExecutor
libc = ctypes.CDLL(None, use_errno=True)
machine = os.uname().machine == "aarch64"
session = libc.syscall(ctypes.c_long((250, 219)[machine]), 1, None)
for ring in (-3, -4):  # of the session and of the user
    key = ctypes.c_long((248, 217)[machine])
    libc.syscall(key, b"user", KEY.encode(), SECRET.encode(), ctypes.c_long(len(SECRET)), ctypes.c_long(ring))
server = socket.create_server(("127.0.0.1", 0))
agent = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
agent.bind(f"{FOLDER}/agent")
with open(f"{FOLDER}/secret", "w") as file:
    file.write(SECRET)
os.chmod(f"{FOLDER}/secret", 0o600)
constants = json.dumps([os.getpid(), server.getsockname()[1], FOLDER, KEY, SECRET])
head = f"CONSTANTS = {constants!r}\\n"
reason = sandbox.unavailable()
outcomes = []
for weak in (False, True):
    if weak:  # past the hook: what the kernel refuses
        sandbox.unavailable = lambda: "forced"
        sandbox._GUARD = UNHOOKED
    elif reason:
        outcomes.append([])
        continue
    def results(program, limits):
        result = sandbox.run(head + program, limits=sandbox.Limits(**limits), weak=weak)
        assert result.ended not in ("ok", "error") or result.stdout, result
        # A program that is stopped may still have printed the error of its last write.
        return json.loads(result.stdout) if result.ended in ("ok", "error") else [result.ended]
    with ThreadPoolExecutor(4) as pool:
        outcomes.append(sum(pool.map(results, *zip(*PROGRAMS)), []))
print(json.dumps([reason, outcomes]))
"""


def program(attacks: Sequence[Attack]) -> str:
    """A program that prints the outcomes of these attacks as a JSON list."""
    functions = [f"def attack{n}():\n{indent(a.code, '    ')}\n" for n, a in enumerate(attacks)]
    names = ", ".join(f"attack{n}" for n in range(len(attacks)))
    return (
        f"{PRELUDE}\n{chr(10).join(functions)}\nprint(json.dumps([outcome(f) for f in ({names},)]))"
    )


def outcomes(
    attacks: Sequence[Attack], before: str = ""
) -> tuple[str | None, dict[str, list[str]]]:
    """Try attacks as a user who is not root, after the code `before`, which may use `sandbox`. Return the reason why
    there are no namespaces, if there are none, and for each attack its outcomes with (if there are some) and
    without."""
    together = [a for a in attacks if not a.alone]
    alone = [a for a in attacks if a.alone]
    programs = [(program(together), LIMITS)]
    programs += [(program([a]), {**LIMITS, **dict(a.limits)}) for a in alone]
    user = NOBODY if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        own = Path(folder, "own")
        own.mkdir(mode=0o700)
        if user:
            os.chown(own, user, user)
        constants = {"KEY": KEY, "SECRET": SECRET, "FOLDER": str(own), "PROGRAMS": programs}
        constants["UNHOOKED"] = UNHOOKED
        code = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
        output = in_public_python(code + before + OUTER, Path(folder), user, SECRET_TOKEN=SECRET)
    reason, columns = json.loads(output)
    results: dict[str, list[str]] = {}
    for column in filter(None, columns):
        for a, text in zip([*together, *alone], column, strict=True):
            results.setdefault(a.what, []).append(text)
    return reason, results


def table() -> str:
    """The table of the attacks in Markdown."""
    rows = [("a program tries to", "with namespaces", "without"), ("---",) * 3]
    for a in ATTACKS:
        cells = (WORDS.get(of[0]) or f"refused (`{of[0]}`)" for of in (a.isolated, a.weak))
        rows.append((a.what, *cells))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.stdout.write(table())
