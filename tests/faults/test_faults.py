"""Each point of each kind of work, with each fault: the same work, done again, leaves the same bytes as if nothing had
happened, and nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.faults.disk import FAULTS, FULL, STOPPED, Disk, Fault, Point, finish, points_of, start
from tests.faults.works import WORKS, Kind
from tests.fixtures.variants import few


def done(kind: Kind, folder: Path, disk: Disk, log: Path) -> int:
    """The exit code of the work in a folder; that of a second process must be 0."""
    code, second = finish(
        start(kind.work, disk, log), kind.work, folder, log.with_suffix(".second")
    )
    assert second in (0, None), log.with_suffix(".second").read_text()
    return code


class Straight:
    """A kind of work, done without a fault: its points, and the bytes of its result. All is done in the folder `work`,
    since some files tell where others are."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.start, self.folder = kind, folder / "start", folder / "work"
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.folder.mkdir()
        log = self.logs / "prepare"
        assert start(kind.prepare, Disk(self.folder), log).wait() == 0, log.read_text()
        self.folder.rename(self.start)
        log = self.begin("whole")
        assert done(kind, self.folder, Disk(self.folder), log) == 0, log.read_text()
        self.contents, self.points = self.end(), list(dict.fromkeys(points_of(log)))

    def begin(self, log: str) -> Path:
        """Copy the folder with which the work begins; returns the log of the work."""
        shutil.copytree(self.start, self.folder, symlinks=True)
        return self.logs / log

    def end(self) -> dict[str, Any]:
        """The contents of the folder, which is removed."""
        contents = self.kind.contents(self.folder)
        shutil.rmtree(self.folder)
        return contents

    def check(self, fault: Fault, at: Point) -> None:
        """Do the work with a fault, and again without one."""
        log = self.begin("fault")
        code = done(self.kind, self.folder, Disk(self.folder, fault, at), log)
        outcome = f"{fault} when {at.name} was {at.step}: code {code}, {log.read_text()}"
        assert code == STOPPED if fault in ("crash", "torn", "lost") else code >= 0, outcome
        assert code == 0 or fault != "second", outcome
        log = self.logs / "again"
        code = done(self.kind, self.folder, Disk(self.folder), log)
        assert code == 0, f"{outcome}; then {log.read_text()}"
        assert self.end() == self.contents, outcome


@pytest.fixture(scope="module", params=few(list(WORKS), 2))
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return Straight(WORKS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("fault", FAULTS)
def test_work_with_a_fault_is_done_again(straight: Straight, fault: Fault) -> None:
    for at in straight.points:
        if fault != "full" or at.step in FULL:
            straight.check(fault, at)
