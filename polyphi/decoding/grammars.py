r"""JSON schemas, regular expressions, context-free grammars and lists of tools -> grammars of llguidance.

>>> text = compiled(Grammar("json", '{"enum": ["yes", "no"]}'))

Compiling can take any time and memory, so it only happens in processes with limits (matcher_process.py).

Tokens are matched by their bytes, so an answer may use any tokenization, and a token may end within a character.
Control tokens never count as text: only the two marks of a tool call, at their positions, and the end token are
allowed.

**Expressions** have the syntax of Rust's regex crate and match the whole answer: no look-around, no back-references;
`\d` is 0 to 9.

**Context-free grammars** are in llguidance's form of Lark, with the rule `start`, or in GBNF, the EBNF of llama.cpp,
with the rule `root`; the latter have `::=`, and are converted. Rules of characters only become terminals, which match
as much as they can.

**Whitespace.** Between two JSON tokens the grammar allows nothing, one space, or one newline with indentation, so that
a model can write compact or pretty-printed JSON, but spends few tokens on whitespace. Indentation is up to 4 spaces in
steps of 2, or one tab, for each level that the schema describes. No whitespace is allowed before or after the answer.

**Limits.** A grammar's text, its depth and the size of its parser's state are limited; beyond, ValueError.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from polyphi.decoding.json_schemas import depth, for_grammar, refuse_explosive
from polyphi.decoding.tool_calls import FUNCTOOLS
from polyphi.runtime.installation import from_checkout
from polyphi.runtime.rust import panics_are_errors
from polyphi.types.sampling import Grammar
from polyphi.types.tools import PHI_CALLS, CallForm, functions

MAX_CHARACTERS, MAX_DEPTH, MAX_REGEX, MAX_TOOLS, MAX_CALLS = 256_000, 64, 10_000, 128, 16
"""Maximum sizes: characters and nested brackets of a schema or a list of tools; characters of a regular expression or a
context-free grammar; tools; calls in one answer."""
MAX_RULES = 500
"""Maximum rules of a grammar in GBNF; the time of its conversion is quadratic in their number."""
MAX_LEVELS = 8
"""Levels of indentation where a schema doesn't limit the depth of an answer."""
CALL_LEVELS = 2
"""Levels of JSON around the arguments of a call in a list."""
ROW_ITEMS, LEXER_STATES, LEXER_FUEL = 20_000, 50_000, 200_000
"""Limits of an answer's parser: alternatives at one position, states of its lexer (1 to 2 kB each), and work on
expressions before the first token (about 0.1 s)."""
COMPILE_SECONDS, MASK_SECONDS = 1.0, 1.0
"""CPU time to compile a grammar and compute its first mask, and of each further mask; a usual one takes 0.1 ms."""
ANSWER_SECONDS, TOKEN_SECONDS = 5.0, 0.01
"""CPU time of all masks of a grammar, and more for each token."""
PROCESS_MEMORY = 128 << 20
"""Bytes of a grammar's process beyond the tokenizer's."""
PANIC = "this grammar can't be followed"

# Type names in the models' own form of tools, {"city": {"type": "str", ...}}; other names allow any value.
TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "array": "array",
    "dict": "object",
    "object": "object",
}


@panics_are_errors(PANIC)
def compiled(grammar: Grammar, calls: CallForm = PHI_CALLS) -> str:
    """A grammar in llguidance's format. `calls`: how the model writes tool calls.

    Raises ValueError for an invalid schema, expression or list of tools, one that exceeds the limits or uses
    unsupported features (such as `uniqueItems`, or look-ahead), and if llguidance isn't installed.
    """
    matcher = llguidance().LLMatcher
    if grammar.format == "tools":
        result = str(matcher.grammar_from_lark(_tools(grammar, calls)))
        _check(result, "this list of tools")
        return result
    if grammar.max_calls is not None or grammar.alternative is not None:
        raise ValueError(
            f"max_calls and alternative belong to a grammar of the format 'tools', found {grammar.format!r:.80}; leave "
            "them out"
        )
    if grammar.format == "json":
        return _compile_schema(_schema(grammar.text), "this JSON schema")
    if grammar.format == "regex":
        if len(grammar.text) > MAX_REGEX:
            raise ValueError(
                f"a regular expression has at most {MAX_REGEX} characters, found {len(grammar.text)}"
            )
        what = f"the regular expression {grammar.text!r:.80}"
        _check(matcher.grammar_from_regex(grammar.text), what)
        result = str(matcher.grammar_from_lark(f"start: {_expression(grammar.text)}"))
        _check(result, what)
        return result
    if grammar.format == "ebnf":
        result = str(matcher.grammar_from_lark(_lark(grammar.text)))
        _check(result, "this grammar")
        return result
    raise ValueError(
        f"the format of a grammar must be 'json', 'regex', 'ebnf' or 'tools', found {grammar.format!r:.80}"
    )


