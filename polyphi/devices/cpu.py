"""The CPU of this machine, without importing torch.

>>> model_name()
'AMD Ryzen 9 9950X 16-Core Processor'
>>> usable(), physical_cores()
(32, 16)
"""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil

INFO = Path("/proc/cpuinfo")


def model_name() -> str:
    """The name that the CPU or the system reports; the architecture where there is none, as on most Arm machines."""
    try:
        if match := re.search(r"model name\s*:\s*(.+)", INFO.read_text()):
            return match[1].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return result.stdout.strip()
    return platform.processor() or platform.machine()


def flags() -> frozenset[str]:
    """The instruction sets that Linux lists, by its names ("avx2", "asimddp"); none on other systems."""
    try:
        match = re.search(r"(?:flags|Features)\s*:\s*(.+)", INFO.read_text())
    except OSError:
        match = None
    return frozenset(match[1].split() if match else ())


def usable() -> int:
    """Logical CPUs on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Cores among all CPUs of the machine, not counting the further threads of a core."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1
