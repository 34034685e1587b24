"""Custom data: both forms, JSON lines and parquet, and the errors for bad rows."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image as PIL

from polyphi.data import row_files, shards, user_data
from polyphi.data.shards import Sample, Shards
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text
from polyphi.types.transcript import TRANSCRIBE


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with an image, audio and a file that is neither."""
    PIL.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 16000)
    (tmp_path / "b.png").write_text("no picture")
    return tmp_path


def write_rows(root: Path, *rows: Any, name: str = "mine.jsonl") -> Path:
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    (root / name).write_text(text)
    return root / name


def read(source: Path | str, folder: Path, **options: Any) -> list[Sample]:
    user_data.build(folder, [str(source)], report=lambda _: None, **options)
    return list(Shards(folder / "train"))


def conversation(answer: str, *parts: Any) -> dict[str, Any]:
    user = {"role": "user", "content": list(parts)}
    return {"messages": [user, {"role": "assistant", "content": answer}]}


def test_both_forms_say_the_same(root: Path, tmp_path: Path) -> None:
    picture, clip = (root / "a.png").read_bytes(), (root / "a.wav").read_bytes()
    text = {"type": "text", "text": "what?"}
    file = write_rows(
        root,
        {"image": "a.png", "audio": "a.wav", "question": "what?", "answer": "red"},
        conversation("red", {"type": "image", "image": "a.png"}, {"type": "audio", "audio": "a.wav"}, text),
        {**conversation("red", {"type": "image"}, {"type": "audio"}, text),
         "images": [str(root / "a.png")], "audio": "a.wav"},
        conversation("red", {"type": "image_url", "image_url": {"url": "a.png"}},
             {"type": "input_audio", "input_audio": {"path": "a.wav"}}, text),
    )  # fmt: skip
    expected = (
        Message("user", (Image(picture), Audio(clip), Text("what?"))),
        Message.assistant("red"),
    )
    samples = read(file, tmp_path / "corpus")
    assert [s.messages for s in samples] == [expected] * 4
    assert [s.id for s in samples] == [f"mine.jsonl, line {n}" for n in (1, 2, 3, 4)]


def test_our_own_shards_are_read(root: Path, tmp_path: Path) -> None:
    png, wav = (root / "a.png").read_bytes(), (root / "a.wav").read_bytes()
    samples = [
        Sample(
            f"{i}",
            (Message.user(Image(png), Audio(wav), "?"), Message.assistant("red")),
            "elsewhere",
            "CC0",
            {"task": "colours", "lineage": [{"step": "made"}]},
        )
        for i in range(3)
    ]
    shards.write(tmp_path / "theirs/train", samples, pipeline="theirs")
    shards.write(tmp_path / "theirs/test", samples[:1], pipeline="theirs")
    assert read(tmp_path / "theirs", tmp_path / "corpus") == samples
    broken = replace(samples[0], messages=(Message.user(Image(b"no")), Message.assistant("x")))
    shards.write(tmp_path / "broken/train", [broken], pipeline="theirs")
    with pytest.raises(ValueError, match=r"row 1: .*PNG"):
        read(tmp_path / "broken", tmp_path / "other")


def test_what_stands_beside(root: Path, tmp_path: Path) -> None:
    file = write_rows(
        root,
        {"id": 7, "question": "1+1?", "answer": "2", "rejected": "3", "licence": "CC0"},
        "",
        {"audio": "a.wav", "answer": "hello", "image": None},
        {"messages": [{"role": "document", "content": "a page"}]},
    )
    first, second, third = read(file, tmp_path / "corpus")
    assert (first.id, first.meta, first.licence) == ("7", {"rejected": "3"}, "CC0")
    assert second.messages[0].text == TRANSCRIBE
    assert second.id == "mine.jsonl, line 3"
    assert third.messages[0].role == "document"


def test_preference_rows_of_trl(root: Path, tmp_path: Path) -> None:
    """Plain, conversational with the prompt apart or at the beginning of both, and with an image."""
    user, image = {"role": "user", "content": "what?"}, {"type": "image"}
    pictured_question = {"role": "user", "content": [image, {"type": "text", "text": "what?"}]}
    red, blue = ({"role": "assistant", "content": c} for c in ("red", "blue"))
    parts = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    file = write_rows(
        root,
        {"prompt": "what?", "chosen": "red", "rejected": "blue"},
        {"prompt": [user], "chosen": [red], "rejected": [blue]},
        {"prompt": "what?", "chosen": [user, red], "rejected": [user, blue], "messages": [user, red]},
        {"prompt": [user], "chosen": "red", "rejected": "blue"},
        {"prompt": [user], "chosen": [blue, user, red], "rejected": [blue, user, blue]},
        {"images": ["a.png"], "prompt": [pictured_question], "chosen": [parts], "rejected": [blue]},
        {"image": "a.png", "prompt": "what?", "chosen": "red", "rejected": "blue"},
        {"messages": [user, red], "rejected": blue},
    )  # fmt: skip
    samples = read(file, tmp_path / "corpus")
    question, answer = Message.user("what?"), Message.assistant("red")
    plain, turns = (question, answer), (question, Message.assistant("blue"), question, answer)
    pictured = (Message.user(Image((root / "a.png").read_bytes()), "what?"), answer)
    expected = [plain, plain, plain, plain, turns, pictured, pictured, plain]
    assert [s.messages for s in samples] == expected
    assert all(s.meta == {"rejected": "blue"} for s in samples)


