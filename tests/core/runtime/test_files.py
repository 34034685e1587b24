"""Atomic writes of files and folders."""

import errno
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from polyphi.runtime import files
from tests.fixtures import forked
from tests.fixtures.variants import few


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in ("é\n", b"\x00\xff"):
        files.write_whole(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    files.write_json(path, {"é": [1, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, None]}
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("step", ["write", "sync", "rename"])
@pytest.mark.parametrize("before", [True, False])
def test_an_error_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, before: bool
) -> None:
    path = tmp_path / "a.txt"
    if before:
        path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if step != "write":
            target = (files, "sync") if step == "sync" else (Path, "replace")
            patch.setattr(*target, fail)
        with pytest.raises(OSError, match="No space"), files.whole_file(path) as partial:
            partial.write_text("new")
            if step == "write":
                fail()
    assert names(tmp_path) == (["a.txt"] if before else [])
    assert not before or path.read_text() == "old"


def test_what_killed_writers_left_is_removed_but_not_what_is_being_written(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.0a1b2c3d.partial").write_text("a longer text that was cut sho")
    (tmp_path / ".index.0a1b2c3d.partial").mkdir()
    (tmp_path / ".index.0a1b2c3d.partial" / "stale").touch()
    with files.whole_file(tmp_path / "a.txt") as first, files.whole_folder(tmp_path / "index"):
        files.write_whole(tmp_path / "a.txt", "new")
        with files.whole_folder(tmp_path / "index") as partial:
            (partial / "fresh").touch()
        assert len(names(tmp_path)) == 4 and first.exists()
        assert (tmp_path / "a.txt").read_text() == "new" and names(tmp_path / "index") == ["fresh"]
    assert names(tmp_path) == ["a.txt", "index"]


def test_several_threads_may_write_one_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "a.txt", [str(i) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: files.write_whole(path, text), contents))
    assert path.read_text() in contents and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_a_folder_is_written_atomically(
    tmp_path: Path, durable: bool, error: type[BaseException] | None
) -> None:
    folder = tmp_path / "deep" / "index"
    for content in ("first", "second"):
        with files.whole_folder(folder, durable=durable) as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / content).write_text(content)
            assert names(folder / "sub") == ["first"] if content == "second" else True
    if error:
        with pytest.raises(error), files.whole_folder(folder, durable=durable) as partial:
            (partial / "third").touch()
            raise error
    assert names(folder) == ["sub"] and names(folder / "sub") == ["second"]
    assert names(folder.parent) == ["index"]


def no_exchange(_: Path, target: Path) -> bool:
    """As on a file system that can't exchange folders."""
    if not target.exists():
        raise FileNotFoundError
    return False


def test_a_rename_that_fails_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "index", Path.rename
    folder.mkdir()
    (folder / "old").touch()

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(files, "_exchange", no_exchange)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"), files.whole_folder(folder) as partial:
        (partial / "new").touch()
    assert names(tmp_path) == [".index.lock", "index"] and names(folder) == ["old"]


def test_a_link_to_a_folder_stays_and_its_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk" / "index").mkdir(parents=True)
    (tmp_path / "index").symlink_to(tmp_path / "disk" / "index")
    with files.whole_folder(tmp_path / "index") as partial:
        (partial / "new").touch()
    assert (tmp_path / "index").is_symlink() and names(tmp_path / "disk" / "index") == ["new"]
    assert names(tmp_path / "disk") == ["index"]


WRITER = """
import sys
from pathlib import Path
from polyphi.runtime import files
file, folder, exchange = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if exchange == "no":
    files._exchange = lambda a, b: (_ for _ in ()).throw(FileNotFoundError) if not b.exists() else False
for number in range(1_000_000):
    text = str(number) * 2000
    files.write_whole(file, text)
    with files.whole_folder(folder, durable=False) as partial:
        for name in "abc":
            (partial / name).write_text(text)
"""


@pytest.mark.parametrize("kills", few([10, 500], 1))
@pytest.mark.parametrize("exchange", ["yes", "no"])
def test_a_killed_writer_leaves_the_old_or_the_new_whole(
    tmp_path: Path, exchange: str, kills: int
) -> None:
    """The process is killed at random moments."""
    file, folder = tmp_path / "out" / "a.txt", tmp_path / "out" / "index"
    file.parent.mkdir()
    (tmp_path / "out" / "notes").write_text("of the user")
    code, arguments = WRITER, (str(file), str(folder), exchange)
    process = forked.start(code, *arguments)
    while not folder.exists():
        time.sleep(0.001)
    process.kill()
    for _ in forked.killed(code, *arguments, times=kills, within=0.05):
        files.restore(folder)
        texts = {path.read_text() for path in folder.iterdir()}
        assert len(texts) == 1 and len(names(folder)) == 3
        for text in (*texts, file.read_text()):
            assert text == text[: len(text) // 2000] * 2000
        assert (tmp_path / "out" / "notes").read_text() == "of the user"
    files.write_whole(file, "")
    with files.whole_folder(folder):
        pass
    assert set(names(tmp_path / "out")) <= {"a.txt", "index", "notes", ".index.lock"}


def test_two_threads_may_write_one_folder_and_the_last_one_stays(tmp_path: Path) -> None:
    folder, barrier = tmp_path / "index", Barrier(2)

    def write(text: str) -> None:
        with files.whole_folder(folder) as partial:
            barrier.wait()
            (partial / "a.txt").write_text(text)
            barrier.wait()
            if text == "last":
                while not folder.exists():
                    time.sleep(0.001)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ("first", "last")))
    assert names(tmp_path) == ["index"] and (folder / "a.txt").read_text() == "last"


def test_a_recorded_file_is_ours_and_the_others_are_as_before(tmp_path: Path) -> None:
    (tmp_path / "ours").write_text("1")
    (tmp_path / "theirs").write_text("1")
    files.record_files(tmp_path, except_for=["theirs"])
    (tmp_path / "new").write_text("1")
    (tmp_path / "ours").write_text("22")
    assert files.foreign_files(tmp_path) == ["new", "ours", "theirs"]
    for name in ("new", "ours"):
        files.record_file(tmp_path, name)
    assert files.foreign_files(tmp_path) == ["theirs"]
