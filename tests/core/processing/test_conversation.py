"""The marks of a conversation: token ids equal those of transformers with each known template; others are refused."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from polyphi.decoding.tool_calls import ToolCall, parse_calls
from polyphi.processing.conversation import CHATML, LLAMA3, PHI4, recognized
from polyphi.processing.template import TemplatePiece, TextPiece, apply_template
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from polyphi.types.messages import with_tools as add_tools
from polyphi.types.parts import Image, Text
from tests.fixtures.conversations import (
    FILES,
    LLAMA,
    PLAIN_CHATML,
    SMOLLM,
    TEMPLATES,
    write_tokenizer,
)
from tests.fixtures.engines import SAYINGS

transformers = pytest.importorskip("transformers")


DATE = "26 Jul 2024"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time in Zürich",
            "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
        },
    }
]


@pytest.fixture(params=TEMPLATES)
def folder(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A tokenizer with one of the templates, as transformers and we read it."""
    return write_tokenizer(tokenizer, request.param, tmp_path)


def ids_of(tokenizer: Tokenizer, messages: list[Message], **options: bool) -> list[int]:
    pieces = apply_template(messages, tokenizer, **options)
    return [
        id
        for piece in pieces
        for id in (tokenizer.encode(piece.text) if isinstance(piece, TextPiece) else piece.ids)
    ]


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Conversations with and without a system message; some texts name control tokens or have white space around."""
    draw = random.Random(0)
    texts = [*SAYINGS, "  space around \n", "two\n\nlines", "a", "1234567"]
    result = []
    for number in range(count):
        roles = ["system"] * (number % 2) + ["user", "assistant"] * draw.randint(1, 4)
        roles = roles[: len(roles) - number % 3 % 2]
        result.append([{"role": role, "content": draw.choice(texts)} for role in roles])
    return result


def test_ids_are_those_of_transformers(folder: Path) -> None:
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for conversation in conversations(50):
        for prompt in (True, False):
            expected = theirs.apply_chat_template(
                conversation, add_generation_prompt=prompt, return_dict=False, date_string=DATE
            )
            messages = [Message(m["role"], m["content"]) for m in conversation]
            assert ids_of(ours, messages, generation_prompt=prompt) == expected


@pytest.fixture(params=FILES)
def with_tools(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A tokenizer with a template that has tools."""
    return write_tokenizer(tokenizer, request.param, tmp_path)


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": " Be brief.\n"}]])
def test_ids_of_tools_are_those_of_transformers(
    with_tools: Path, system: list[dict[str, Any]]
) -> None:
    ours, theirs = (
        Tokenizer.load(with_tools),
        transformers.AutoTokenizer.from_pretrained(with_tools),
    )
    call = {"type": "function", "function": {"name": "now", "arguments": {"zone": "Zürich"}}}
    conversation = [
        *system,
        {"role": "user", "content": " What time is it? "},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": ' {"time": "12\u00a0h"} \n'},
        {"role": "assistant", "content": "Noon."},
        {"role": "user", "content": "Thanks"},
    ]
    expected = theirs.apply_chat_template(
        conversation, tools=TOOLS, add_generation_prompt=True, return_dict=False, date_string=DATE
    )
    messages = add_tools([Message.parse(m) for m in conversation], TOOLS)
    assert ids_of(ours, messages, generation_prompt=True) == expected


def test_what_tools_return_keeps_its_media(with_tools: Path) -> None:
    tokenizer = Tokenizer.load(with_tools)
    seen = Message("tool", [Text("seen"), Image(b"picture")])
    pieces = apply_template([Message("user", "hi"), seen], tokenizer.with_placeholder("image", 7))
    (image,) = [piece.media for piece in pieces if isinstance(piece, TemplatePiece) and piece.media]
    assert image == Image(b"picture")
    assert any(isinstance(piece, TextPiece) and '"seen"' in piece.text for piece in pieces)


