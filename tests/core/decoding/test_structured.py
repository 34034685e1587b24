"""Constrained answers follow their grammar for any logits."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.decoding.grammars import arguments_schema, compiled
from polyphi.decoding.structured import Matcher, compile_grammar
from polyphi.decoding.tool_calls import CallDelta, CallList, GrammarToolParser, parse_calls
from polyphi.engine.engine import Engine
from polyphi.engine.sampling import Sampler, check
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from polyphi.types.sampling import Grammar, SamplingParams
from polyphi.types.tools import CALL, CALL_END
from tests.fixtures.conversations import write_tokenizer

TOKENIZER = Tokenizer.train(
    [
        '{"name": "Anna", "arguments": {"city": "Rome"}}, [1, 2]',
        "größer als 日本",
        "true false null",
    ],
    vocab_size=400,
)
SPELT = TOKENIZER.spelled()
SCHEMAS: dict[str, dict[str, Any]] = {
    "enum": {"enum": ["yes", "no", "ja, größer", 3, None]},
    "flat": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"enum": [7, 77, 1e9]}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "number", "minimum": 0, "maximum": 9}},
                "required": ["x"],
                "additionalProperties": False,
            },
            "kind": {"const": "日本 \"é\""},
        },
        "required": ["point", "kind"],
        "additionalProperties": False,
    },
    "arrays": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "minItems": 2,
        "maxItems": 3,
    },
    "references": {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/leaf"}, "right": {"$ref": "#/$defs/leaf"}},
        "required": ["right"],
        "additionalProperties": False,
        "$defs": {"leaf": {"anyOf": [{"type": "null"}, {"enum": ["é", "\n"]}]}},
    },
    "pattern": {"type": "string", "pattern": "^[a-c]{2}-[0-9]{1,3}$"},
    "patterns of names": {
        "type": "object",
        "patternProperties": {"^k[0-9]$": {"type": "null"}},
        "additionalProperties": False,
        "maxProperties": 2,
    },
}  # fmt: skip
EXPRESSIONS = [
    "yes|no",
    "[a-f0-9]{4}(-[a-f0-9]{2}){1,2}",
    "é+日?",
    r"\d{2}:\d{2}",
    "(ab|cd){2,4}x?",
]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"$ref": "#/$defs/city"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city"],
                "$defs": {"city": {"enum": ["Rome", "København \"K\""]}},
            },
        },
    },
    {"name": "now"},
    # As the models' own template has it: types by Python's names, no schema.
    {"name": 'say "é"', "parameters": {"loud": {"type": "bool"}, "twice": {"type": "bool", "default": False}}},
]  # fmt: skip


def matcher_of(grammar: Grammar, tokenizer: Tokenizer = TOKENIZER) -> Matcher:
    return compile_grammar(grammar, tokenizer).matcher()


def drawn(
    grammar: Grammar, seed: int = 0, most: int = 600, tokenizer: Tokenizer = TOKENIZER
) -> list[int]:
    """An answer by random logits; with an odd seed some tokens are always preferred."""
    sampling = SamplingParams(temperature=1.0, seed=seed, grammar=grammar)
    check(sampling)
    sampler = Sampler(sampling, tokenizer, matcher=matcher_of(grammar, tokenizer))
    generator = torch.Generator().manual_seed(seed)
    likes = 3 * torch.randn(tokenizer.vocab_size, generator=generator)
    # Whitespace is allowed nearly everywhere: preferred, it would fill every answer.
    likes[[token for space in " \n\t" for token in tokenizer.encode(space)]] = -3.0
    tokens: list[int] = []
    while not sampler.finished and len(tokens) < most:
        noise = torch.randn(tokenizer.vocab_size, generator=generator)
        tokens.append(sampler.draw(likes * (seed % 2) + noise))
    return tokens


def written(grammar: Grammar, seed: int = 0, most: int = 600) -> str:
    """The text of a complete answer, in whole characters."""
    tokens = drawn(grammar, seed, most)
    assert len(tokens) < most
    b"".join(SPELT[token] or b"" for token in tokens).decode("utf-8", errors="strict")
    return TOKENIZER.decode(tokens, skip_special=True)


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_follows_its_schema(name: str) -> None:
    answers = set()
    for seed in range(12):
        text = written(Grammar("json", json.dumps(SCHEMAS[name])), seed)
        jsonschema.validate(json.loads(text), SCHEMAS[name])
        answers.add(text)
    assert len(answers) > 2, "a grammar with a single answer proves nothing"


NESTED = {"city": "Rome", "at": [1, 2], "by": {"bus": [], "foot": [{"km": 3}]}}
LISTS = {"type": "array", "items": {"type": "integer"}}
FEET = {"type": "array", "items": {"type": "object", "properties": {"km": {"type": "integer"}}}}
NESTED_SCHEMAS: dict[str, dict[str, Any]] = {
    "described": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "at": LISTS,
            "by": {"type": "object", "properties": {"bus": LISTS, "foot": FEET}},
        },
    },
    "open": {"type": "object"},
    "open members": {"type": "object", "additionalProperties": True},
    "open items": {"type": "object", "properties": {"city": {}, "at": {"items": {}}, "by": {}}},
    "alternatives": {"anyOf": [{"type": "null"}, {"type": "object"}]},
    "reference": {"$ref": "#/$defs/any", "$defs": {"any": {"type": "object"}}},
    "listed": {"enum": [NESTED]},
}


def follows(grammar: Grammar, text: str) -> bool:
    """Whether the grammar allows this whole answer. Marks of a tool call in it are control tokens."""
    matcher = matcher_of(grammar)
    for part in re.split(r"(<\|/?tool_call\|>)", text):
        marks = (CALL, CALL_END)
        for token in [TOKENIZER.control(part)] if part in marks else TOKENIZER.encode(part):
            if not matcher.mask(torch.zeros(TOKENIZER.vocab_size))[token].isfinite():
                return False
            matcher.accept(token)
    return bool(matcher.mask(torch.zeros(TOKENIZER.vocab_size))[TOKENIZER.eos_ids[0]].isfinite())


@pytest.mark.parametrize("name", NESTED_SCHEMAS)
def test_compact_and_pretty_printed_json_are_allowed(name: str) -> None:
    grammar = Grammar("json", json.dumps(NESTED_SCHEMAS[name]))
    assert follows(grammar, json.dumps(NESTED))
    assert follows(grammar, json.dumps(NESTED, separators=(",", ":")))
    for indent in (2, 4, "\t"):
        assert follows(grammar, json.dumps(NESTED, indent=indent))


@pytest.mark.parametrize("indent", [None, 2, 4, "\t"])
def test_calls_may_be_pretty_printed(indent: Any) -> None:
    calls = [
        {"name": "get_weather", "arguments": {"city": "Rome", "days": 2}},
        {"name": "now", "arguments": {}},
    ]
    text = f"{CALL}{json.dumps(calls, indent=indent)}{CALL_END}"
    assert follows(Grammar("tools", json.dumps(TOOLS)), text)


SPACED = [
    '{  "city":1}', '{"city":  1}', '{"city":1  }', '{\n\n"city":1}', '{\n\n  "city":1}', '{ \n"city":1}',
    '{\n "city":1}', '{\n      "city":1}', '{\n\t\t"city":1}', '{\t"city":1}', ' {"city":1}', '{"city":1}\n',
]  # fmt: skip
"""With two spaces, a blank line, more indentation than the schema has levels, or whitespace around it."""


@pytest.mark.parametrize("text", SPACED)
def test_more_whitespace_than_in_printed_json_is_not_allowed(text: str) -> None:
    schema = {"type": "object", "properties": {"city": {"const": 1}}, "required": ["city"]}
    grammar = Grammar("json", json.dumps(schema))
    assert follows(grammar, '{ "city" : 1 }')
    assert not follows(grammar, text)


@pytest.mark.parametrize("wide", ["  ", "\n\n", " \n"])
def test_more_whitespace_than_in_printed_calls_is_not_allowed(wide: str) -> None:
    grammar = Grammar("tools", '[{"name": "now"}]')
    text = '[ { "name" : "now" , "arguments" : { } } , { "name":"now","arguments":{} } ]'
    assert follows(grammar, CALL + text + CALL_END)
    for space in re.finditer(" ", text):
        wider = text[: space.start()] + wide + text[space.end() :]
        assert not follows(grammar, CALL + wider + CALL_END)
    for around in (f"{CALL} {text}{CALL_END}", f"{CALL}{text} {CALL_END}"):
        assert not follows(grammar, around)


def test_a_model_that_prefers_spaces_writes_few() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Oslo"]}, "large": {"type": "boolean"}},
        "required": ["name", "large"],
        "additionalProperties": False,
    }
    for preferred in (" ", "\n", " \n", " \n\t"):
        matcher = matcher_of(Grammar("json", json.dumps(schema)))
        likes = torch.zeros(TOKENIZER.vocab_size)
        likes[[TOKENIZER.encode(space)[0] for space in preferred]] = 9.0
        tokens: list[int] = []
        while not matcher.finished:
            tokens.append(int(matcher.mask(likes).argmax()))
            matcher.accept(tokens[-1])
        assert json.loads(TOKENIZER.decode(tokens))["name"] == "Oslo"
        assert len(tokens) < 80
        assert len(tokens) < 40 or preferred != " "


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_is_matched_from_end_to_end(expression: str) -> None:
    answers = [written(Grammar("regex", expression), seed) for seed in range(12)]
    assert all(re.fullmatch(expression, text) for text in answers)
    assert len(set(answers)) > 1


LARK = 'start: "a" b*\nb: "b" | "[" b "]"'
GBNF = 'root ::= "a" inner*\ninner ::= "b" | "[" inner "]"  # nested\n'


def is_nested(text: str) -> bool:
    """Whether a text is an "a", then any number of "b" in brackets."""
    while (shorter := text.replace("[b]", "b")) != text:
        text = shorter
    return re.fullmatch("ab*", text) is not None


@pytest.mark.parametrize("grammar", [LARK, GBNF])
def test_a_context_free_grammar_is_followed(grammar: str) -> None:
    for seed in range(6):
        tokens = drawn(Grammar("ebnf", grammar), seed, most=40)
        assert is_nested(TOKENIZER.decode(tokens, skip_special=True)) or len(tokens) == 40
    for text in ("a", "ab[[b]]b", "a[b", "b", "ab]"):
        assert follows(Grammar("ebnf", grammar), text) == is_nested(text)


def test_a_grammar_can_not_force_control_tokens() -> None:
    user, a = TOKENIZER.control("<|user|>"), TOKENIZER.encode("a")[0]
    with pytest.raises(ValueError, match="control tokens"):
        matcher_of(Grammar("ebnf", 'start: <|user|> "a"'))
    matcher = matcher_of(Grammar("ebnf", f'start: "a" | <[{user}]> "b"'))
    assert matcher.mask(torch.zeros(TOKENIZER.vocab_size)).isfinite().nonzero().tolist() == [[a]]


def test_calls_of_tools() -> None:
    by_name = {(t := tool.get("function", tool))["name"]: t for tool in TOOLS}
    called = set()
    for seed in range(8):
        text = written(Grammar("tools", json.dumps(TOOLS)), seed, most=3000)
        assert text.startswith(CALL)
        content, calls = parse_calls(text, by_name)
        assert content == "" and 1 <= len(calls) <= 16
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), arguments_schema(by_name[call.name]))
            called.add(call.name)
    assert called == set(by_name)
    _, calls = parse_calls(written(Grammar("tools", json.dumps(TOOLS[:1]))), by_name)
    assert {call.name for call in calls} == {"get_weather"}


def test_max_calls_limits_the_calls_of_an_answer() -> None:
    call = '{"name": "now", "arguments": {}}'
    for max_calls in (1, 2, 16):
        grammar = Grammar("tools", json.dumps(TOOLS), max_calls=max_calls)
        for count in (1, max_calls, max_calls + 1):
            text = f"{CALL}[{', '.join([call] * count)}]{CALL_END}"
            assert follows(grammar, text) == (count <= max_calls)
        assert not follows(grammar, f"{CALL}[]{CALL_END}")


ALTERNATIVES = {
    "schema": (Grammar("json", json.dumps(SCHEMAS["flat"])), '{"name": "x", "age": 7}', '{"age": 7}'),
    "any JSON": (Grammar("json", "true"), "false", "fals"),
    "expression": (Grammar("regex", r"a\d*"), "a12", "a٣"),
    "mark as text": (Grammar("regex", "<.*>"), "<b>", "b>"),
}  # fmt: skip
"""A form of an answer without calls, an answer that has it, and one that doesn't."""


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_calls_or_an_answer_of_the_alternative(name: str) -> None:
    alternative, right, wrong = ALTERNATIVES[name]
    grammar = Grammar("tools", json.dumps(TOOLS), alternative=alternative)
    call = f'{CALL}[{{"name": "now", "arguments": {{}}}}]{CALL_END}'
    assert follows(grammar, right) and follows(grammar, call)
    for text in (wrong, call + right, right + call, call.replace("now", "then")):
        assert not follows(grammar, text)


