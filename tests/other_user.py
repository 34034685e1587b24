"""Run the sandbox as a user who is not root."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polyphi.runtime import syscall_filter
from polyphi_eval.services import sandbox

NOBODY = 65534
ALONE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("sandbox", FILE)
sandbox = sys.modules["sandbox"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sandbox)
sandbox._memory = lambda pid: 0
sandbox._syscall_filter_file = lambda: FILTER
"""
"""Loads the module alone, for a Python without psutil and polyphi."""


def public_python() -> str:
    """A Python that any user may run; this one may be private to root."""
    for path in (Path(sys.executable).resolve(), Path("/usr/bin/python3").resolve()):
        if path.is_file() and all(p.stat().st_mode & 5 == 5 for p in (path, *path.parents)):
            version = subprocess.check_output(
                [path, "-c", "import sys; print(sys.version_info >= (3, 11))"]
            )
            if version == b"True\n":
                return str(path)
    pytest.skip("no Python of 3.11 or later here that is not private to root")


def in_public_python(code: str, folder: Path, user: int | None, **environment: str) -> str:
    """The output of code that may use `sandbox`, run by this user, None being the current one. `folder`: one that this
    user may read."""
    for module in (sandbox, syscall_filter):
        file = Path(str(module.__file__))
        target = folder / "package" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    file, filters = (
        folder / "package" / name for name in ("services/sandbox.py", "runtime/syscall_filter.py")
    )
    alone = ALONE.replace("FILTER", repr(str(filters))).replace("FILE", repr(str(file)))
    command = [public_python(), "-B", "-c", alone + code]
    done = subprocess.run(
        command,
        user=user,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd="/",
        env={**os.environ, **environment},
    )
    assert not done.returncode, done.stderr
    return done.stdout
