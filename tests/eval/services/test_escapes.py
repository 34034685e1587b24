"""What attacks on the sandbox get, with namespaces and without (tests/escapes.py)."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyphi_eval.services.sandbox import unavailable
from tests.escapes import ATTACKS, UNHOOKED, Attack, attack, outcomes
from tests.fixtures.other_user import NOBODY, in_public_python, public_python

OTHER = 65533
"""A user who attacks."""


@pytest.fixture(scope="module")
def results() -> tuple[str | None, dict[str, list[str]]]:
    return outcomes(ATTACKS)


@pytest.mark.parametrize("mode", ["isolated", "weak"])
@pytest.mark.parametrize("tried", ATTACKS, ids=lambda tried: tried.what)
def test_an_attack_gets_what_the_table_says(
    tried: Attack, mode: str, results: tuple[str | None, dict[str, list[str]]]
) -> None:
    no_namespaces, of_all = results
    if no_namespaces and mode == "isolated":
        pytest.skip(f"no namespaces: {no_namespaces}")
    assert of_all[tried.what][-1 if mode == "weak" else 0] in getattr(tried, mode)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user may read; pytest's folders are private."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


REFUSE = """
import os
syscall_filter = sandbox._syscall_filter(sandbox._syscall_filter_file())

def refuse(numbers, value, error):
    # Lets the calls of this number fail whose first argument is `value`, or with None all of them.
    number = numbers[os.uname().machine == "aarch64"]
    test = [] if value is None else [(0x20, 0, 0, 16), (0x15, 0, 1, value)]
    program = syscall_filter.program
    syscall_filter.program = lambda *_: [(0x20, 0, 0, 0), (0x15, 0, len(test) + 1, number), *test,
                                         (0x06, 0, 0, 0x50000 | error), (0x06, 0, 0, 0x7FFF0000)]
    syscall_filter.install({})
    syscall_filter.program = program
"""
"""Takes something from the kernel, for a process and its children."""
NO_NAMESPACES, NO_FILTERS = "refuse((272, 97), None, 1)", "refuse((157, 167), 22, 22)"
REPORT = """
print(sandbox.unavailable())
try: sandbox.run("print(1)")
except ValueError as error: print("weak=True" in str(error))
print(sandbox.run("print(1)", weak=True).stdout, end="")
"""


def as_user(code: str, folder: Path) -> str:
    """The output of code that may use `sandbox` and `refuse`, run by a user who is not root."""
    user = NOBODY if os.getuid() == 0 else None
    return in_public_python(f"{REFUSE}\n{code}", folder, user)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [(NO_NAMESPACES, "unshare: Operation not permitted"), (NO_FILTERS, "filter of system calls")],
    ids=["namespaces", "filters"],
)
def test_what_the_kernel_does_not_have_is_reported(missing: str, reason: str, folder: Path) -> None:
    message, raised, output = as_user(f"{missing}\n{REPORT}", folder).splitlines()
    assert reason in message or unavailable()
    assert (raised, output) == ("True", "1")


def test_the_session_keyring_is_a_new_one() -> None:
    """Also where the kernel can't filter system calls."""
    keys = attack(
        "read a key of the session",
        "call('request_key', b'user', KEY.encode(), None, 0)",
        isolated="",
        weak="ENOKEY | ENOSYS",
    )
    _, results = outcomes([keys], before=f"{REFUSE}\n{NO_FILTERS}\n")
    assert results[keys.what][-1] in keys.weak


def test_nothing_lives_on_without_namespaces(folder: Path) -> None:
    """Also where the kernel can't filter system calls, and a program leaves its process group."""
    code = f"""
import time
sandbox._GUARD, sandbox.unavailable = {UNHOOKED!r}, lambda: "forced"
{NO_FILTERS}
program = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
result = sandbox.run(program, limits=sandbox.Limits(seconds=1.0), weak=True)
deadline = time.monotonic() + 30
while (alive := os.path.exists(f"/proc/{{result.stdout.strip()}}")) and time.monotonic() < deadline:
    time.sleep(0.01)
print(result.ended, alive)
"""
    assert as_user(code, folder) == "timeout False\n"


def test_the_working_folder_is_private(folder: Path) -> None:
    code = """
sandbox.unavailable = lambda: "forced"
os.umask(0)
program = "import os\\nfor p in '.', 'main.py': print(oct(os.stat(p).st_mode), os.stat(p).st_uid == os.getuid())"
print(sandbox.run(program, weak=True).stdout)
"""
    for user in (0, NOBODY) if os.getuid() == 0 else (None,):
        output = in_public_python(f"import os\n{code}", folder, user)
        assert output.split() == ["0o40700", "True", "0o100600", "True"]


ATTACKER = """
import glob, os, sys
changed = 0
print("ready", flush=True)
while not os.path.exists(f"{sys.argv[1]}/stop"):
    for box in glob.glob(f"{sys.argv[1]}/*/box"):
        try:
            with open(f"{box}/new", "w") as file:
                file.write("print('changed')")
            os.rename(f"{box}/new", f"{box}/main.py")
            changed += 1
        except OSError:
            pass
print(changed)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_user_can_not_replace_a_program(folder: Path) -> None:
    code = f"""
import tempfile
sandbox.unavailable = lambda: "forced"
tempfile.tempdir = {str(folder)!r}
for _ in range(5): print(sandbox.run("print('own')", weak=True).stdout, end="")
"""
    command = [public_python(), "-c", ATTACKER, str(folder)]
    with subprocess.Popen(command, user=OTHER, stdout=subprocess.PIPE, text=True) as attacker:
        assert attacker.stdout and attacker.stdout.readline() == "ready\n"
        try:
            output = in_public_python(code, folder, 0)
        finally:
            (folder / "stop").touch()
        changed = attacker.stdout.read()
    assert (output.split(), changed) == (["own"] * 5, "0\n")