def without_marks(tmp_path: Path) -> Tokenizer:
    """The tokenizer without the two control tokens of a tool call."""
    TOKENIZER.save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    marks = ("<|tool_call|>", "<|/tool_call|>")
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] not in marks]
    spec["model"]["vocab"] = {t: i for t, i in spec["model"]["vocab"].items() if t not in marks}
    return Tokenizer(spec)


def test_without_marks_calls_differ_from_the_alternative(tmp_path: Path) -> None:
    """An array of the schema may look like a list of calls."""
    alternative = Grammar("json", '{"type": "array"}')
    grammar = Grammar("tools", json.dumps(TOOLS[1:2]), alternative=alternative)
    tokenizer = without_marks(tmp_path)
    texts = [tokenizer.decode(drawn(grammar, seed, 40, tokenizer)) for seed in range(8)]
    assert {text[0] for text in texts} == {"f", "["}
    assert all(text.startswith("functools[") for text in texts if text[0] == "f")


def test_parameters_in_both_forms() -> None:
    own = {"a": {"type": "str"}, "b": {"type": "float", "default": 1.5}, "c": {"type": "List[int]"}}
    assert arguments_schema({"name": "f", "parameters": own}) == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "number"}, "c": {}},
        "required": ["a", "c"],
        "additionalProperties": False,
    }
    schema = {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]}
    for other in ({}, {"additionalProperties": True}, {"anyOf": [{}]}, {"patternProperties": {}}):
        whole = {**schema, **other}
        assert arguments_schema({"name": "f", "parameters": whole}) == whole
    empty = {"type": "object", "properties": {}}
    nothing = {**empty, "additionalProperties": False}
    for none in ({}, {"parameters": None}, {"parameters": {}}, {"parameters": {**empty}}):
        assert arguments_schema({"name": "f", **none}) == nothing


