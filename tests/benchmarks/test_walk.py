"""The benchmark that follows requests and a fine-tune: what it counts, and each part at the smallest size."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def script(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("walk")


def calls(script: ModuleType, *names: str):
    """Calls of one thread, such as `a.f` for the function f of the file a."""
    split = [name.split(".") for name in names]
    return [
        script.Call("main", file, f"{function}:1", caller)
        for (file, function), caller in zip(split, ["", *(file for file, _ in split)], strict=False)
    ]


def test_a_file_is_entered_again_after_another_one(script: ModuleType) -> None:
    # b.g is called twice and read once; a.k follows a.h, since the second call of b.g opens nothing
    sequence = calls(script, "a.f", "b.g", "a.h", "b.g", "a.k", "c.m", "b.n")
    visited = script.visits(sequence)
    assert [(visit.file, visit.functions) for visit in visited] == [
        ("a", ("f:1",)),
        ("b", ("g:1",)),
        ("a", ("h:1", "k:1")),
        ("c", ("m:1",)),
        ("b", ("n:1",)),
    ]
    assert script.reentries(visited) == [visited[2], visited[4]]
    numbers = {"calls": 7, "functions": 6, "files": 3, "pairs": 4, "reentries": 2}
    assert script.measure(sequence) == numbers


def test_a_file_in_another_thread_is_no_entry_again(script: ModuleType) -> None:
    first, second = calls(script, "a.f", "b.g"), calls(script, "a.h")
    second = [call._replace(thread="pool") for call in second]
    assert script.measure([*first, *second])["reentries"] == 0


def test_what_the_idle_server_calls_as_often_is_left_out(script: ModuleType) -> None:
    idle = calls(script, "a.tick", "a.tick", "b.step")
    request = calls(script, "a.tick", "b.step", "b.step", "b.step", "c.f", "a.tick", "a.tick")
    remaining = script.without_periodic(request, idle)
    assert {(call.file, call.function) for call in remaining} == {("b", "step:1"), ("c", "f:1")}


SOURCE = """
def start():
    import imported
    numbers = list(generate())
    return [inner(n) for n in numbers]

def generate():
    yield 1
    try:
        yield 2
    except ValueError:
        pass

def inner(n):
    class Local:
        value = n
    return n
"""
IMPORTED = """
def at_import():
    return 1

at_import()
"""


def test_functions_are_entered_once_however_often_they_continue(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "followed.py").write_text(SOURCE)
    (tmp_path / "imported.py").write_text(IMPORTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "FOLDERS", (f"{tmp_path}{os.sep}",))
    followed = importlib.import_module("followed")
    with script.recording() as recorded:
        followed.start()
        generator = followed.generate()
        next(generator), next(generator)
        with pytest.raises(StopIteration):
            generator.throw(ValueError)
    entered = [(call.caller, script.short(call.function)) for call in recorded]
    here = "followed.py"
    assert entered == [
        ("", "start"),
        (here, "generate"),
        (here, "inner"),
        (here, "inner"),
        ("", "generate"),
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("part", "works", "files"),
    [
        (
            "chat",
            ["text chat over HTTP"],
            ["polyphi/serve/openai/chat.py", "polyphi/types/batch.py"],
        ),
        (
            "image",
            ["image chat over HTTP"],
            [
                "polyphi/serve/openai/chat.py",
                "polyphi/processing/image.py",
                "polyphi/prepared/decoder.py",
            ],
        ),
        (
            "transcription",
            ["audio transcription over HTTP"],
            [
                "polyphi/serve/audio/transcriptions.py",
                "polyphi/transcription/vad.py",
                "polyphi/prepared/decoder.py",
            ],
        ),
        (
            "generate",
            ["phi.generate of an image"],
            ["polyphi/api.py", "polyphi/processing/image.py", "polyphi/prepared/decoder.py"],
        ),
        (
            "finetune",
            ["whole fine-tune", "one training step"],
            ["polyphi/cli/train.py", "polyphi/processing/processor.py", "polyphi/types/batch.py"],
        ),
        (
            "resume",
            ["whole fine-tune, resumed"],
            ["polyphi/cli/train.py", "polyphi/types/batch.py"],
        ),
    ],
)
def test_a_walk(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    works: list[str],
    files: list[str],
) -> None:
    script.write_model(tmp_path / "model")
    recorded = script.run(part, tmp_path / "model")
    assert list(recorded) == works
    visited = {work: script.visits(recorded[work]) for work in works}
    order = [call.file for call in recorded[works[0]]]  # in time, of all threads
    assert [order.index(file) for file in files] == sorted(order.index(file) for file in files)
    walks = {work: script.measure(recorded[work]) for work in works}
    for walk in walks.values():
        assert walk["calls"] >= walk["functions"] > walk["files"] > 10 and walk["reentries"] > 0
    script.show(walks, visited, listed=True)
    printed = capsys.readouterr().out
    assert f"{walks[works[0]]['calls']:,}" in printed and files[-1] in printed
