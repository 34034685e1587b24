"""Limits of control groups, read from simulated folders."""

from pathlib import Path

import pytest

from polyphi.devices import cgroup

GB = 10**9


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "groups")
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    return tmp_path / "groups"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def second(folder: Path, limit: str, used: int, cached: int) -> None:
    stat = f"anon {used - cached}\nfile {cached}"
    write(folder, memory__max=limit, memory__current=str(used), memory__stat=stat)


def test_no_group_limits_nothing(root: Path) -> None:
    assert cgroup.memory() is None and cgroup.cpus() is None


def test_the_tightest_group_of_version_2_counts(root: Path) -> None:
    (root.parent / "own").write_text("0::/slice/service\n")
    second(root / "slice", str(8 * GB), 4 * GB, GB)
    second(root / "slice/service", str(4 * GB), GB, 0)
    write(root / "slice/service", cpu__max="150000 100000")
    assert cgroup.memory() == cgroup.MemoryLimit(4 * GB, 3 * GB)
    assert cgroup.cpus() == 1.5
    second(root / "slice/service", "max", GB, 0)
    write(root / "slice/service", cpu__max="max 100000")
    assert cgroup.memory() == cgroup.MemoryLimit(8 * GB, 5 * GB)
    assert cgroup.cpus() is None


def test_a_container_without_a_namespace_has_its_limit_in_the_outermost_folder(root: Path) -> None:
    (root.parent / "own").write_text("0::/docker/0123\n")
    second(root, str(2 * GB), 3 * GB, 0)
    assert cgroup.memory() == cgroup.MemoryLimit(2 * GB, 0)


def test_version_1(root: Path) -> None:
    (root.parent / "own").write_text("5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n")
    write(
        root / "memory/a",
        memory__limit_in_bytes=str(4 * GB),
        memory__usage_in_bytes=str(3 * GB),
        memory__stat=f"total_active_file {GB}\ntotal_inactive_file 0",
    )
    write(root / "cpu/a", **{"cpu__cfs_quota_us": "200000", "cpu__cfs_period_us": "100000"})
    assert cgroup.memory() == cgroup.MemoryLimit(4 * GB, 2 * GB)
    assert cgroup.cpus() == 2.0
    write(root / "memory/a", memory__limit_in_bytes="9223372036854771712")
    write(root / "cpu/a", cpu__cfs_quota_us="-1")
    assert cgroup.memory() is None and cgroup.cpus() is None