def test_reasoning_beside_an_answer_is_trained_before_it(root: Path, tmp_path: Path) -> None:
    user = {"role": "user", "content": "1+1?", "reasoning_content": "not an answer"}
    answer = {"role": "assistant", "content": "2", "reasoning_content": " one and one\n"}
    text = "<think>\none and one\n</think>\n\n2"
    in_content = {**answer, "content": text}
    parts = {**answer, "content": [{"type": "text", "text": "2"}]}
    wrong = {**answer, "content": "3"}
    file = write_rows(
        root,
        {"messages": [user, answer]},
        {"messages": [user, {"role": "assistant", "content": "2", "reasoning": "one and one"}]},
        {"messages": [user, in_content]},
        {"messages": [user, parts]},
        {"messages": [user, answer, user, answer]},
        {"messages": [user, in_content, user, answer]},
        {"prompt": [user], "chosen": [answer], "rejected": [wrong]},
    )
    first, *others, left_out, both, pair = read(file, tmp_path / "corpus")
    assert first.messages == (Message.user("1+1?"), Message.assistant(text)) and not first.meta
    assert all((s.messages[0], s.answer) == (first.messages[0], text) for s in others)
    assert [m.text for m in left_out.messages] == ["1+1?", "2", "1+1?", text]
    assert left_out.meta == {"supervise": "last answer"}
    assert [m.text for m in both.messages] == ["1+1?", text, "1+1?", text] and not both.meta
    assert pair.answer == text and pair.meta == {"rejected": text[:-1] + "3"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "JSON"),
        ({"image": "b.png", "answer": "x"}, "PNG, .* text"),
        (conversation("x", {"type": "image_url", "image_url": "http://x/y.png"}), "remote media"),
    ],
)
def test_a_bad_row_is_named(row: Any, message: str, root: Path, tmp_path: Path) -> None:
    good = {"question": "1+1?", "answer": "2"}
    file = write_rows(root, good, row, good)
    with pytest.raises(ValueError, match=f"mine.jsonl, line 2: .*{message}") as error:
        read(file, tmp_path / "corpus")
    assert "--skip-bad" in str(error.value)
    assert not (tmp_path / "corpus/train").exists(), "nothing half"
    messages: list[str] = []
    user_data.build(tmp_path / "corpus", [str(file)], skip_bad=True, report=messages.append)
    assert len(Shards(tmp_path / "corpus/train")) == 2
    assert "2 rows, image 0, audio 0; 1 left out, the first: " in messages[0]


def parquet(root: Path, name: str = "train-0.parquet", rows: int = 20) -> Path:
    """Write a file with images and audio as the hub stores them."""
    picture = {"bytes": (root / "a.png").read_bytes(), "path": "x.png"}
    clip = {"bytes": None, "path": "a.wav"}
    table = [
        {"photo": picture, "clip": clip, "question": f"{i}?", "text": "x"} for i in range(rows)
    ]
    pq.write_table(pa.Table.from_pylist(table), root / name)
    return root / name


def test_parquet_with_columns_of_other_names(root: Path, tmp_path: Path) -> None:
    names = {"image": "photo", "audio": "clip", "answer": "text"}
    samples = read(parquet(root), tmp_path / "corpus", columns=names)
    assert [s.messages[0].text for s in samples] == [f"{i}?" for i in range(20)]
    assert samples[19].id == "train-0.parquet, row 20"
    assert [type(p) for p in samples[0].messages[0].parts] == [Image, Audio, Text]
    with pytest.raises(ValueError, match=r"row 1: .*'txt', .*photo, clip"):
        read(root / "train-0.parquet", tmp_path / "other", columns={"answer": "txt"})
    with pytest.raises(ValueError, match=r"'reply'; .*messages"):
        read(root / "train-0.parquet", tmp_path / "other", columns={"reply": "text"})


