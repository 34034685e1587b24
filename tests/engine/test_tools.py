"""Tool calls: however an answer is cut into pieces the same comes out, and nothing of it is lost."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.chat import CALL, CALL_END, call_text
from polyphi.engine.tools import ToolCall, ToolParser, parse_calls

Found = tuple[str, list[ToolCall]]

RIGHT: dict[str, Found] = {
    '<|tool_call|>[{"name": "add", "arguments": {"a": 1}}]<|/tool_call|>': (
        "",
        [ToolCall("add", '{"a": 1}')],
    ),
    'Let me see. <|tool_call|>\n[{"name":"now","arguments":{}}]\n<|/tool_call|> Done.': (
        "Let me see.  Done.",
        [ToolCall("now", "{}")],
    ),
    '<|tool_call|>[{"name": "a", "arguments": {"x": [1, {"y": "}]\\"{["}], "z": -1.5e3}}, '
    '{"name": "b", "arguments": {}}]<|/tool_call|>': (
        "",
        [ToolCall("a", '{"x": [1, {"y": "}]\\"{["}], "z": -1.5e3}'), ToolCall("b", "{}")],
    ),
    '[{"name": "a", "arguments": "{\\"q\\": \\"\\\\\\"]\\"}"}]': (
        "",
        [ToolCall("a", '{"q": "\\"]"}')],
    ),
    ' \n[{"name":"a","arguments":{"k":"\\\\"}}]<|/tool_call|>': (
        " \n",
        [ToolCall("a", '{"k":"\\\\"}')],
    ),
    'functools[{"name": "f", "arguments": {"t": null, "u": true, "v": 10}}]': (
        "",
        [ToolCall("f", '{"t": null, "u": true, "v": 10}')],
    ),
    'So: functools[{"arguments": {}, "name": "f"}] and functools[x]': (
        "So:  and functools[x]",
        [ToolCall("f", "{}")],
    ),
    '<|tool_call|>{"name": "one", "parameters": {"é": "日本 😀"}}<|/tool_call|>': (
        "",
        [ToolCall("one", '{"é": "日本 😀"}')],
    ),
    '<|tool_call|>[{"name": "none"}]<|/tool_call|><|tool_call|>[{"name":"b","arguments":null}]': (
        "",
        [ToolCall("none", "{}"), ToolCall("b", "{}")],
    ),
    '<|tool_call|> no, <|tool_call|>[{"name": "b", "arguments": {}}]<|/tool_call|>': (
        "<|tool_call|> no, ",
        [ToolCall("b", "{}")],
    ),
    # Cut off, or wrong from some letter on: what came whole stays a call, the rest is content.
    '<|tool_call|>[{"name": "a", "arguments": {}}, {"name": "b", "argu': (
        ', {"name": "b", "argu',
        [ToolCall("a", "{}")],
    ),
    '<|tool_call|>[{"name": "a", "arguments": {}}<|/tool_call|>!': ("!", [ToolCall("a", "{}")]),
    '[{"name": "a", "arguments": {}}, 7] <|tool_call|>[{"name": "b"}]': (
        ", 7] ",
        [ToolCall("a", "{}"), ToolCall("b", "{}")],
    ),
}
CONTENT = [
    "",
    "Hello.",
    "[1, 2, 3]",
    "[]",
    "[",
    "  ",
    '[{"name": "Bob", "age": 3}]',
    '[{"name": "Bob"}]',
    'I say: [{"name": "a", "arguments": {}}]',  # a bare list is a call only where an answer begins
    '{"name": "a", "arguments": {}}',
    "functools[0]",
    "functools.partial(f)",
    "func",
    "<|tool_call|>",
    "<|tool_call|>[]<|/tool_call|>",
    "<|tool_call|>[[{}]]<|/tool_call|>",
    "<|/tool_call|>",
    "<|tool_ca",
    '<|tool_call|>[{"name": "a", "arguments": {"x": 1',
    '<|tool_call|>[{"name": "a", "arguments": {"x": "1',
    '<|tool_call|>[{"name": "a", "arguments": [1]}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": "no"}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": "{\\"x\\": NaN}"}]<|/tool_call|>',
    '<|tool_call|>[{"name": 5, "arguments": {}}]<|/tool_call|>',
    '<|tool_call|>[{"name": "", "arguments": {}}]<|/tool_call|>',
    '<|tool_call|>[{"name": "\\ud800", "arguments": {}}]<|/tool_call|>',
    "<|tool_call|>[{'name': 'a', 'arguments': {}}]<|/tool_call|>",
    '<|tool_call|>[{"name": "a" "arguments": {}}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": {},}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": {"x": 01}}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": {"x": Infinity}}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": {"x": tru}}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": {"x": "two\nlines"}}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": {"x": "\\q"}}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": {"x": 1]}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": {"x": ' + "[" * 70 + "]" * 70 + "}}]",
    '<|tool_call|>[{"name": "a", "arguments": {"x": ' + "1" * 500 + "}}]",
]


def parsed(pieces: Iterable[str]) -> Found:
    parser = ToolParser()
    found = [part for piece in pieces for part in parser.add(piece)] + parser.finish()
    assert all(found), "an empty string tells nothing"
    content = "".join(part for part in found if isinstance(part, str))
    return content, [part for part in found if isinstance(part, ToolCall)]


@pytest.mark.parametrize("text", RIGHT)
def test_calls(text: str) -> None:
    assert parse_calls(text) == RIGHT[text]
    for call in RIGHT[text][1]:
        assert isinstance(json.loads(call.arguments), dict)


@pytest.mark.parametrize("text", CONTENT)
def test_what_is_no_call_is_content_to_the_letter(text: str) -> None:
    assert parse_calls(text) == (text, [])


@pytest.mark.parametrize("text", [*RIGHT, *CONTENT])
def test_every_cut_gives_the_same(text: str) -> None:
    whole = parse_calls(text)
    assert parsed(text) == whole
    for at in range(len(text)):
        assert parsed([text[:at], text[at:]]) == whole


SCRAPS = st.sampled_from(
    [
        *("<|tool_call|>", "<|/tool_call|>", "functools[", "[", "]", "{", "}", '"', "\\", ",", ":"),
        *(" ", "\n", "name", '"name"', '"arguments"', '"name": "f"', '"arguments": {}', "1", "-"),
        *("true", "é", "x", '{"name": "f", "arguments": {}}', '"a": [{"b": "]}"}]', "<|", "func"),
    ]
)


@settings(deadline=None)
@given(st.lists(SCRAPS, max_size=25), st.data())
def test_any_text_in_any_pieces(scraps: list[str], data: st.DataObject) -> None:
    text = "".join(scraps)
    whole = parse_calls(text)
    assert parsed(scraps) == whole
    assert parsed(text) == whole
    # Without calls nothing is lost; with them, no more than their own text, brackets and marks.
    if not whole[1]:
        assert whole[0] == text
    at = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    cuts = [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
    assert parsed(cuts) == whole


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.text(min_size=1, max_size=6),
            "arguments": st.dictionaries(st.text(max_size=4), JSON, max_size=2),
        }
    ),
    min_size=1,
    max_size=2,
)


@settings(deadline=None)
@given(CALLS, st.sampled_from(["marks", "functools", "bare", "strings", "indented"]), st.data())
def test_what_is_written_is_read_back(calls: list[dict], way: str, data: st.DataObject) -> None:
    plain = json.dumps(calls)
    text = {
        "marks": call_text(calls),
        "functools": f"functools{plain}",
        "bare": plain,
        "strings": CALL
        + json.dumps([{**c, "arguments": json.dumps(c["arguments"])} for c in calls])
        + CALL_END,
        "indented": f"{CALL}\n{json.dumps(calls, indent=4, ensure_ascii=False)}\n{CALL_END}",
    }[way]
    at = data.draw(st.integers(0, len(text)))
    content, found = parsed([text[:at], text[at:]])
    assert content == ""
    assert [{"name": c.name, "arguments": json.loads(c.arguments)} for c in found] == calls


def test_content_and_calls_are_told_as_soon_as_they_are_sure() -> None:
    parser = ToolParser()
    assert parser.add("Hello <") == ["Hello "]
    assert parser.add("b> ") == ["<b> "]
    assert parser.add('<|tool_call|>[{"name": "a", "arguments": {"x": {}}') == []
    assert parser.add("}, ") == [ToolCall("a", '{"x": {}}')]
    assert parser.add('{"name": oops and so on') == [', {"name": oops and so on']
    assert parser.add(" and on") == [" and on"]


@pytest.mark.parametrize(
    "unit",
    [CALL, CALL + '[{"', CALL + '[{"a":', CALL + '[{"a":"', '[{"a":', "functools[", "functools[{"],
)
def test_false_starts_cost_no_more_than_their_length(unit: str) -> None:
    """Counted in letters read, not in seconds: each may be looked at a few times, not once for every start."""
    from polyphi.engine import tools

    read = 0

    class Counting(str):
        def __getitem__(self, key: int | slice) -> str:  # type: ignore[override]
            nonlocal read
            read += 1
            return str.__getitem__(self, key)

    text = Counting(unit * 500)
    parser = tools.ToolParser()
    parser._held = text
    told = parser._tell(last=True)
    assert "".join(map(str, told)) == text
    assert read < 10 * len(text)
