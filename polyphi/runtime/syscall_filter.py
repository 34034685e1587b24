"""Filters of system calls (seccomp) for processes with untrusted data or code, on Linux on x86-64 and AArch64.

    install({"read": (), "write": (), "exit_group": (), "socket": (Argument(0, values=(AF_UNIX,)),)})

The kernel runs a filter at each system call of a process and of its children, which can't remove it. The processes of
the sandbox and of the decoder load this file alone: they start without packages. `seal` also limits a process.
"""

import ctypes
import errno
import os
import resource
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

_TABLE = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62,
mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, ioctl 16 29, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66,
access 21 -, pipe 22 -, select 23 -, sched_yield 24 124, mremap 25 216, msync 26 227,
madvise 28 233, dup 32 23, dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -,
setitimer 38 103, getpid 39 172, sendfile 40 71, socket 41 198, connect 42 203, accept 43 202,
sendto 44 206, recvfrom 45 207, sendmsg 46 211, recvmsg 47 212, shutdown 48 210, bind 49 200,
listen 50 201, getsockname 51 204, getpeername 52 205, socketpair 53 199, setsockopt 54 208,
getsockopt 55 209, clone 56 220, fork 57 -, vfork 58 -, execve 59 221, exit 60 93, wait4 61 260,
kill 62 129, uname 63 160, fcntl 72 25, flock 73 32, fsync 74 82, fdatasync 75 83, truncate 76 45,
ftruncate 77 46, getdents 78 -, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -,
rmdir 84 -, creat 85 -, link 86 -, unlink 87 -, symlink 88 -, readlink 89 -, chmod 90 -,
fchmod 91 52, chown 92 -, fchown 93 55, lchown 94 -, umask 95 166, gettimeofday 96 169,
getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176,
geteuid 107 175, getegid 108 177, setpgid 109 154, getppid 110 173, getpgrp 111 -, setsid 112 157,
getgroups 115 158, getresuid 118 148, getresgid 120 150, getpgid 121 155, getsid 124 156,
rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132,
utime 132 -, mknod 133 -, statfs 137 43, fstatfs 138 44, getpriority 140 141, setpriority 141 140,
sched_setparam 142 118, sched_getparam 143 121, sched_setscheduler 144 119,
sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126,
sched_rr_get_interval 148 127, prctl 157 167, arch_prctl 158 -, setrlimit 160 164, gettid 186 178,
setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, getxattr 191 8, lgetxattr 192 9,
fgetxattr 193 10, listxattr 194 11, llistxattr 195 12, flistxattr 196 13, removexattr 197 14,
lremovexattr 198 15, fremovexattr 199 16, tkill 200 130, time 201 -, futex 202 98,
sched_setaffinity 203 122, sched_getaffinity 204 123, epoll_create 213 -, getdents64 217 61,
set_tid_address 218 96, restart_syscall 219 128, fadvise64 221 223, clock_gettime 228 113,
clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232 -,
epoll_ctl 233 21, tgkill 234 131, utimes 235 -, waitid 247 95, openat 257 56, mkdirat 258 34,
mknodat 259 33, fchownat 260 54, futimesat 261 -, newfstatat 262 79, unlinkat 263 35,
renameat 264 38, linkat 265 37, symlinkat 266 36, readlinkat 267 78, fchmodat 268 53,
faccessat 269 48, pselect6 270 72, ppoll 271 73, set_robust_list 273 99, get_robust_list 274 100,
splice 275 76, utimensat 280 88, epoll_pwait 281 22, timerfd_create 283 85, eventfd 284 -,
fallocate 285 47, timerfd_settime 286 86, timerfd_gettime 287 87, accept4 288 242, eventfd2 290 19,
epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69, pwritev 296 70, recvmmsg 299 243,
prlimit64 302 261, sendmmsg 307 269, getcpu 309 168, renameat2 316 276, getrandom 318 278,
execveat 322 281, membarrier 324 283, copy_file_range 326 285, preadv2 327 286, pwritev2 328 287,
statx 332 291, rseq 334 293, pidfd_open 434 434, close_range 436 436, openat2 437 437,
faccessat2 439 439, epoll_pwait2 441 441, fchmodat2 452 452
"""
NUMBERS = {name: (x86, arm) for name, x86, arm in (e.split() for e in _TABLE.split(","))}
"""The system calls that Python and its packages make without privileges, with their numbers on x86-64 and on AArch64
("-": it doesn't exist there). The sandbox allows these and no others: before you add one, see what it can do."""
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The machines in the order of `NUMBERS`, with the kernel's names (AUDIT_ARCH) for their system calls."""

COMPUTE_CALLS = (
    *("read", "write", "close", "mmap", "mprotect", "munmap", "mremap", "madvise", "brk"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "restart_syscall", "sched_yield", "futex"),
    *("clock_gettime", "getrandom", "exit", "exit_group"),
)
"""The system calls of a process that computes: its open files, memory, its own signals and time."""

# BPF: load a word, AND, jump if equal, return
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # results of a filter
_SECCOMP, _NO_NEW_PRIVILEGES, _DUMPABLE = 22, 38, 4  # of prctl
Instruction = tuple[int, int, int, int]


class Argument(NamedTuple):
    """Requires that an argument AND `mask` is one of `values`; otherwise the call fails with `error`. The kernel reads
    such arguments as 32 bits, and so does the filter."""

    position: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    error: int = errno.EPERM


def seal(
    calls: Mapping[str, tuple[Argument, ...]],
    *,
    memory_bytes: int,
    cpu_seconds: int | None = None,
    refused: int = errno.EPERM,
) -> bool:
    """Set the limits of this process, with `memory_bytes` more than it has now and no further files, and filter its
    system calls as `install` does. Unless `calls` has "clone", it may start no process and no thread. Returns whether
    the filter is in place: only on Linux, on x86-64 and AArch64."""
    for kind, limit in (
        (resource.RLIMIT_AS, _address_space() + memory_bytes),
        *([(resource.RLIMIT_CPU, cpu_seconds)] if cpu_seconds else []),  # SIGXCPU, then SIGKILL
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        *([] if "clone" in calls else [(resource.RLIMIT_NPROC, 0)]),  # it counts threads
    ):
        with suppress(ValueError, OSError):  # some systems don't have them all
            resource.setrlimit(kind, (limit, limit + (kind == resource.RLIMIT_CPU)))
    try:
        if ctypes.CDLL(None).prctl(_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0))):
            return False
        install(calls, refused)
    except (OSError, AttributeError):  # of systems without prctl
        return False
    return True