def _lark(text: str) -> str:
    """A context-free grammar in Lark."""
    if len(text) > MAX_REGEX:
        raise ValueError(f"a grammar has at most {MAX_REGEX} characters, found {len(text)}")
    if (rules := text.count("::=")) == 0:
        return text
    if rules > MAX_RULES:
        raise ValueError(f"a grammar in GBNF has at most {MAX_RULES} rules, found {rules}")
    if re.search(r"\\[uU]", text):  # the conversion drops zeros of their codes
        raise ValueError(
            "a grammar in GBNF can't have the escapes \\u and \\U here; write the characters themselves"
        )
    llguidance()
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except Exception as error:  # `Exception` itself, and RecursionError, among others
        raise ValueError(f"this grammar in GBNF can't be read: {one_line(str(error))}") from None


def _schema(text: str) -> Any:
    schema = _parsed(text, "JSON schema")
    if not isinstance(schema, dict | bool):
        raise ValueError(
            f"a JSON schema is an object, true or false, found {type(schema).__name__}"
        )
    return schema


def _expression(text: str) -> str:
    """A regular expression in Lark, with \\d as the ASCII digits 0 to 9."""
    return f"/{llguidance().regex_to_lark(text, 'd')}/"


def _parsed(text: str, what: str) -> Any:
    """Parse JSON within the limits of length and depth."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"a {what} has at most {MAX_CHARACTERS} characters, found {len(text)}")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"a {what} is nested at most {MAX_DEPTH} deep, found more") from None
    except ValueError as error:
        raise ValueError(f"expected a {what}, found invalid JSON: {error}") from None
    if (levels := depth(value)) > MAX_DEPTH:
        raise ValueError(f"a {what} is nested at most {MAX_DEPTH} deep, found {levels}")
    return value


def _members(value: Any) -> list[Any]:
    """The values in a JSON object or array; none in any other value."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _tools(grammar: Grammar, form: CallForm) -> str:
    """Calls of tools in llguidance's form of Lark: one rule for each tool, its arguments by its own schema."""
    tools = functions(_parsed(grammar.text, "list of tools")) or []
    if not 1 <= len(tools) <= MAX_TOOLS:
        raise ValueError(f"expected 1 to {MAX_TOOLS} tools, found {len(tools)}")
    max_calls = grammar.max_calls or MAX_CALLS
    start = "calls"
    if grammar.alternative is not None:
        start = f"calls | {_alternative(grammar.alternative)}"
        if not form.before:  # calls could also be an answer of the alternative
            form = CallForm(FUNCTOOLS.removesuffix("["))
    more = f'(ws "," ws call){{0,{max_calls - 1}}}' if max_calls > 1 else ""
    # In Lark the name of a control token stands for itself.
    prefix, suffix = (
        mark if mark.startswith("<|") or not mark else json.dumps(mark)
        for mark in (form.before, form.after)
    )
    rules = [
        f"start: {start}",
        "calls: call" if form.single else f"calls: {prefix} list {suffix}",
        f'list: "[" ws call {more} ws "]"',
        "call: " + " | ".join(f"call_{i}" for i in range(len(tools))),
        f"ws: SPACE?\nSPACE: /{whitespace(CALL_LEVELS)}/",
    ]
    for i, tool in enumerate(tools):
        schema = arguments_schema(tool)
        _compile_schema(schema, f"in tools the parameters of {tool['name']!r:.80}")
        rules += [
            f'call_{i}: "{{" ws "\\"name\\"" ws ":" ws name_{i} ws "," ws arguments_{i} ws "}}"',
            f"name_{i}: %json {json.dumps({'const': tool['name']})}",
            f'arguments_{i}: "\\"{"parameters" if form.single else "arguments"}\\"" ws ":" ws object_{i}',
            f"object_{i}: %json {json.dumps(_spaced(schema, CALL_LEVELS))}",
        ]
    return "\n".join(rules)