def test_the_marks_are_control_tokens_and_no_other_control_token_can_come() -> None:
    matcher = matcher_of(Grammar("tools", json.dumps(TOOLS)))
    allowed = matcher.mask(torch.zeros(TOKENIZER.vocab_size + 5)).isfinite().nonzero()[:, 0]
    assert allowed.tolist() == [TOKENIZER.control(CALL)]
    matcher = matcher_of(Grammar("json", '{"type": "string"}'))
    matcher.accept(*TOKENIZER.encode('"'))
    allowed = matcher.mask(torch.zeros(TOKENIZER.vocab_size + 5)).isfinite().nonzero()[:, 0]
    assert len(allowed) > 100
    assert not set(allowed.tolist()) & set(TOKENIZER.controls.values())
    assert max(allowed.tolist()) < TOKENIZER.vocab_size


def test_a_tokenizer_without_marks_writes_a_bare_list(tmp_path: Path) -> None:
    bare = without_marks(tmp_path)
    text = bare.decode(drawn(Grammar("tools", json.dumps(TOOLS[1:2])), tokenizer=bare))
    assert text.startswith("[")
    assert {c.name for c in parse_calls(text, ["now"])[1]} == {"now"}


BEFORE_CALLS = {"ChatML": "<tool_call>[", "Llama 3": "<tool_call>[", "Llama 3.2": "{"}