def _address_space() -> int:
    """Bytes of this process's address space; 0 on systems that don't limit it anyway."""
    with suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
    return 0


def install(calls: Mapping[str, tuple[Argument, ...]], refused: int = errno.ENOSYS) -> None:
    """Allow this thread and its children only these system calls, with these arguments; others fail with the error
    `refused`. Calls of another architecture end the process. Raises OSError where the kernel can't filter."""
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in MACHINES or struct.calcsize("P") != 8:
        raise OSError(
            "system calls can be filtered on 64-bit Linux on x86-64 and AArch64, "
            f"found {sys.platform} on {machine}"
        )
    instructions = program(calls, refused, machine)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in instructions))
    filter_ = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    for option, *values in ((_NO_NEW_PRIVILEGES, 1, 0), (_SECCOMP, 2, ctypes.addressof(filter_))):
        if libc.prctl(option, *map(ctypes.c_ulong, (*values, 0, 0))):
            error = ctypes.get_errno()
            raise OSError(error, f"prctl for a filter of system calls: {os.strerror(error)}")


def program(
    calls: Mapping[str, tuple[Argument, ...]], refused: int, machine: str
) -> list[Instruction]:
    """Return the filter's instructions (classic BPF: code, jump if true, jump if false, value)."""
    instructions = [
        (_LOAD, 0, 0, 4),  # the architecture: 32-bit programs have other numbers
        (_EQUAL, 1, 0, MACHINES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number, which has a bit of its own in calls of x32
    ]
    for name, arguments in calls.items():
        number = NUMBERS[name][list(MACHINES).index(machine)]
        if number == "-":
            continue
        block: list[Instruction] = []
        for position, values, mask, error in arguments:
            block += [(_LOAD, 0, 0, 16 + 8 * position), (_AND, 0, 0, mask)]
            block += [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
            block += [(_RETURN, 0, 0, _FAIL | error)]
        block += [(_RETURN, 0, 0, _ALLOW)]
        instructions += [(_EQUAL, 0, len(block), int(number)), *block]
    return [*instructions, (_RETURN, 0, 0, _FAIL | refused)]
