"""Responses on disk: the first one stays, whole lines are read, and keys have all that a response depends on."""

import fcntl
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Video
from polyphi_eval.services.response_cache import (
    ResponseCache,
    messages_json,
    request_key,
    whole_lines,
)


def test_responses_are_on_the_disk_before_they_are_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, sizes = ResponseCache(tmp_path), list[int]()
    monkeypatch.setattr("os.fsync", lambda file: sizes.append(os.fstat(file).st_size))
    for n in range(2):
        cache.get({"n": n}, lambda: "x" * 10_000)
        assert len(sizes) == n + 1 and sizes[n] == cache.path.stat().st_size


def test_the_first_response_stays(tmp_path: Path) -> None:
    first, second = ResponseCache(tmp_path / "deep"), ResponseCache(tmp_path / "deep")
    assert first.find("a") is None
    assert first.store({"a": {"text": "one"}}) == {"a": {"key": "a", "text": "one"}}
    assert second.store({"a": {"text": "two"}, "b": {"text": "three"}})["a"]["text"] == "one"
    assert first.find("b") == {"key": "b", "text": "three"}  # what another process stored
    assert first.get({"seed": 1}, lambda: "x") == second.get({"seed": 1}, lambda: "y") == "x"
    assert (first.sent, first.cached, second.sent, second.cached) == (1, 0, 0, 1)
    lines = list(whole_lines(tmp_path / "deep" / "answers.jsonl"))
    assert [line["key"] for line in lines] == ["a", "b", request_key({"seed": 1})]


def test_a_line_that_was_cut_off_is_ignored(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path)
    cache.store({"a": {}})
    with cache.path.open("a") as file:
        file.write('{"key": "b", "te')
    assert cache.find("b") is None and ResponseCache(tmp_path).find("b") is None
    cache.store({"c": {"text": "\ud800 \u2028"}})
    for each in (cache, ResponseCache(tmp_path)):
        assert each.find("c") == {"key": "c", "text": "\ud800 \u2028"} and each.find("b") is None
    assert [line["key"] for line in whole_lines(cache.path)] == ["a", "c"]
    for damaged in (b"\xff\n", b"[1]\n", b'{"key": 3}\n', b'{"key": ""}\n', b"[" * 100_000 + b"\n"):
        cache.path.write_bytes(damaged + cache.path.read_bytes())
    assert ResponseCache(tmp_path).find("c")


def test_a_file_that_was_replaced_is_not_misread(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path)
    cache.store({"a": {"n": 1}, "b": {"n": 2}})
    first, second = cache.path.read_text().splitlines(keepends=True)
    cache.path.write_text(first.replace('"a"', '"c"') + second[5:])
    assert cache.find("a") is None and cache.find("b") is None
    assert cache.find("c") == {"key": "c", "n": 1}
    cache.path.write_text(second)  # as if its first line were deleted
    assert cache.find("b") == {"key": "b", "n": 2} and cache.find("c") is None
    cache.path.unlink()
    assert cache.find("b") is None


def test_the_parts_of_a_run_are_read_as_one(tmp_path: Path) -> None:
    for name in ("answers", "answers.2-of-2", "judged.m", "other"):
        ResponseCache(tmp_path, name).store({name: {}})
    cache = ResponseCache(tmp_path, "answers.1-of-2")
    cache.store({"own": {}})
    assert cache.path == tmp_path / "answers.1-of-2.jsonl"
    names = ("own", "answers", "answers.2-of-2", "judged.m", "other")
    assert [bool(cache.find(name)) for name in names] == [True, True, True, False, False]


def store_many(folder: Path, start: int) -> None:
    cache = ResponseCache(folder)
    for n in range(start, start + 40):
        cache.get({"n": n}, lambda n=n: [start, "x" * 5000])


@pytest.mark.parametrize("lockable", [True, False])
def test_processes_share_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lockable: bool
) -> None:
    if not lockable:  # then one at a time

        def flock(*_: Any) -> None:
            raise OSError("no locks here")

        monkeypatch.setattr(fcntl, "flock", flock)
        for start in (0, 20, 40):
            store_many(tmp_path, start)
    else:
        processes = [
            multiprocessing.get_context("fork").Process(target=store_many, args=(tmp_path, start))
            for start in (0, 20, 40, 0)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) == 80
    cache = ResponseCache(tmp_path)
    for n in range(80):
        assert len(cache.get({"n": n}, lambda: pytest.fail("requested again"))[1]) == 5000


def test_keys_have_all_that_a_response_depends_on(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"1")
    assert messages_json([Message.user(Image(b"1"))]) == messages_json(
        [Message.user(Image(tmp_path / "1"))]
    )
    wave = np.zeros(4, np.float32)
    messages = [
        [Message.user(Image(b"1"), "What?")],
        [Message.user("What?", Image(b"1"))],
        [Message.user("What?[image]", Image(b"1"))],
        [Message.user(Image(b"2"), "What?")],
        [Message.user(Image(b"1", detail="low"), "What?")],
        [Message.user(Image(b"1", max_crops=2), "What?")],
        [Message.user(Audio(b"1"), "What?")],
        [Message.user(Audio((wave, 8000)), "What?")],
        [Message.user(Audio((wave, 16000)), "What?")],
        [Message.user(Video(b"1"), "What?")],
        [Message.user(Video(b"1", frames=2), "What?")],
        [Message("system", (), "[]")],
        [Message("system", ())],
        [Message.user("\ud800")],
    ]
    keys = {request_key({"messages": messages_json(each)}) for each in messages}
    assert len(keys) == len(messages)
    assert request_key({"b": "é", "a": 1}) == request_key({"a": 1, "b": "é"})
    # What the lineage of synthesized shards has.
    assert (
        request_key({"messages": messages_json(messages[0])})
        == "f5186a80302821fe81d8e1f7ca8dc277e9983c3a2b2d24d8899d7ffeb1a518e1"
    )
