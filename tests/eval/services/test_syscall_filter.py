"""The sandbox's filters of system calls on both machines, interpreted as the kernel would."""

import errno
import os
import socket

import pytest

from polyphi.runtime import syscall_filter
from polyphi_eval.services import sandbox

ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050000, 0x80000000
X86, ARM = syscall_filter.MACHINES
DANGEROUS = {
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    **{"unshare": (272, 97), "setns": (308, 268), "clone3": (435, 435), "mount": (165, 40)},
    **{"umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "ptrace": (101, 117)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "bpf": (321, 280)},
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "userfaultfd": (323, 282)},
    **{"perf_event_open": (298, 241), "kexec_load": (246, 104), "init_module": (175, 105)},
    **{"open_by_handle_at": (304, 265), "pidfd_getfd": (438, 438), "seccomp": (317, 277)},
    **{"pidfd_send_signal": (424, 424), "rt_sigqueueinfo": (129, 138), "memfd_create": (319, 279)},
    **{"shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190)},
}
"""System calls that no filter allows, with their numbers on both machines."""


def result(
    calls: dict[str, tuple[syscall_filter.Argument, ...]], machine: str, number: int, *args: int
) -> int:
    """The filter's result for a system call."""
    architecture = syscall_filter.MACHINES[machine]
    return interpret(
        syscall_filter.program(calls, errno.ENOSYS, machine), architecture, number, *args
    )


def interpret(
    program: list[tuple[int, int, int, int]], architecture: int, number: int, *args: int
) -> int:
    words = {0: number, 4: architecture}
    for n, value in enumerate([*args, *(0,) * (6 - len(args))]):
        words |= {16 + 8 * n: value & 0xFFFFFFFF, 20 + 8 * n: value >> 32}
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        assert 0 <= if_true < 256 > if_false, "a jump has one byte"
        at += 1
        if code == 0x20:
            accumulator = words[value]
        elif code == 0x54:
            accumulator &= value
        elif code == 0x15:
            at += if_true if accumulator == value else if_false
        else:
            assert code == 0x06
            return value


def calls(isolated: bool) -> dict[str, tuple[syscall_filter.Argument, ...]]:
    return sandbox._allowed_calls(syscall_filter, isolated)


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("machine", [X86, ARM])
def test_dangerous_calls_are_refused(machine: str, isolated: bool) -> None:
    column = list(syscall_filter.MACHINES).index(machine)
    for name, numbers in DANGEROUS.items():
        assert result(calls(isolated), machine, numbers[column]) == FAIL | errno.ENOSYS, name
    for number in range(463, 2000):
        assert result(calls(isolated), machine, number) == FAIL | errno.ENOSYS


@pytest.mark.parametrize("machine", [X86, ARM])
def test_each_allowed_call_has_one_number(machine: str) -> None:
    column = list(syscall_filter.MACHINES).index(machine)
    numbers = [int(n[column]) for n in syscall_filter.NUMBERS.values() if n[column] != "-"]
    assert len(set(numbers)) == len(numbers) > 150
    allowed = {
        n
        for n in range(2000)
        if result(dict.fromkeys(syscall_filter.NUMBERS, ()), machine, n) == ALLOW
    }
    assert allowed == set(numbers)
    with_namespaces = calls(isolated=True)
    assert (
        len(syscall_filter.program(with_namespaces, errno.ENOSYS, machine)) < 4096
    )  # the kernel's limit


def test_other_instruction_sets_are_refused() -> None:
    program = syscall_filter.program(calls(isolated=True), errno.ENOSYS, X86)
    i386, x32 = 0x40000003, 0x40000000
    assert (
        interpret(program, i386, 20)
        == interpret(program, syscall_filter.MACHINES[ARM], 172)
        == KILL
    )
    assert all(
        interpret(program, syscall_filter.MACHINES[X86], x32 + n) == FAIL | errno.ENOSYS
        for n in range(600)
    )


@pytest.mark.parametrize(("machine", "clone", "call"), [(X86, 56, 41), (ARM, 220, 198)])
def test_arguments_decide(machine: str, clone: int, call: int) -> None:
    thread, new_namespaces = (
        0x3D0F00,
        (1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30),
    )
    both, one = calls(isolated=True), calls(isolated=False)
    for flag in new_namespaces:
        assert result(both, machine, clone, flag | 17) == FAIL | errno.EPERM
        assert result(one, machine, clone, flag | thread) == FAIL | errno.EPERM
    assert result(both, machine, clone, 17) == result(both, machine, clone, thread) == ALLOW
    assert result(one, machine, clone, thread) == ALLOW != result(one, machine, clone, 17)
    families = {
        f for f in range(256) if result(both, machine, call, f, socket.SOCK_STREAM) == ALLOW
    }
    assert families == {1, 2, 10}
    # The kernel reads 32 bits of a family.
    assert (
        result(both, machine, call, (1 << 32) + 40, socket.SOCK_STREAM) == FAIL | errno.EAFNOSUPPORT
    )
    kill = {X86: 62, ARM: 129}[machine]
    assert result(one, machine, kill, os.getpid()) == ALLOW
    assert (
        result(one, machine, kill, 0)
        == result(one, machine, kill, (1 << 32) - 1)
        == FAIL | errno.EPERM
    )
