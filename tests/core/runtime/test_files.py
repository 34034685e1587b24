"""Atomic writes of files and folders."""

import errno
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from polyphi.runtime import files


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


def test_partial_files_of_a_killed_process_are_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.partial").write_text("a longer text that was cut sho")
    (tmp_path / ".index.partial").mkdir()
    (tmp_path / ".index.partial" / "stale").touch()
    (tmp_path / ".index.partial.old").mkdir()
    files.write_whole(tmp_path / "a.txt", "new")
    (tmp_path / "index").mkdir()
    with files.whole_folder(tmp_path / "index") as partial:
        (partial / "fresh").touch()
    assert names(tmp_path) == ["a.txt", "index"]
    assert (tmp_path / "a.txt").read_text() == "new" and names(tmp_path / "index") == ["fresh"]


def test_several_threads_may_write_one_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "a.txt", [str(i) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: files.write_whole(path, text, shared=True), contents))
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


def test_a_rename_that_fails_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "index", Path.rename
    folder.mkdir()
    (folder / "old").touch()

    def fail(self: Path, target: Path) -> Path:
        if self.name == ".index.partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"), files.whole_folder(folder) as partial:
        (partial / "new").touch()
    assert names(tmp_path) == ["index"] and names(folder) == ["old"]


def test_two_threads_may_write_one_folder_and_the_last_one_stays(tmp_path: Path) -> None:
    folder, barrier = tmp_path / "index", Barrier(2)

    def write(text: str) -> None:
        with files.whole_folder(folder, shared=True) as partial:
            barrier.wait()
            (partial / "a.txt").write_text(text)
            barrier.wait()
            if text == "last":
                while not folder.exists():
                    time.sleep(0.001)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ("first", "last")))
    assert names(tmp_path) == ["index"] and (folder / "a.txt").read_text() == "last"
