"""Tool calls: the result doesn't depend on how an answer is cut into pieces, and no text is lost."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.decoding import tool_calls
from polyphi.decoding.tool_calls import CallDelta, CallList, GrammarToolParser, ToolCall, ToolParser
from polyphi.types.tools import CALL, CALL_END, call_text

Parsed = tuple[str, list[ToolCall]]


class AnyName:
    """Every tool is offered."""

    def __contains__(self, name: object) -> bool:
        return True


Parser = partial(ToolParser, AnyName())
parse_calls = partial(tool_calls.parse_calls, names=AnyName())

RIGHT: dict[str, Parsed] = {
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
    'functools[{"n\\u0061me" : "f\\n", "arguments": [], "arguments" :{"a":""} }]': (
        "",
        [ToolCall("f\n", '{"a":""}')],
    ),
    # ChatML's and Llama 3.2's forms.
    'Yes. <tool_call>[\n{"name": "a", "arguments": {}}\n]</tool_call>!': (
        "Yes. !",
        [ToolCall("a", "{}")],
    ),
    '<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>': ("", [ToolCall("b", "{}")]),
    '\n{"name": "a", "parameters": {"x": 1}}': ("\n", [ToolCall("a", '{"x": 1}')]),
    # Cut off, or invalid from some character on: complete calls stay calls, the rest is content.
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
    'I say: {"name": "a", "arguments": {}}',
    '{"name": "a", "age": 3}',
    '{"name": "a"}',
    '{"parameters": {}, "name": "a"}',
    '{ "na',
    "{" + 70 * " " + '"name": "a", "arguments": {}}',
    '{"n": [{"name": "a", "arguments": {}}]}',
    "{",
    "<tool_call>[]</tool_call>",
    "</tool_call>",
    "<tool_",
    "functools[0]",
    "functools.partial(f)",
    "func",
    "<|tool_call|>",
    "<|tool_call|>[]<|/tool_call|>",
    "<|tool_call|>[[{}]]<|/tool_call|>",
    "<|/tool_call|>",
    "<|tool_ca",
    '<|tool_call|>[{"name": "a", "arguments": [1]}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": "no"}]<|/tool_call|>',
    '<|tool_call|>[{"name": "a", "arguments": "{\\"x\\": NaN}"}]<|/tool_call|>',
    '<|tool_call|>[{"name": 5, "arguments": {}}]<|/tool_call|>',
    '<|tool_call|>[{"name": "", "arguments": {}}]<|/tool_call|>',
    '<|tool_call|>[{"name": "\\ud800", "arguments": {}}]<|/tool_call|>',
    "<|tool_call|>[{'name': 'a', 'arguments': {}}]<|/tool_call|>",
    '<|tool_call|>[{"name": "a" "arguments": {}}]<|/tool_call|>',
]

BEFORE = '<|tool_call|>[{"name": "a", "arguments": '
INCOMPLETE: dict[str, tuple[str, str]] = {
    BEFORE + '{"x": 1': ('{"x": ', "1"),
    BEFORE + '{"x": "1': ('{"x": "1', ""),
    BEFORE + '{"x": 01}}]<|/tool_call|>': ('{"x": ', "01}}]<|/tool_call|>"),
    BEFORE + '{"x": Infinity}}]': ('{"x": ', "Infinity}}]"),
    BEFORE + '{"x": tru}}]': ('{"x": ', "tru}}]"),
    BEFORE + '{"x": "two\nlines"}}]': ('{"x": "two', '\nlines"}}]'),
    BEFORE + '{"x": "\\q"}}]<|/tool_call|>': ('{"x": "', '\\q"}}]<|/tool_call|>'),
    BEFORE + '{"x": 1]}]': ('{"x": 1', "]}]"),
    BEFORE + '{"x": ' + "[" * 70 + "]": ('{"x": ' + "[" * 61, "[" * 9 + "]"),
    BEFORE + '{"x": ' + "1" * 500 + "}}]": ('{"x": ', "1" * 500 + "}}]"),
}
"""Text -> the arguments of a call that ends early or turns invalid, and the text after them, which is content."""
LENIENT: dict[str, Parsed] = {
    BEFORE + '{"x": 1}': ("", [ToolCall("a", '{"x": 1}')]),
    BEFORE + '{"x": 1}]<|/tool_call|>': ("", [ToolCall("a", '{"x": 1}')]),
    BEFORE + "{},}]<|/tool_call|>": (",}]<|/tool_call|>", [ToolCall("a", "{}")]),
    BEFORE + '{}, "id": 7, "arguments": 5}]': ("", [ToolCall("a", "{}")]),
}
"""A call whose arguments are complete is complete, whatever follows."""


def parsed(
    pieces: Iterable[str], parser_class: Callable[[], ToolParser | GrammarToolParser] = Parser
) -> Parsed:
    parser, calls = parser_class(), CallList()
    parts = [part for piece in pieces for part in parser.add(piece)] + parser.finish()
    for part in parts:
        assert part, "no part is an empty string"
        if isinstance(part, CallDelta):
            assert part.name or part.arguments or part.complete is not None
            calls.add(part)
        else:
            assert not calls.growing, "content within a call"
    assert not calls.growing
    return "".join(part for part in parts if isinstance(part, str)), calls


@pytest.mark.parametrize("text", RIGHT)
def test_calls(text: str) -> None:
    assert parse_calls(text) == RIGHT[text]
    for call in RIGHT[text][1]:
        assert isinstance(json.loads(call.arguments), dict)


@pytest.mark.parametrize("text", CONTENT)
def test_text_without_calls_is_content_unchanged(text: str) -> None:
    assert parse_calls(text) == (text, [])


@pytest.mark.parametrize("text", INCOMPLETE)
def test_a_call_that_ends_early_or_turns_invalid_is_incomplete(text: str) -> None:
    arguments, content = INCOMPLETE[text]
    assert parse_calls(text) == (content, [ToolCall("a", arguments, False)])


@pytest.mark.parametrize("text", LENIENT)
def test_a_call_with_complete_arguments_is_complete(text: str) -> None:
    assert parse_calls(text) == LENIENT[text]


@pytest.mark.parametrize("text", [*RIGHT, *INCOMPLETE, *LENIENT])
def test_a_tool_that_is_not_offered_is_not_called(text: str) -> None:
    """All of its text is content, unless another call in it is of an offered tool."""
    names = {call.name for call in parse_calls(text)[1]}
    assert tool_calls.parse_calls(text, ()) == (text, [])
    for name in names:
        content, calls = tool_calls.parse_calls(text, [name])
        assert {call.name for call in calls} <= {name}
        assert all(json.dumps(other)[1:-1] in content for other in names - {name})
        for at in range(len(text)):
            pieces = [text[:at], text[at:]]
            assert parsed(pieces, partial(ToolParser, [name])) == (content, calls)


@pytest.mark.parametrize("text", [*RIGHT, *CONTENT, *INCOMPLETE, *LENIENT])
def test_the_result_is_the_same_for_every_cut(text: str) -> None:
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tool_calls, "MAX_STEPS", data.draw(st.sampled_from([tool_calls.MAX_STEPS, 12, 5]))
        )
        any_text_in_any_pieces(scraps, data)


def any_text_in_any_pieces(scraps: list[str], data: st.DataObject) -> None:
    text = "".join(scraps)
    whole = parse_calls(text)
    assert parsed(scraps) == whole
    assert parsed(text) == whole
    # Without calls no text is lost; with them, only their own text, brackets and marks.
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
def test_written_calls_are_parsed_back(calls: list[dict], way: str, data: st.DataObject) -> None:
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
    content, result = parsed([text[:at], text[at:]])
    assert content == ""
    assert [{"name": c.name, "arguments": json.loads(c.arguments)} for c in result] == calls


def test_content_and_calls_are_returned_as_soon_as_they_are_final() -> None:
    parser = Parser()
    assert parser.add("Hello <") == ["Hello "]
    assert parser.add("b> ") == ["<b> "]
    assert parser.add('<|tool_call|>[{"name": "a", "arguments":') == []
    assert parser.add(' {"x": {') == [CallDelta("a", '{"x": {')]
    assert parser.add('}, "y": "a\\') == [CallDelta(None, '}, "y": "a')]
    assert parser.add('"') == [CallDelta(None, '\\"')]
    assert parser.add('"}') == [CallDelta(None, '"}')]
    assert parser.add(" ") == []
    assert parser.add("}, ") == [CallDelta(None, "", True)]
    assert parser.add('{"name": oops and so on') == [', {"name": oops and so on']
    assert parser.add(" and on") == [" and on"]


INSIDE = CALL + '[{"name":"f","arguments":{"a":['
HOSTILE = [
    *(("", unit) for unit in (CALL, CALL + '[{"', CALL + '[{"a":', CALL + '[{"a":"', CALL + "{}")),
    *(("", unit) for unit in ("functools[", "functools[{", CALL + CALL_END, CALL + '{"name":"f"}')),
    *(("", unit) for unit in (" ", "<", "f", "<|tool_call|", CALL + '{"name":"f"}' + " " * 63)),
    *((INSIDE, unit) for unit in ("1,", "1.5e3,", '"",', '"\\\\",', "null,", "1", " ", '"', "\\")),
    *((INSIDE, unit) for unit in ("[],", "{},", "[1,2],", "[" * 60 + "]" * 60 + ",", "[[1,2],")),
    *(
        (INSIDE + '"', unit)
        for unit in ("a", "\\", '\\"', "\\u00e9", CALL, '","' + CALL + '[{",":')
    ),
    *((INSIDE + "{", unit) for unit in ('"a":1,', '"":"",', '"a":{},')),
    *((CALL + "[{", unit) for unit in ('"a":1,', '"name":"f",', '"\\u0061":"",')),
    (CALL + "[", '{"name":"f","arguments":{}},'),
    (CALL + "[" + " " * 20_000, CALL + "{"),
    (CALL + '[{"' + CALL + '[{",":', "1,"),  # two that continue alike
]
"""(prefix, unit): texts that repeat a unit after a prefix."""


def effort(
    pieces: list[str], parser_class: Callable[[], ToolParser | GrammarToolParser] = Parser
) -> tuple[int, int]:
    """Lines of the parser that run, and characters that its patterns match, while it parses an answer."""
    ran, matched, end_of = 0, 0, tool_calls._end

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal ran
        if frame.f_code.co_filename != tool_calls.__file__:
            return None
        ran += event == "line"
        return trace

    def end(pattern: re.Pattern[str], text: str, at: int) -> int:
        nonlocal matched
        matched += end_of(pattern, text, at) - at
        return end_of(pattern, text, at)

    before = sys.gettrace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool_calls, "_end", end)
        patch.setattr(tool_calls, "MAX_STEPS", 100)
        sys.settrace(trace)
        try:
            parsed(pieces, parser_class)
        finally:
            sys.settrace(before)
    return ran, matched


@pytest.mark.parametrize(("before", "unit"), HOSTILE)
def test_effort_grows_no_faster_than_the_text(before: str, unit: str) -> None:
    """Counted in lines and characters, not in seconds. Lines are bounded: only the patterns read the whole text."""
    text = before + unit * (20_000 // len(unit))
    ran, matched = effort([text])
    assert ran < 100 * 100
    assert matched < 4 * len(text)
    pieces = [text[at : at + 10] for at in range(0, len(text), 10)]
    ran, matched = effort(pieces)
    assert ran < 150 * (100 + len(pieces))
    assert matched < 4 * len(text)


def test_patterns_never_backtrack() -> None:
    """Each repeat is possessive or of fixed length, so that a pattern can't match the same characters in many ways."""
    patterns = [one for one in vars(tool_calls).values() if isinstance(one, re.Pattern)]
    assert len(patterns) > 5

    def repeats(part: Any) -> Iterator[tuple[str, Any, Any]]:
        if isinstance(part, re._parser.SubPattern):  # type: ignore[attr-defined]
            for operation, of in part:
                if str(operation).endswith("REPEAT"):
                    yield str(operation), of[0], of[1]
                yield from repeats(of)
        elif isinstance(part, tuple | list):
            for inner in part:
                yield from repeats(inner)

    def backtracks(pattern: str) -> bool:
        parts = repeats(re._parser.parse(pattern))  # type: ignore[attr-defined]
        return any(how != "POSSESSIVE_REPEAT" and least != most for how, least, most in parts)

    assert backtracks("(?:a|(?>b+))*+") and not backtracks("(?:a|b++c{3})?+")
    for pattern in patterns:
        assert not backtracks(pattern.pattern), pattern.pattern


