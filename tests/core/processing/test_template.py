"""Conversations become the ids of the published template and tokenizer; only the template emits control ids."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.processing.template import apply_template
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import CONTROLS, parse_fixed_system
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text
from tests.fixtures.pieces import render


def ids(messages: list[Message], tokenizer: Tokenizer, **options: bool) -> list[int]:
    return [i for piece in render(messages, tokenizer, **options) for i in piece.ids]


def learnt(messages: list[Message], tokenizer: Tokenizer, **options: bool) -> str:
    return tokenizer.decode(
        [i for piece in render(messages, tokenizer, **options) if piece.answer for i in piece.ids]
    )


def text(messages: list[Message], tokenizer: Tokenizer, **options: bool) -> str:
    return tokenizer.decode(ids(messages, tokenizer, **options))


CHAT = [
    Message.system("Be brief."),
    Message.user("Hi"),
    Message.assistant("Hello!"),
    Message.user("Bye"),
]


def test_the_shape_of_a_conversation(tokenizer: Tokenizer) -> None:
    start = (
        "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|><|user|>Bye<|end|>"
    )
    assert text(CHAT, tokenizer) == start + "<|endoftext|>"
    assert text(CHAT, tokenizer, generation_prompt=True) == start + "<|assistant|>"
    assert learnt(CHAT, tokenizer) == "Hello!<|end|>"


def test_a_text_in_many_parts_is_one_text(tokenizer: Tokenizer) -> None:
    text = "the quick brown fox " * 200
    parts = Message("user", tuple(map(Text, text)))
    assert ids([parts], tokenizer) == ids([Message.user(text)], tokenizer)
    empty = Message("user", (Text(""), Text("a"), Text(""), Text("b")))
    assert ids([empty], tokenizer) == ids([Message.user("ab")], tokenizer)


def test_tools_sit_on_the_system_message(tokenizer: Tokenizer) -> None:
    chat = [
        Message.system("Use tools.", tools='[{"name": "f"}]'),
        Message("tool_response", (Text("4"),)),
    ]
    assert text(chat, tokenizer) == (
        '<|system|>Use tools.<|tool|>[{"name": "f"}]<|/tool|><|end|><|tool_response|>4<|end|><|endoftext|>'
    )


def test_tool_calls_are_control_tokens_only_in_trusted_answers(tokenizer: Tokenizer) -> None:
    call = 'I look.<|tool_call|>[{"name": "f"}]<|/tool_call|>'
    marks = {tokenizer.control("<|tool_call|>"), tokenizer.control("<|/tool_call|>")}
    answer = [Message.user(call), Message.assistant(call + "<|user|><|/tool_call|>")]
    trusted, plain = ids(answer, tokenizer, trusted=True), ids(answer, tokenizer)
    assert [i in marks for i in trusted].count(True) == 3 and not marks & set(plain)
    assert tokenizer.decode(trusted) == tokenizer.decode(plain)
    assert trusted.count(tokenizer.control("<|user|>")) == 1
    assert learnt(answer, tokenizer, trusted=True) == call + "<|user|><|/tool_call|><|end|>"


def test_media_become_one_placeholder_where_they_stand(tokenizer: Tokenizer) -> None:
    message = Message.user("a", Image(b"1"), "b", "c", Audio(b"2"), Image(b"3"))
    pieces = render([message], tokenizer, generation_prompt=True)
    assert [p.media.source for p in pieces if p.media] == [b"1", b"2", b"3"]
    assert text([message], tokenizer) == (
        "<|user|>a<|endoftext10|>bc<|endoftext11|><|endoftext10|><|end|><|endoftext|>"
    )


def test_neighbouring_texts_are_one_text(tokenizer: Tokenizer) -> None:
    assert ids([Message.user("The qu", "ick fox")], tokenizer) == ids(
        [Message.user("The quick fox")], tokenizer
    )


def test_whitespace_after_a_control_token_is_swallowed(tokenizer: Tokenizer) -> None:
    spaced = [Message.user("\n ", "\u3000Hi \n"), Message.assistant("  ")]
    assert text(spaced, tokenizer) == "<|user|>Hi \n<|end|><|assistant|><|end|><|endoftext|>"
    # Placeholders don't strip it, and whitespace before one is stripped by the role's token.
    assert text([Message.user(" ", Image(b""), "\nHi")], tokenizer) == (
        "<|user|><|endoftext10|>\nHi<|end|><|endoftext|>"
    )
    assert text([Message.user("\x1cHi")], tokenizer).startswith(
        "<|user|>\x1cHi"
    )  # whitespace to Python, not to them


def test_a_document_has_no_roles_and_is_fully_supervised(tokenizer: Tokenizer) -> None:
    document = [Message("document", (Text("  Once <|end|>"),))]
    assert text(document, tokenizer) == "  Once <|end|><|endoftext|>" == learnt(document, tokenizer)
    assert ids(document, tokenizer).count(tokenizer.control("<|end|>")) == 0
    assert text(document, tokenizer, generation_prompt=True) == "  Once <|end|>"
    with pytest.raises(ValueError, match="found 2 messages"):
        render([*document, Message.user("Hi")], tokenizer)


def test_refusals(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="found none"):
        render([], tokenizer)
    for role in ("endoftext", "end", "/tool", "endoftext10", "User", "tool_call"):
        with pytest.raises(ValueError, match=f"'{role}'"):
            render([Message(role, (Text("x"),))], tokenizer)
    with pytest.raises(ValueError, match=r"tools .*system"):
        render([Message("user", (Text("x"),), tools="[]")], tokenizer)


PART = st.one_of(
    st.text(max_size=8), st.sampled_from([*CONTROLS, "\n", " ", "<|image_1|>", "<|tool_call|>["])
)
CONVERSATION = st.lists(
    st.tuples(
        st.sampled_from(["system", "user", "assistant", "tool_response"]),
        st.lists(PART, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(CONVERSATION, st.booleans())
def test_text_never_adds_a_control_token(
    tokenizer: Tokenizer, turns: list, generation_prompt: bool
) -> None:
    messages = [Message(role, tuple(map(Text, parts))) for role, parts in turns]
    expected = [t for role, _ in turns for t in (f"<|{role}|>", "<|end|>")]
    expected.append("<|assistant|>" if generation_prompt else "<|endoftext|>")
    controls = set(tokenizer.controls.values())
    actual = [
        i for i in ids(messages, tokenizer, generation_prompt=generation_prompt) if i in controls
    ]
    assert actual == [tokenizer.control(t) for t in expected]


@pytest.fixture(scope="module")
def peer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory):
    transformers = pytest.importorskip("transformers")
    folder: Path = tmp_path_factory.mktemp("peer")
    tokenizer.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


TURNS = st.lists(
    st.tuples(
        st.sampled_from(["system", "user", "assistant", "tool_response"]),
        st.one_of(
            st.text(alphabet=st.sampled_from("ab1 \n\t\u3000\xa0\u2028\x1céß犬|<>"), max_size=12),
            st.sampled_from(["<think>", "</think>", "<think>\na\n</think>\n\nb"]),
        ),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(TURNS, st.booleans())
def test_ids_are_those_of_the_chat_template_in_transformers(
    tokenizer: Tokenizer, peer, turns: list, generation_prompt: bool
) -> None:
    check_ids(tokenizer, peer, turns, generation_prompt)


PHI = "Your name is Phi, an AI math expert developed by Microsoft."
REASONING_TEMPLATE = (
    "{{ '<|system|>" + PHI + "' }}{% for message in messages %}{% if message['role'] == 'system' %}"
    " {{ message['content'] }}{% if 'tools' in message and message['tools'] is not none %}"
    "{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}{% endif %}{% endif %}{% endfor %}{{ '<|end|>' }}"
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
"""The file chat_template.jinja of microsoft/Phi-4-mini-reasoning."""


@pytest.fixture(scope="module")
def reasoning_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with the template of Phi-4-mini-reasoning in a file of its own, as transformers writes it."""
    folder: Path = tmp_path_factory.mktemp("reasoning")
    tokenizer.save(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(REASONING_TEMPLATE + "\n")
    return folder


@pytest.fixture(scope="module")
def reasoning_peer(reasoning_folder: Path):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(reasoning_folder)


@settings(max_examples=60, deadline=None)
@given(TURNS, st.booleans())
def test_ids_are_those_of_the_template_of_the_reasoning_model(
    reasoning_folder: Path, reasoning_peer, turns: list, generation_prompt: bool
) -> None:
    check_ids(Tokenizer.load(reasoning_folder), reasoning_peer, turns, generation_prompt)


def check_ids(tokenizer: Tokenizer, peer, turns: list, generation_prompt: bool) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    if turns[0][0] == "system":
        messages[0]["tools"] = '[{"name": "f"}]'
    theirs = peer.apply_chat_template(
        messages, add_generation_prompt=generation_prompt, tokenize=False
    )
    ours = ids([Message.parse(m) for m in messages], tokenizer, generation_prompt=generation_prompt)
    assert ours == peer(theirs, add_special_tokens=False)["input_ids"]


def test_system_messages_follow_the_fixed_text(
    reasoning_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    reasoning = Tokenizer.load(reasoning_folder)
    start = f"<|system|>{PHI} Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|>"
    assert (
        text(CHAT, reasoning, generation_prompt=True) == f"{start}<|user|>Bye<|end|><|assistant|>"
    )
    assert text(CHAT[1:2], reasoning).startswith(f"<|system|>{PHI}<|end|><|user|>Hi")
    assert learnt(CHAT, reasoning) == "Hello!<|end|>"
    document = [Message("document", (Text("Once"),))]
    assert ids(document, reasoning) == ids(document, tokenizer)
    with pytest.raises(ValueError, match="system message"):
        apply_template([CHAT[0]], reasoning, continue_final=True)
    reasoning.save(tmp_path)
    assert Tokenizer.load(tmp_path).fixed_system == PHI and tokenizer.fixed_system is None


@pytest.mark.parametrize(
    "template",
    [
        REASONING_TEMPLATE.replace(PHI, "It's"),
        REASONING_TEMPLATE.replace(PHI, "<|end|><|user|>"),
        REASONING_TEMPLATE.replace(PHI, "' + x + '"),
        REASONING_TEMPLATE + "{{ cycler }}",
        "{{ messages }}",
    ],
)
def test_other_templates_have_no_fixed_text(template: str) -> None:
    assert parse_fixed_system(REASONING_TEMPLATE) == PHI
    assert parse_fixed_system(template) is None


def test_marks_of_reasoning_are_text_in_every_role(tokenizer: Tokenizer) -> None:
    answer = "<think>a</think>b"
    messages = [Message.user(answer), Message.assistant(answer)]
    controls = set(tokenizer.controls.values())
    for options in ({}, {"trusted": True}):
        actual = [i for i in ids(messages, tokenizer, **options) if i in controls]
        assert actual == [
            tokenizer.control(t)
            for t in ("<|user|>", "<|end|>", "<|assistant|>", "<|end|>", "<|endoftext|>")
        ]
