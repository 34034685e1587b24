"""The limits that control groups set for this process: containers, systemd's slices, batch systems. Versions 1 and 2.

>>> memory()                                     # MemoryLimit(limit=8000000000, free=7100000000), or None
>>> cpus()                                       # 2.0, or None
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
"""The file that names the control groups of this process."""
UNLIMITED = 1 << 60
"""Version 1 writes a number near 2**63 where there is no limit."""


@dataclass(frozen=True)
class MemoryLimit:
    """A group's limit in bytes, and how many of them are free. The page cache counts as free, since it is reclaimed."""

    limit: int
    free: int


def memory() -> MemoryLimit | None:
    """The limit that leaves the least memory free, None without one."""
    limits = [limit for folder in _folders("memory") if (limit := _memory_limit(folder))]
    return min(limits, key=lambda limit: limit.free, default=None)


def cpus() -> float | None:
    """The CPU time that this process may use, in CPUs, None without a limit."""
    return min(filter(None, map(_quota, _folders("cpu"))), default=None)


def _folders(controller: str) -> Iterator[Path]:
    """The folders of this process's groups and the groups that contain them. In a container without a separate
    namespace the paths are the host's, and only the outermost folder exists."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        folder = ROOT / controller if controllers else ROOT
        yield folder
        for name in filter(None, path.split("/")):
            folder /= name
            if name != ".." and folder.is_dir():
                yield folder


def _memory_limit(folder: Path) -> MemoryLimit | None:
    second = (folder / "memory.max").exists()
    names = ("max", "current") if second else ("limit_in_bytes", "usage_in_bytes")
    try:
        limit, used = ((folder / f"memory.{name}").read_text().strip() for name in names)
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        if limit == "max" or int(limit) >= UNLIMITED:
            return None
        cached = ["file"] if second else ["total_active_file", "total_inactive_file"]
        free = int(limit) - int(used) + sum(int(stat.get(name, 0)) for name in cached)
    except (OSError, ValueError):
        return None
    return MemoryLimit(int(limit), max(0, free))


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((folder / name).read_text().strip() for name in names)
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None