def test_beyond_max_steps_all_is_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six here: a start, three brackets and two members. Four: another call of the list. Two: a start and a bracket."""
    call, more = '{"name": "f", "arguments": {}}', f" {CALL}[]" + f'{CALL}{{"name": "f"}}{CALL_END}'
    text = f"{CALL}[{call}, {call}]{CALL_END}{more}"
    for steps, calls, content in (
        (5, 0, text),
        (6, 1, f", {call}]{CALL_END}{more}"),
        (9, 1, f", {call}]{CALL_END}{more}"),
        (10, 2, more),
        (14, 2, more),
        (15, 3, f" {CALL}[]"),
    ):
        monkeypatch.setattr(tool_calls, "MAX_STEPS", steps)
        expected = content, [ToolCall("f", "{}")] * calls
        assert parse_calls(text) == parsed(text) == expected


def test_arguments_in_a_string_follow_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls(arguments: str) -> int:
        return len(parse_calls(CALL + json.dumps({"name": "f", "arguments": arguments}))[1])

    assert calls(' {"a": [{}]}\n') == calls("{}") == 1
    for wrong in ('{"a": [{}]', "[{}", "[{}]", "{}]", "{} {}", "{", " ", "1", '{"a": "\n"}'):
        assert calls(wrong) == 0, wrong
    assert calls('{"a": ' + "[" * 63 + "]" * 63 + "}") == 1
    assert calls('{"a": ' + "[" * 64 + "]" * 64 + "}") == 0
    monkeypatch.setattr(
        tool_calls, "MAX_STEPS", 7
    )  # four; within the string two brackets and a member
    assert (calls('{"a": {}}'), calls('{"a": {}, "b": {}}')) == (1, 0)
    one = json.dumps({"name": "f", "arguments": '{"a": {}}'})
    for steps, expected in ((14, 1), (15, 2)):  # the list's bracket too; six more for another call
        monkeypatch.setattr(tool_calls, "MAX_STEPS", steps - 1)
        assert len(parse_calls(f"{CALL}[{one},{one}]")[1]) == expected


@pytest.mark.parametrize("written", ["1" * 400, "-0." + "1" * 400 + "e-" + "1" * 400])
def test_numbers_have_at_most_max_digits(written: str) -> None:
    for number, calls in ((written, 1), (written + "1", 0)):
        for after in ("}", ', "b": [' + number + ", " + number + "]}"):
            text = f'{CALL}{{"name": "f", "arguments": {{"a": {number}{after}}}'
            assert [call.complete for call in parse_calls(text)[1]] == [calls == 1]
            for at in range(len(text)):
                assert parsed([text[:at], text[at:]]) == parse_calls(text)


# Answers of a grammar of tools

Either = partial(GrammarToolParser, alternative=True)
ANSWERS = [
    f'{CALL}[{{"name": "add", "arguments": {{"a": [1, {{"b": "}}]\\"{{["}}]}}}}]{CALL_END}',
    f'{CALL}[ {{"name" : "now" ,\n  "arguments" : {{}} }} ]{CALL_END}',
    f'{CALL}[{{"name":"a","arguments":{{"x":"é\\u00e9\\\\"}}}},{{"name":"\\"b\\"","arguments":{{ }}}}]{CALL_END}',
    f'{CALL}[{{"name": "{CALL_END}", "arguments": {{"x": "{CALL}[{{"}}}}]{CALL_END}',
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_calls_of_a_grammar_are_the_same_by_every_cut(answer: str) -> None:
    whole = parsed([answer], GrammarToolParser)
    assert whole == parse_calls(answer) and whole[0] == ""
    assert whole == parsed([answer], Either) == parsed(answer, GrammarToolParser)
    for at in range(len(answer)):
        assert parsed([answer[:at], answer[at:]], Either) == whole
    bare = answer.removeprefix(CALL).removesuffix(CALL_END)
    assert parsed([bare], GrammarToolParser) == parsed(["functools" + bare], Either) == whole


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_call_that_is_cut_off_has_its_incomplete_arguments(answer: str) -> None:
    _, calls = parse_calls(answer)
    for end in range(len(CALL), len(answer)):  # the mark is one token
        content, cut = parsed([answer[:end]], GrammarToolParser)
        assert content == "" and (content, cut) == parsed(answer[:end], Either)
        assert all(call.complete for call in cut[:-1])
        for call, whole in zip(cut, calls, strict=False):
            assert call.name == whole.name
            if call.complete:
                assert call == whole
            else:
                assert whole.arguments.startswith(call.arguments)
                unread = end - answer[:end].rindex(call.arguments) - len(call.arguments)
                assert unread < 6 or not call.arguments, "less than an escape"


@pytest.mark.parametrize(
    "cut, expected",
    [
        ("[", []),
        ('[{"name": "ad', []),
        ('[{"name": "add"', [ToolCall("add", "", False)]),
        ('[{"name": "add", "argu', [ToolCall("add", "", False)]),
        ('[{"name": "add", "arguments": {"a": "x ', [ToolCall("add", '{"a": "x ', False)]),
        ('[{"name": "add", "arguments": {"a": 1}', [ToolCall("add", '{"a": 1}')]),
        ('[{"name": "add", "arguments": {}}, {"na', [ToolCall("add", "{}")]),
        (
            '[{"name": "add", "arguments": {}}, {"name": "b", "arguments": {"',
            [ToolCall("add", "{}"), ToolCall("b", '{"', False)],
        ),
    ],
)
def test_a_call_that_is_cut_off_needs_a_complete_name(cut: str, expected: list[ToolCall]) -> None:
    assert parsed([CALL + cut], GrammarToolParser) == ("", expected)
    assert parsed(CALL + cut, Either) == ("", expected)


@pytest.mark.parametrize(
    "answer",
    [
        '[{"name": "a", "arguments": {}}]',
        f'{{"text": "{CALL}[{{}}]"}}',
        '"functools[{}]"',
        "false",
        "f",
        "<b>",
        "",
    ],
)
def test_an_answer_of_the_alternative_is_content_unchanged(answer: str) -> None:
    assert parsed([answer], Either) == parsed(answer, Either) == (answer, [])


@pytest.mark.parametrize(
    "unit",
    [
        *("a", "\\", '\\"', "\\u00e9", CALL, '","', '":{"', '":[{},"', "{" * 9),
        '"}},{"name":"f","arguments":{"a":"',
    ],
)
def test_effort_for_answers_of_a_grammar_grows_no_faster_than_the_text(unit: str) -> None:
    """Lines grow with pieces and braces; the other characters are read by patterns, once."""
    text = f'{CALL}[{{"name": "f", "arguments": {{"a": "' + unit * (20_000 // len(unit))
    braces = text.count("{") + text.count("}")
    for size in (len(text), 10):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        ran, matched = effort(pieces, GrammarToolParser)
        assert ran < 40 * (len(pieces) + braces)
        assert matched < 2 * len(text)
