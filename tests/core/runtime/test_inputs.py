"""Input files: what counts as a change, and what doesn't."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from polyphi.data import user_data
from polyphi.runtime import inputs


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The inputs of a reader of `raw/*.txt` and of a file that is absent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw" / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt", "notes.md"):
        (tmp_path / "raw" / name).write_text(name)
    inputs.start()
    inputs.note_listing("raw", (".txt",))
    for name in ("raw/a.txt", "raw/deep/b.txt", "later.jsonl"):
        inputs.note(name)
    inputs.stop().save(Path("state/all.jsonl"))
    inputs.note("raw/notes.md")  # no recording is in progress
    return Path("state")


CHANGES: dict[str, tuple[Callable[[], object], str]] = {
    "content": (lambda: Path("raw/a.txt").write_text("A.txt"), "raw/a.txt has another content"),
    "size": (lambda: Path("raw/deep/b.txt").write_text(""), "raw/deep/b.txt has another content"),
    "gone": (lambda: Path("raw/a.txt").unlink(), "raw/a.txt is gone"),
    "new": (lambda: Path("later.jsonl").write_text(""), "later.jsonl is new"),
    "more": (lambda: Path("raw/deep/c.TXT").write_text(""), "raw has other files"),
    "none": (lambda: None, ""),
    "touched": (lambda: os.utime("raw/a.txt", (1, 1)), ""),
    "another ending": (lambda: Path("raw/d.pdf").write_text(""), ""),
    "not noted": (lambda: Path("raw/notes.md").write_text("other"), ""),
    "hidden": (lambda: Path("raw/.swap.txt").write_text(""), ""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_named(name: str, saved: Path) -> None:
    before, (act, expected) = inputs.digest(saved), CHANGES[name]
    act()
    assert inputs.change(saved) == expected
    assert inputs.digest(saved) == before  # it is that of the saved states


def test_own_rows_note_their_file_and_media(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = b"GIF87a\x01\x00\x01\x00\x80\x01\x00\x00\x00\x00ccc,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
    Path("dot.gif").write_bytes(image)
    Path("rows.jsonl").write_text('{"image": "dot.gif", "question": "What?", "answer": "A dot."}\n')
    inputs.start()
    assert len(list(user_data.read("rows.jsonl"))) == 1
    inputs.stop().save(Path("state/all.jsonl"))
    assert inputs.change(Path("state")) == ""
    Path("dot.gif").write_bytes(image[:-1] + b";;")
    assert inputs.change(Path("state")) == "dot.gif has another content"
