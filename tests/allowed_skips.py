"""A session fails if a test was skipped for a reason that `allowed_skips.toml` doesn't list.

A parity test that is skipped because a package is missing tests nothing, unnoticed. So every reason is listed
once, with the machines that it is allowed on.
"""

import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.toml")
EMULATION = Path(__file__).with_name("avx2.env")
"""Environment variables that make libraries use what a CPU with AVX2 and nothing newer has."""


def emulation() -> dict[str, str]:
    """The variables of `avx2.env`."""
    lines = EMULATION.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def cpu_has(*features: str) -> bool:
    """Whether Linux reports one of these features of the CPU. False on other systems."""
    try:
        flags = re.search(r"(?m)^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text())
    except OSError:
        return False
    return bool(flags and set(features) & set(flags[1].split()))


MACHINES: dict[str, Callable[[], bool]] = {
    "any": lambda: True,
    "not Linux": lambda: sys.platform != "linux",
    "no AVX2": lambda: not cpu_has("avx2"),
    "not root": lambda: os.getuid() != 0,
    "Windows": lambda: sys.platform == "win32",
    "no C++ compiler": lambda: not (shutil.which("c++") or shutil.which("g++")),
    "no espeak-ng": lambda: shutil.which("espeak-ng") is None,
    "no flite": lambda: shutil.which("flite") is None,
    "no nginx": lambda: not any(map(shutil.which, ("nginx", "/usr/sbin/nginx"))),
    "neither AVX2 nor NEON": lambda: (
        os.environ.get("POLYPHI_MAX_CPU_ISA", "").upper() == "SCALAR"
        or not cpu_has("avx2", "asimddp")
    ),
}
"""Kinds of machines, and whether this is one. Checks don't ask polyphi, which could be wrong about it."""


@dataclass(frozen=True)
class AllowedSkip:
    """An entry of the list: a regular expression of a whole reason, why it is allowed, and a name of `MACHINES`."""

    reason: str
    why: str
    machine: str


def read(path: Path) -> list[AllowedSkip]:
    """The entries of a list. Raises ValueError if a machine isn't in `MACHINES`."""
    entries = [AllowedSkip(**entry) for entry in tomllib.loads(path.read_text()).get("skip", [])]
    for entry in entries:
        if entry.machine not in MACHINES:
            raise ValueError(
                f"{path}: expected a machine among {sorted(MACHINES)}, found {entry.machine!r}. "
                f"Use one of them, or add a check to MACHINES in {__file__}."
            )
    return entries


class SkipCheck:
    """A pytest plugin that collects skips and makes the session fail if one isn't allowed. With pytest-xdist the
    controller does it, which receives the reports of all workers."""

    def __init__(self, path: Path = ALLOWED) -> None:
        self.path = path
        self.allowed = read(path)
        self.refused: dict[str, str] = {}

    def add(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        reason = text.removeprefix("Skipped: ")
        if not any(
            re.fullmatch(entry.reason, reason, re.DOTALL) and MACHINES[entry.machine]()
            for entry in self.allowed
        ):
            self.refused[report.nodeid] = reason

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.add(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.add(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        no_failure = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if self.refused and session.exitstatus in no_failure:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.refused:
            return
        terminalreporter.section("skips that are not allowed", sep="=", red=True)
        for test, reason in self.refused.items():
            terminalreporter.line(f"{test}: {reason}")
        terminalreporter.line(
            f"{len(self.refused)} tests or modules were skipped for a reason that {self.path} doesn't allow on this "
            "machine, so the session fails. Install what they need; if this machine can't have it, add the reason to "
            "that file."
        )


def install(config: pytest.Config) -> None:
    """Check the skips of this session, unless this process is a worker of pytest-xdist."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipCheck(), "allowed_skips")
