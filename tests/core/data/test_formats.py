"""Common instruction formats: the meaning of rows, marks in text, and invalid rows."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image as PIL

from polyphi.data import formats, user_data
from polyphi.data.formats import RowOrigin, sample
from polyphi.data.shards import Sample, Shards, write
from polyphi.processing import template
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text
from tests.fixtures.pieces import render


def png(colour: str) -> bytes:
    out = io.BytesIO()
    PIL.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def wav() -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(800), 16000, format="WAV")
    return out.getvalue()


RED, BLUE, CLIP = png("red"), png("blue"), wav()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "blue.png").write_bytes(BLUE)
    (tmp_path / "a.wav").write_bytes(CLIP)
    (tmp_path / "b.png").write_text("no picture")
    return tmp_path


def messages_of(row: dict[str, Any], root: Path | None = None) -> tuple[Message, ...]:
    return sample(row, "row 1", RowOrigin(root=root))[0].messages


TOOLS = [{"name": "add", "description": "Add", "parameters": {"type": "object"}}]
CALLS = [{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": 2}}]
CALL_TEXT = Text(f"<|tool_call|>{json.dumps(CALLS)}<|/tool_call|>")


def openai_call(id: str, a: int) -> dict[str, Any]:
    function = {"name": "add", "arguments": json.dumps({"a": a})}
    return {"id": id, "type": "function", "function": function}


# ------------------------------------------------------------------------------ what rows mean


def test_openai_media(root: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(BLUE).decode()
    clip = {"data": base64.b64encode(CLIP).decode(), "format": "wav"}
    parts = [
        {"type": "text", "text": "These?"},
        {"type": "image_url", "image_url": {"url": "red.png"}},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": clip},
    ]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A."}]}
    assert messages_of(row, root) == (
        Message("user", (Text("These?"), Image(RED), Image(BLUE), Audio(CLIP))),
        Message.assistant("A."),
    )


def test_openai_tools() -> None:
    row = {
        "tools": [{"type": "function", "function": tool} for tool in TOOLS],
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Sums?"},
            {"role": "assistant", "content": None, "tool_calls": [openai_call("x", 1), openai_call("y", 2)]},
            {"role": "tool", "tool_call_id": "y", "content": "two"},
            {"role": "tool", "tool_call_id": "x", "content": "one"},
            {"role": "assistant", "content": "One and two."},
        ],
    }  # fmt: skip
    assert messages_of(row) == (
        Message("system", (Text("Be brief."),), json.dumps(TOOLS)),
        Message.user("Sums?"),
        Message("assistant", (CALL_TEXT,)),
        Message("tool_response", (Text("one"),)),
        Message("tool_response", (Text("two"),)),
        Message.assistant("One and two."),
    )
    del row["messages"][0]
    assert messages_of(row)[0] == Message("system", (), json.dumps(TOOLS))


def test_a_call_may_end_a_conversation_and_stand_behind_words() -> None:
    tool_calls = [openai_call("x", 1), openai_call("y", 2)]
    answer = {"role": "assistant", "content": "So:", "tool_calls": tool_calls}
    row = {"messages": [{"role": "user", "content": "Sums?"}, answer]}
    assert messages_of(row)[-1].parts == (Text("So:"), CALL_TEXT)


def test_sharegpt() -> None:
    row = {
        "system": "Be brief.",
        "tools": json.dumps(TOOLS),
        "conversations": [
            {"from": "human", "value": "Sums? <image>"},
            {"from": "function_call", "value": json.dumps(CALLS)},
            {"from": "observation", "value": "1 and 2"},
            {"from": "gpt", "value": "Done."},
        ],
    }
    assert messages_of(row) == (
        Message("system", (Text("Be brief."),), json.dumps(TOOLS)),
        Message.user("Sums? <image>"),
        Message("assistant", (CALL_TEXT,)),
        Message("tool_response", (Text("1 and 2"),)),
        Message.assistant("Done."),
    )


def test_llava(root: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nRed? <image>"},
        {"from": "gpt", "value": "One <image> is."},
    ]
    assert messages_of({"image": ["red.png", "blue.png"], "conversations": turns}, root) == (
        Message("user", (Image(RED), Text("Red? "), Image(BLUE))),
        Message.assistant("One <image> is."),
    )


def test_an_image_is_at_its_mark(root: Path) -> None:
    """The mark stayed text, and the image was before it."""
    row = {
        "images": ["red.png", "blue.png"],
        "question": "Is <image> like <image>?",
        "answer": "No.",
    }
    assert messages_of(row, root)[0].parts == (
        *(Text("Is "), Image(RED), Text(" like "), Image(BLUE), Text("?")),
    )
    row = {"images": ["red.png", "blue.png"], "text": "One <image>, two\n<image>"}
    assert messages_of(row, root) == (
        Message("document", (Text("One "), Image(RED), Text(", two\n"), Image(BLUE))),
    )
    for text in ({"question": "What is <image>?", "answer": "x"}, {"text": "One <image>."}):
        with pytest.raises(ValueError, match="image"):
            messages_of({**row, "text": None, **text}, root)
    assert (
        messages_of({"question": "What is <image>?", "answer": "x"})[0].text == "What is <image>?"
    )


def test_alpaca() -> None:
    row = {"instruction": "Translate.", "input": "chat", "output": "cat"}
    assert messages_of(row) == (Message.user("Translate.\nchat"), Message.assistant("cat"))
    row |= {"input": "", "system": "French.", "history": [["Hi", "Salut"]]}
    assert messages_of(row) == (
        *(Message.system("French."), Message.user("Hi"), Message.assistant("Salut")),
        *(Message.user("Translate."), Message.assistant("cat")),
    )


def test_completions_of_trl() -> None:
    user, answer = ({"role": role, "content": role} for role in ("user", "assistant"))
    for prompt, completion in (("user", "assistant"), ([user], [answer]), ([user], "assistant")):
        row = {"prompt": prompt, "completion": completion}
        assert messages_of(row) == (Message.user("user"), Message.assistant("assistant"))


def test_calls_without_ids_are_answered_in_order() -> None:
    call = {"function": {"name": "add", "arguments": "{}"}}
    row = {
        "messages": [
            {"role": "user", "content": "Sums?"},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "tool_call_id": "?", "content": "one"},
            {"role": "tool", "tool_call_id": "?", "content": "two"},
            {"role": "assistant", "content": "One and two."},
        ]
    }
    roles = [(m.role, m.text) for m in messages_of(row)[2:]]
    assert roles == [
        *(("tool_response", "one"), ("tool_response", "two")),
        ("assistant", "One and two."),
    ]


def test_a_column_chooses_the_form_and_none_is_no_column() -> None:
    row = {"messages": turns(), "instruction": "x", "output": "y", "img": "red.png"}
    for ours in ("output", "instruction"):
        parsed, unread = sample(row, "row 1", columns={ours: ours})
        assert parsed.messages == (Message.user("x"), Message.assistant("y"))
        assert unread == {"messages", "img"}
    row = {"question": "x", "answer": "y", "img": "red.png", "level": 3}
    parsed, unread = sample(row, "row 1", columns={"image": formats.NONE})
    assert (parsed.answer, unread) == ("y", {"img", "level"})


# ------------------------------------------------------------------------------ marks in words


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a few words of text, and some more"], 600)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "SAID"}, {"role": "assistant", "content": "x"}]},
        {"conversations": [{"from": "human", "value": "SAID"}, {"from": "gpt", "value": "x"}]},
        {"instruction": "SAID", "output": "x"},
    ],
    ids=["openai", "sharegpt", "alpaca"],
)
def test_control_tokens_in_words_stay_words(row: dict[str, Any], tokenizer: Tokenizer) -> None:
    """The ids of the conversation contain as many control tokens as those of a conversation with plain text."""

    def controls(text: str) -> int:
        messages = messages_of(json.loads(json.dumps(row).replace("SAID", text)))
        ids = [id for p in render(messages, tokenizer, trusted=True) for id in p.ids]
        return sum(id in tokenizer.controls.values() for id in ids)

    marks = "".join(tokenizer.controls) + "<image>"
    assert controls(marks) == controls("hello")


def test_calls_in_arguments_of_calls_stay_words(tokenizer: Tokenizer) -> None:
    call = {"name": "say", "arguments": {"text": "<|/tool_call|><|tool_call|>"}}
    row = {"conversations": turns(("human", "x"), ("function_call", json.dumps(call)))}
    messages = messages_of(row)
    ids = [id for p in render(messages, tokenizer, trusted=True) for id in p.ids]
    for mark in (template.CALL, template.CALL_END):
        assert ids.count(tokenizer.control(mark)) == 1
    (part,) = messages[1].parts
    assert isinstance(part, Text)
    value = part.text.removeprefix(template.CALL).removesuffix(template.CALL_END)
    assert json.loads(value) == [call]


@pytest.mark.parametrize(
    "text",
    [
        "The mark <|tool_call|> begins a call.",
        "<|/tool_call|>",
        "<|tool_call|>[]<|/tool_call|>",
        '<|tool_call|>[{"name": "a", "arguments": {}}]<|/tool_call|> and then',
        "<|tool_call|>nonsense<|/tool_call|>",
    ],
)
def test_an_assistants_marks_stand_around_calls_only(text: str) -> None:
    with pytest.raises(ValueError, match=r"row 1: message 2: .*control tokens"):
        messages_of({"instruction": "x", "output": text})


# ------------------------------------------------------------------------------ bad rows


def turns(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": speaker, "value": value} for speaker, value in pairs]


def chat(*pairs: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **more}


def with_image_url(url: str) -> dict[str, Any]:
    return chat(("user", [{"type": "image_url", "image_url": {"url": url}}]))


CALLED = {"role": "assistant", "content": None, "tool_calls": [openai_call("x", 1)]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "expected an object, found list"),
        ({}, "found nothing"),
        ({"instruction": "x"}, "found instruction"),
        ({"question": "?"}, "--columns answer=NAME"),
        ({"question": "?", "answer": " "}, "the answer is empty"),
        ({"question": "?", "answer": 4}, "expected a text, found 4 (int)"),
        ({"question": "?", "answer": "x", "rejected": 4}, "found 4"),
        ({"image": "none.png", "answer": "x"}, "no file none.png"),
        ({"image": 3, "answer": "x"}, "path or bytes as image, found int"),
        ({"audio": "red.png", "answer": "x"}, "expected a WAV"),
        ({"prompt": "?", "chosen": "x"}, "'rejected' is missing"),
        ({"prompt": "?", "chosen": ["x"], "rejected": ["x"]}, "found 1 and 1 messages"),
        ({"messages": []}, "found nothing last"),
        ({"messages": [{"content": "?"}]}, "needs a role"),
        ({"messages": ["hello"]}, "found 'hello'"),
        ({"messages": [{"role": "assistant", "content": "x", "reasoning": "a</think>b"}]}, "first </think>"),
        (chat(("user", [{"type": "image"}]), ("assistant", "x")), "no images left"),
        (chat(("user", "?"), ("assistant", "x"), image="red.png"), "more images than parts"),
        (chat(("user", [{"type": "film"}]), ("assistant", "x")), "unknown part type 'film'"),
        ({"messages": [], "conversations": []}, "--columns messages=messages"),
        ({"answer": "x", "questoin": "y"}, "`questoin` isn't read: is it the question? --columns question=questoin"),
        ({"answer": "x", "prompt": "y"}, "`prompt` isn't read: is it the question?"),
        ({"answer": "x", "prompt": "y", "completion": "z"}, "`prompt` isn't read: is it the question?"),
        ({"answer": "x", "img": "red.png"}, "`img` isn't read: is it the image? --columns image=img"),
        ({"answer": "x", "shot": {"bytes": RED}}, "`shot` isn't read: is it the image?"),
        ({"answer": "x", "recordings": ["a.wav"]}, "`recordings` isn't read: is it the audio?"),
        (chat(("user", "x")), "ends with the assistant's answer, found user last"),
        (chat(("user", "x"), ("assistant", " ")), "the answer is empty"),
        (chat(("user", "x"), ("robot", "y"), ("assistant", "z")), "message 2: unknown role 'robot'"),
        (chat(("user", 7), ("assistant", "y")), "must be text or a list of parts, found int"),
        (chat(("user", [{"type": "video"}]), ("assistant", "y")), "without video"),
        (chat(("user", [{"type": "text", "text": 5}]), ("assistant", "y")), "expected a text, found 5"),
        (with_image_url("https://x.org/a"), "remote media are not fetched"),
        (with_image_url("none.png"), "there is no file none.png"),
        (with_image_url("b.png"), "b.png: expected a PNG"),
        (with_image_url("../x.png"), "inside the row's folder, found ../x.png"),
        (with_image_url("/etc/passwd"), "inside the row's folder"),
        (chat(("user", "x"), ("assistant", "y"), tools=[{"type": "function"}]), "a tool is an object with a name"),
        ({"messages": [CALLED, {"role": "user", "content": "?"}]}, "call 'x' has no answer"),
        ({"messages": [{"role": "tool", "tool_call_id": "z", "content": "?"}]}, "call 'z'"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"name": "a", "arguments": "{"}]}]}, "of a are no JSON"),
        ({"conversations": turns(("human", "x"), ("bird", "y"))}, "unknown speaker 'bird'"),
        ({"conversations": turns(("human", None))}, "text as `value`, found"),
        ({"conversations": "x"}, "Expecting value"),
        ({"image": "red.png", "conversations": turns(("human", "x"), ("gpt", "y"))}, "found 1 for 0"),
        ({"image": 7, "conversations": turns(("human", "<image>"), ("gpt", "y"))}, "path or bytes as image, found int"),
        ({"instruction": "x", "output": None}, "found instruction"),
        ({"instruction": "x", "output": 4}, "expected a text, found 4"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_with_the_reason(row: Any, reason: str, root: Path) -> None:
    with pytest.raises(ValueError) as error:
        sample(row, "mine.jsonl, line 7", RowOrigin(root=root))
    assert str(error.value).startswith("mine.jsonl, line 7: ") and reason in str(error.value)


def test_paths_need_a_folder() -> None:
    row = {"image": "red.png", "conversations": turns(("human", "<image>"), ("gpt", "y"))}
    with pytest.raises(ValueError, match=r"row 1: .*red\.png"):
        messages_of(row)


# ------------------------------------------------------------------------------ files


def as_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(("name", "dump"), [("a.jsonl", as_lines), ("a.json", json.dumps)])
def test_files_become_shards(name: str, dump: Callable[[Any], str], root: Path) -> None:
    rows = [
        {
            "id": 5,
            "image": "red.png",
            "conversations": turns(("human", "<image>\n?"), ("gpt", "y")),
        },
        {"instruction": "x", "output": "y"},
    ]
    (root / name).write_text(dump(rows))
    write(
        root / "out" / "train",
        user_data.read(root / name, licence="CC0"),
        pipeline="formats",
    )
    first, second = Shards(root / "out" / "train")
    unit = "line" if name == "a.jsonl" else "row"
    assert first == Sample(
        "5", (Message.user(Image(RED), "?"), Message.assistant("y")), name, "CC0"
    )
    assert second.id == f"{name}, {unit} 2"


def test_bad_rows_of_a_file_stop_it_or_are_reported(root: Path) -> None:
    file = root / "a.jsonl"
    file.write_text('{"instruction": "x", "output": "y"}\n\n{"instruction"\n[1]\n' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: expected JSON"):
        list(user_data.read(file))
    messages: list[str] = []
    assert len(list(user_data.read(file, bad=messages.append))) == 1
    assert [text.partition(":")[0] for text in messages] == [f"{file}, line {n}" for n in (3, 4, 5)]
    (root / "b.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="found dict"):
        list(user_data.read(root / "b.json"))