@pytest.mark.parametrize("form", BEFORE_CALLS)
@pytest.mark.parametrize("has_alternative", [False, True])
def test_calls_in_the_form_of_other_conversations(
    form: str, has_alternative: bool, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(write_tokenizer(TOKENIZER, form, tmp_path))
    alternative = Grammar("json", '{"type": "integer"}') if has_alternative else None
    grammar = Grammar("tools", json.dumps(TOOLS[1:2]), max_calls=2, alternative=alternative)
    texts = [tokenizer.decode(drawn(grammar, seed, 400, tokenizer)) for seed in range(24)]
    before = (
        "functools[" if tokenizer.marks.calls.single and has_alternative else BEFORE_CALLS[form]
    )
    called = [text for text in texts if "now" in text]
    assert called
    for text in called:
        assert text.startswith(before)
        parser = GrammarToolParser(alternative=has_alternative)
        calls = CallList()
        for delta in (*parser.add(text), *parser.finish()):
            assert isinstance(delta, CallDelta)
            calls.add(delta)
        assert {call.name for call in calls} == {"now"}
        assert parse_calls(text, ["now"]) == ("", calls)


def test_an_answer_that_is_cut_off_is_the_beginning_of_a_right_one() -> None:
    schema = {"enum": ["yes", "yesterday, no", "ja, größer", "日本"]}
    whole = [json.dumps(x, ensure_ascii=False) for x in schema["enum"]]
    for seed in range(20):
        text = TOKENIZER.decode(drawn(Grammar("json", json.dumps(schema)), seed, most=1 + seed % 5))
        assert any(w.startswith(text.rstrip("\ufffd")) for w in whole)
    # And it can be continued.
    grammar = Grammar("json", json.dumps(SCHEMAS["flat"]))
    for seed in range(8):
        tokens = drawn(grammar, seed, most=9)
        matcher = matcher_of(grammar)
        for token in tokens:
            matcher.accept(token)
        while not matcher.finished:
            tokens.append(int(matcher.mask(torch.randn(TOKENIZER.vocab_size)).argmax()))
            matcher.accept(tokens[-1])
        text = TOKENIZER.decode(tokens, skip_special=True)
        jsonschema.validate(json.loads(text), SCHEMAS["flat"])


def test_the_engine_under_a_grammar(engine: Engine) -> None:
    """Greedy and sampled, with draft tokens and without, in a batch; complete answers stop without an end token."""
    messages = [Message.user("the dog")]
    for name, heat in (("enum", 0.0), ("references", 1.5)):
        grammar = Grammar("json", json.dumps(SCHEMAS[name]))
        plain = SamplingParams(temperature=heat, grammar=grammar, max_tokens=300, logprobs=1)
        answer = engine.generate(messages, sampling=plain)
        jsonschema.validate(json.loads(answer.text), SCHEMAS[name])
        assert answer.finish_reason == "stop"
        assert [entry.token for entry in answer.logprobs] == list(answer.tokens)
        drafted = engine.generate(messages, sampling=replace(plain, draft=6))
        assert drafted.tokens == answer.tokens and len(drafted.logprobs) == len(answer.tokens)
        others = [SamplingParams(max_tokens=9), plain, SamplingParams(max_tokens=9, seed=4)]
        assert engine.generate_many([messages] * 3, sampling=others)[1].tokens == answer.tokens
        short = engine.generate(messages, sampling=replace(plain, max_tokens=2))
        assert short.finish_reason == "length" and answer.text.startswith(short.text)


def test_draft_tokens_are_accepted_where_a_text_repeats(engine: Engine) -> None:
    sampling = SamplingParams(grammar=Grammar("regex", "(abc def ){6}"), max_tokens=200)
    expected = engine.generate([Message.user("dog")], sampling=sampling)
    before = engine.counters().steps
    answer = engine.generate([Message.user("dog")], sampling=replace(sampling, draft=6))
    assert answer == expected and answer.text == "abc def " * 6
    assert engine.counters().steps - before < len(answer.tokens) / 2


def test_a_grammar_that_fails_ends_no_other_request(engine: Engine) -> None:
    good = SamplingParams(max_tokens=12)
    expected = engine.generate([Message.user("dog")], sampling=good)
    bad = replace(
        good, grammar=Grammar("regex", "(ab){200000}")
    )  # too complex from the second token on
    requests = [engine.submit([Message.user("dog")], sampling=s) for s in (good, bad, good)]
    while not all(request.finish_reason for request in requests):
        engine.step()
    assert [request.finish_reason for request in requests] == ["length", "error", "length"]
    assert "too complex" in str(requests[1].error)
    assert requests[2].completion().text == expected.text
    with pytest.raises(ValueError, match="too complex"):
        engine.generate([Message.user("dog")], sampling=bad)


DEEP = '{"properties": {"a": ' * 40 + "{}" + "}}" * 40
WRONG = [
    ("json", "{", "JSON"),
    ("json", "[1]", "an object, true or false, found list"),
    ("json", "false", "no answer fits"),
    ("json", '{"type": "strin"}', "Invalid type"),
    ("json", '{"properties": 3}', "properties"),
    ("json", '{"type": "string", "pattern": "("}', "unclosed"),
    ("json", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ("json", '{"$ref": "#/nowhere"}', "nowhere"),
    ("json", '{"$ref": "http://127.0.0.1:1/x"}', "not present"),
    ("json", '{"enum": []}', "Unsatisfiable"),
    ("json", '{"$ref": "#"}', "no answer fits"),
    ("json", DEEP, "at most 64 deep"),
    ("json", "[" * 100_000, "at most 64 deep"),
    ("json", '"' + "x" * 300_000, "256000"),
    ("json", {"type": "object"}, "text: expected a text"),
    ("regex", "(", "unclosed"),
    ("regex", "(?=a)b", "look-a"),
    ("regex", r"(a)\1", "backreferences"),
    ("regex", "[a&&b]", "no answer fits"),
    ("regex", "a{1000000}", "too complex"),
    ("regex", "a" * 10_001, "10000"),
    ("tools", "[]", "1 to 128 tools, found 0"),
    ("tools", json.dumps([{"name": f"t{i}"} for i in range(129)]), "found 129"),
    ("tools", '[{"description": "x"}]', "a name"),
    ("tools", '[{"name": "f", "parameters": []}]', "'f' must be an object"),
    (
        "tools",
        '[{"name": "f", "parameters": {"properties": {"x": {"type": "y"}}}}]',
        "parameters of 'f'",
    ),
    ("tools", '{"name": "f"}', "list of tools"),
    ("lark", "start: /x/", "json, regex, ebnf or tools"),
    ("ebnf", "", "Empty grammar"),
    ("ebnf", "start: other", "other"),
    ("ebnf", "start: " + "(" * 5000, "too deeply nested"),
    ("ebnf", 'start: "' + "x" * 10_000, "10000"),
    ("ebnf", 'root ::= "a" other', "'other' not found"),
    ("ebnf", 'other ::= "a"', "No 'root' rule"),
    ("ebnf", "root ::= " + "(" * 5000 + '"a"', "can't be read"),
    ("ebnf", r'root ::= "\u0041"', "the characters themselves"),
    ("ebnf", 'root ::= "a"\n' * 501, "at most 500 rules, found 501"),
]
ONE_TOOL, WORD = '[{"name": "now"}]', Grammar("regex", "[a-z]+")
WRONG_TOOLS: list[tuple[dict[str, Any], str]] = [
    ({"max_calls": 0}, "max_calls must be at least 1, found 0"),
    ({"max_calls": 17}, "max_calls must be at most 16, found 17"),
    ({"max_calls": 1.5}, "max_calls: expected a whole number"),
    ({"alternative": "[a-z]+"}, "alternative: expected a Grammar"),
    ({"alternative": Grammar("tools", ONE_TOOL)}, "'json' or 'regex', found 'tools'"),
    ({"alternative": Grammar("ebnf", 'start: "a"')}, "'json' or 'regex', found 'ebnf'"),
    ({"alternative": Grammar("regex", "(")}, "unclosed"),
    ({"alternative": Grammar("json", '{"enum": []}')}, "Unsatisfiable"),
    ({"alternative": Grammar("json", "[1]")}, "an object, true or false"),
    ({"format": "regex", "text": "a", "max_calls": 1}, "found 'regex'"),
    ({"format": "json", "text": "true", "alternative": WORD}, "found 'json'"),
    ({"alternative": Grammar("regex", "a", max_calls=1)}, "found 'regex'"),
]


@pytest.mark.parametrize("fields, message", WRONG_TOOLS, ids=[m for _, m in WRONG_TOOLS])
def test_invalid_limits_and_alternatives(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        drawn(Grammar(**{"format": "tools", "text": ONE_TOOL, **fields}), most=2)


@pytest.mark.parametrize(
    "kind, text, message", WRONG, ids=[f"{k} {str(t)[:40]}" for k, t, _ in WRONG]
)
def test_invalid_grammars(kind: Any, text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        drawn(Grammar(kind, text), most=2)
    assert len(str(error.value)) < 500


def test_bounds_hold_while_an_answer_is_written() -> None:
    """Grammars that grow: each ends in an answer, continues, or raises ValueError."""
    wide = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(500)}}
    heavy = [
        Grammar("regex", e)
        for e in ("(.*a){30}", ".*[ab].{18}c|.*b.{19}d", "((a{1,90}){1,90}){1,90}")
    ]
    for grammar in [*heavy, Grammar("json", json.dumps(wide))]:
        try:
            drawn(grammar, most=60)
        except ValueError as error:
            assert "too complex" in str(error)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.sampled_from(["json", "regex", "ebnf", "tools"]))
def test_any_text_as_a_grammar_compiles_or_raises_value_error(text: str, kind: Any) -> None:
    try:
        matcher_of(Grammar(kind, text))
    except ValueError as error:
        assert str(error)


def test_without_llguidance_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError, match=re.escape("[structured]")):
        compile_grammar(Grammar("regex", "a"), TOKENIZER)


def test_a_schema_that_makes_the_library_panic_raises_value_error() -> None:
    """llguidance truncates the value in its message within a character."""
    with pytest.raises(ValueError, match="followed"):
        compiled(Grammar("json", json.dumps({"type": "object", "required": "é" * 50})))