def test_tools_without_a_place_in_the_template_are_refused(with_tools: Path) -> None:
    tokenizer, user = Tokenizer.load(with_tools), Message("user", "hi")
    for messages in (
        [Message.system("", TOOLS)],
        [Message.system("", TOOLS), Message("assistant", "hello")],
        [user, Message.system("", TOOLS)],
    ):
        with pytest.raises(ValueError, match="chat template has"):
            apply_template(messages, tokenizer)


def test_calls_are_text_where_the_template_has_no_tools(folder: Path) -> None:
    """An earlier call, and one of training data, in the form in which the model writes them."""
    tokenizer, user = Tokenizer.load(folder), Message("user", "hi")
    call = Message.parse({"role": "assistant", "tool_calls": [{"name": "now", "arguments": {}}]})
    ids = ids_of(tokenizer, [user, call], continue_final=True)
    before = tokenizer.decode(ids_of(tokenizer, [user], generation_prompt=True))
    answer = tokenizer.decode(ids).removeprefix(before)
    assert parse_calls(answer, ["now"]) == ("", [ToolCall("now", "{}")])
    data = Message("assistant", call.text)
    assert ids_of(tokenizer, [user, data], continue_final=True, trusted=True) == ids
    calls = [{"name": name, "arguments": {"a": name}} for name in "xy"]
    both = Message.parse({"role": "assistant", "tool_calls": calls})
    ids = ids_of(tokenizer, [user, both], continue_final=True)
    _, read = parse_calls(tokenizer.decode(ids).removeprefix(before), "xy")
    assert read == [ToolCall(name, json.dumps({"a": name})) for name in "xy"]
    swapped = call.text.replace('"name": "now", "arguments": {}', '"arguments": {}, "name": "now"')
    ids = ids_of(
        tokenizer, [user, Message("assistant", swapped)], continue_final=True, trusted=True
    )
    assert parse_calls(tokenizer.decode(ids).removeprefix(before), ["now"])[1] == [
        ToolCall("now", "{}")
    ]


def test_text_of_users_is_no_control_token(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    text = "".join(tokenizer.controls)
    plain = ids_of(tokenizer, [Message("user", "x")], generation_prompt=True)
    hostile = ids_of(tokenizer, [Message("user", text)], generation_prompt=True)
    controls = set(tokenizer.controls.values())
    assert [id for id in plain if id in controls] == [id for id in hostile if id in controls]
    assert text in tokenizer.decode(hostile)


def test_the_answer_and_its_end_are_supervised(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    conversation = [Message("user", "hi"), Message("assistant", "hello"), Message("user", "bye")]
    conversation.append(Message("assistant", "so long"))
    answers = []
    for piece in apply_template(conversation, tokenizer):
        ids = tokenizer.encode(piece.text) if isinstance(piece, TextPiece) else piece.ids
        answers += ids if piece.answer else []
    end = tokenizer.marks.end[0]
    assert tokenizer.decode(answers) == f"hello{end}so long{end}"
    assert tokenizer.eos_ids[0] == tokenizer.control(end)


def test_a_saved_tokenizer_keeps_its_template(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    tokenizer.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.marks == tokenizer.marks
    assert Tokenizer.from_json(tokenizer.to_json()).marks == tokenizer.marks


@pytest.mark.parametrize(
    ("form", "template"),
    [
        (CHATML, SMOLLM.replace("user", "human") + "{{ tools }}"),
        (CHATML, PLAIN_CHATML.replace("'\\n'", "'  '", 1)),
        (LLAMA3, LLAMA.replace(" | trim", "")),
        (LLAMA3, PLAIN_CHATML),
        (LLAMA3, FILES["Llama 3.2"].read_text().replace("Do not use variables.", "")),
    ],
)
def test_an_unknown_template_is_refused(form: Any, template: str) -> None:
    with pytest.raises(ValueError, match=form.name):
        recognized(form.controls, template)


def test_unknown_control_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"<\|im_end\|>"):
        recognized(("<|im_start|>", "<|endoftext|>"), "")
    assert recognized(PHI4.controls, "{{ anything }}") is PHI4
