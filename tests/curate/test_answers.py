"""Answers on disk: whole or not there, the first one stays."""

from pathlib import Path

import pytest

from polyphi.curate.answers import Kept, told
from polyphi.messages import Image, Message


def test_the_first_answer_stays(tmp_path: Path) -> None:
    kept, request = Kept(tmp_path), {"seed": 1}
    key = kept.key(request)
    assert kept.find(key) is None
    assert kept.keep(key, request, "one") == "one"
    assert Kept(tmp_path).keep(key, request, "two") == "one"
    assert kept.find(key) == "one" and kept.key({"seed": 2}) != key
    assert [p.name for p in tmp_path.rglob("*.*")] == [f"{key}.json"]


def test_messages_are_told_with_their_media_and_tools() -> None:
    shown = [told([Message.user(Image(data), "What is this?")]) for data in (b"1", b"2")]
    assert shown[0] != shown[1]
    assert told([Message("system", (), "[]")]) != told([Message("system", ())])
    with pytest.raises(ValueError, match=r"shown encoded bytes.*found str"):
        told([Message.user(Image("cat.png"))])
