"""Answers on disk: written atomically, the first answer is kept."""

from pathlib import Path

import pytest

from polyphi.messages import Image, Message
from polyphi_recipe.curate.answers import AnswerCache, messages_json


def test_the_first_answer_stays(tmp_path: Path) -> None:
    cache, request = AnswerCache(tmp_path), {"seed": 1}
    key = cache.key(request)
    assert cache.find(key) is None
    assert cache.store(key, request, "one") == "one"
    assert AnswerCache(tmp_path).store(key, request, "two") == "one"
    assert cache.find(key) == "one" and cache.key({"seed": 2}) != key
    assert [p.name for p in tmp_path.rglob("*.*")] == [f"{key}.json"]


def test_messages_as_json_include_media_and_tools() -> None:
    as_json = [messages_json([Message.user(Image(data), "What is this?")]) for data in (b"1", b"2")]
    assert as_json[0] != as_json[1]
    assert messages_json([Message("system", (), "[]")]) != messages_json([Message("system", ())])
    with pytest.raises(ValueError, match="found str"):
        messages_json([Message.user(Image("cat.png"))])