def _alternative(grammar: Grammar) -> str:
    """The alternative to calls, as a part of a Lark rule."""
    if grammar.format not in ("json", "regex"):
        raise ValueError(
            f"the alternative to calls must have the format 'json' or 'regex', found {grammar.format!r:.80}"
        )
    compiled(grammar)  # raises for an invalid one
    if grammar.format == "regex":
        return _expression(grammar.text)
    return f"%json {json.dumps(_spaced(_schema(grammar.text)))}"


def arguments_schema(tool: Mapping[str, Any]) -> Any:
    """The JSON schema of a tool's arguments, an object. `parameters` is a schema, or in the models' own form a mapping
    of names to {"type": "str", ...}, where those without a default are required."""
    parameters = tool.get("parameters")
    none: dict[str, Any] = {"type": "object", "properties": {}}
    if parameters in (None, {}, none, {**none, "required": []}):
        return {**none, "additionalProperties": False}
    if not isinstance(parameters, Mapping):
        raise ValueError(
            f"in tools the parameters of {tool['name']!r:.80} must be an object, found {type(parameters).__name__}"
        )
    if parameters.get("type") != "object" and all(
        isinstance(p, Mapping) and isinstance(p.get("type"), str) for p in parameters.values()
    ):
        named = {
            name: {"type": TYPES[p["type"]]} if p["type"] in TYPES else {}
            for name, p in parameters.items()
        }
        return {
            "type": "object",
            "properties": named,
            "required": [name for name, p in parameters.items() if "default" not in p],
            "additionalProperties": False,
        }
    return {"type": "object", **parameters}


def _spaced(schema: Any, outer_levels: int = 0) -> dict[str, Any]:
    """The schema without annotations that llguidance refuses, and with our whitespace pattern, for a value nested
    `outer_levels` deep in other JSON."""
    schema = for_grammar(schema)
    pattern = whitespace(outer_levels + _levels(schema))
    return {**({} if schema is True else schema), "x-guidance": {"whitespace_pattern": pattern}}


def whitespace(levels: int) -> str:
    """A regular expression for the whitespace between two JSON tokens, indented by at most `levels` levels."""
    return rf" |\n((  ){{0,{2 * levels}}}|\t{{0,{levels}}})"


def _levels(schema: Any) -> int:
    """Levels of objects and arrays that a schema describes, MAX_LEVELS where it doesn't limit them. Undescribed
    members of an object count only if `additionalProperties` allows them explicitly."""
    if not isinstance(schema, dict) or "$ref" in schema:
        return MAX_LEVELS
    if "const" in schema or "enum" in schema:
        return min(MAX_LEVELS, max(depth(schema.get("const")), depth(schema.get("enum")) - 1))
    types = str(schema.get("type", "object"))
    if "object" not in types and "array" not in types:
        return 0
    members = [
        *(schema.get(key, False) for key in ("items", "additionalProperties")),
        *_members(schema.get("properties")),
        *_members(schema.get("patternProperties")),
        *_members(schema.get("prefixItems")),
    ]
    alternatives = [a for key in ("anyOf", "oneOf", "allOf") for a in _members(schema.get(key))]
    levels = [1 + _levels(member) for member in members if member is not False]
    levels += map(_levels, alternatives)
    closed = schema.get("additionalProperties") is False
    return min(MAX_LEVELS, max(levels, default=1 if closed else MAX_LEVELS))


def _compile_schema(schema: Any, what: str) -> str:
    if schema is False:
        raise ValueError(f"no answer fits {what}: it is false")
    try:
        refuse_explosive(schema)
    except ValueError as error:
        raise ValueError(f"{what} can't be followed: {error}") from None
    result = str(llguidance().LLMatcher.grammar_from_json_schema(json.dumps(_spaced(schema))))
    _check(result, what)
    return result


def _check(grammar: str, what: str) -> None:
    is_invalid, messages = llguidance().LLMatcher.validate_grammar_with_warnings(
        grammar, limits=parser_limits()
    )
    if is_invalid:
        raise ValueError(f"{what} can't be followed: {one_line(messages[0])}")


def one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def parser_limits() -> Any:
    return llguidance().LLParserLimits(
        max_items_in_row=ROW_ITEMS,
        max_lexer_states=LEXER_STATES,
        initial_lexer_fuel=LEXER_FUEL,
        verbose_errors=False,
    )


def llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ValueError(
            "answers by a schema, an expression or tools need llguidance, which is not installed; "
            + from_checkout("structured")
        ) from None
    return llguidance