def test_columns_that_are_not_read_are_named(root: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    source, names = str(parquet(root)), {"audio": "clip", "answer": "text"}
    with pytest.raises(ValueError, match=r"row 1: `photo` .*--columns"):
        user_data.build(tmp_path / "corpus", [source], columns=names)
    names["image"] = "none"
    user_data.build(tmp_path / "corpus", [source], columns=names, report=messages.append)
    assert messages == [
        "corpus: 20 rows, image 0, audio 20",
        "  columns that are not read: photo",
    ]


def test_parquet_of_conversations(root: Path, tmp_path: Path) -> None:
    """Nested columns give every part every key, most of them null."""
    row = conversation("red", {"type": "image", "text": None}, {"type": "text", "text": "what?"})
    row["messages"][1]["content"] = [{"type": "text", "text": "red"}]
    row["images"] = [{"bytes": (root / "a.png").read_bytes(), "path": None}]
    pq.write_table(pa.Table.from_pylist([row]), root / "chat.parquet")
    (sample,) = read(root / "chat.parquet", tmp_path / "corpus")
    assert [type(p) for p in sample.messages[0].parts] == [Image, Text]
    assert sample.answer == "red"


def test_a_folder_gives_its_train_split(root: Path, tmp_path: Path) -> None:
    folder = root / "dataset/data"
    folder.mkdir(parents=True)
    line = {"question": "?", "answer": "x"}
    for name in ("constraints", "train-2", "train-1"):
        write_rows(folder, {**line, "id": name}, name=f"{name}.jsonl")
    assert [s.id for s in read(root / "dataset", tmp_path / "corpus")] == ["train-1", "train-2"]
    (folder / "extra.json").write_text(json.dumps([{**line, "id": "list"}]))
    (folder / "train-1.jsonl").unlink(), (folder / "train-2.jsonl").unlink()
    assert [s.id for s in read(root / "dataset", tmp_path / "corpus")] == ["constraints"]
    (folder / "constraints.jsonl").unlink()
    assert [s.id for s in read(root / "dataset", tmp_path / "corpus")] == ["list"]


@pytest.mark.parametrize("source", ["nothing.jsonl", "a.png", "empty"])
def test_no_data(source: str, root: Path, tmp_path: Path) -> None:
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match=r"\.jsonl"):
        read(root / source, tmp_path / "corpus")


def test_no_rows(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows, found none"):
        read(write_rows(root), tmp_path / "corpus")


def test_built_once_until_the_file_changes(root: Path, tmp_path: Path) -> None:
    file = write_rows(root, {"question": "?", "answer": "x"})
    messages: list[str] = []
    for _ in range(2):
        user_data.build(tmp_path / "corpus", [str(file)], report=messages.append)
    assert len(messages) == 1
    write_rows(root, {"question": "?", "answer": "x"}, {"question": "?", "answer": "y"})
    assert user_data.build(tmp_path / "corpus", [str(file)], report=messages.append)["rows"] == 2


class Hub:
    """A fake of the used part of huggingface_hub's file system, over a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def glob(self, pattern: str) -> list[str]:
        return [str(p.relative_to(self.folder)) for p in self.folder.glob(pattern)]

    def open(self, path: str) -> io.BufferedReader:
        return (self.folder / path).open("rb")


@pytest.fixture
def hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def put(folder: str) -> None:
        path = root / "hub" / folder
        path.mkdir(parents=True)
        picture = {"bytes": (root / "a.png").read_bytes(), "path": "x.png"}
        for split in ("test", "train"):
            row = {"image": picture, "question": "?", "answer": split}
            pq.write_table(pa.Table.from_pylist([row]), path / f"{split}-00000.parquet")

    monkeypatch.setattr(row_files, "_hub", lambda: Hub(root / "hub"))
    return put


@pytest.mark.parametrize("folder", ["/data", f"{row_files.CONVERTED_BRANCH}/default"])
def test_the_hub(folder: str, hub: Callable[[str], None], tmp_path: Path) -> None:
    hub(f"datasets/me/cats{folder}")
    for i, source in enumerate(("hf://datasets/me/cats", "hf:me/cats")):
        (sample,) = read(source, tmp_path / str(i))
        assert sample.answer == "train"
    with pytest.raises(ValueError, match=r"hf:me/dogs: .*parquet"):
        read("hf:me/dogs", tmp_path / "dogs")


def test_the_hub_by_path(hub: Callable[[str], None], tmp_path: Path) -> None:
    hub("datasets/me/cats/data")
    (sample,) = read("hf://datasets/me/cats/data/test-*.parquet", tmp_path / "corpus")
    assert sample.answer == "test"


def test_the_hub_names_no_file_of_ours(
    root: Path, hub: Callable[[str], None], tmp_path: Path
) -> None:
    hub("datasets/me/cats/data")
    row = {"image": {"bytes": None, "path": str(root / "a.png")}, "answer": "x"}
    path = root / "hub/datasets/me/cats/data/train-00000.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(ValueError, match="the path"):
        read("hf:me/cats", tmp_path / "corpus")
