"""The form of an answer -> the grammar of its sampling: a JSON schema, tool calls, or one of both.

>>> with_rules(SamplingParams(), tools, response_grammar({"type": "object"}), CallRules())

The server reads more spellings of forms (serve/openai/formats.py); both make the same grammars.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from polyphi.runtime.arguments import describe
from polyphi.types.sampling import Grammar, SamplingParams
from polyphi.types.tools import model_schema

JSON_OBJECT = Grammar("json", '{"type": "object"}')


def json_grammar(schema: Mapping[str, Any] | bool | str) -> Grammar:
    """The grammar of a JSON schema, or of its JSON."""
    return Grammar("json", schema if isinstance(schema, str) else json.dumps(schema))


def response_grammar(response_format: Any) -> Grammar | None:
    """The grammar of a JSON schema, a class of pydantic's models, or OpenAI's `response_format`, of which "text" is
    None. Raises ValueError for anything else."""
    if response_format is None:
        return None
    if (schema := model_schema(response_format)) is not None:
        return json_grammar(schema)
    if not isinstance(response_format, Mapping):
        raise ValueError(
            "response_format: expected a JSON schema as a dict, a pydantic model's class, or OpenAI's "
            f"{{'type': 'json_schema', ...}}, found {describe(response_format)}"
        )
    form = response_format.get("type")
    if form == "text":
        return None
    if form == "json_object":
        return JSON_OBJECT
    if form != "json_schema":
        return json_grammar(response_format)
    inner = response_format.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping | bool):
        raise ValueError(
            "response_format: expected {'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}, found "
            f"{describe(inner)} as json_schema"
        )
    return json_grammar(schema)


@dataclass(frozen=True)
class CallRules:
    """The tool calls that an answer may have: at least one if `required`, at most one if `single`."""

    required: bool = False
    single: bool = False


def with_rules(
    sampling: SamplingParams,
    tools: Sequence[dict[str, Any]],
    response: Grammar | None,
    rules: CallRules,
) -> SamplingParams:
    """Sampling with the grammar of the answer: tool calls where they are required; otherwise the form `response`, with
    tool calls as an alternative where tools are offered. No grammar for free text, which may also contain calls."""
    if not tools or (response is None and not rules.required):
        single = response is None and rules.single
        names = tuple(tool["name"] for tool in tools) if single else ()
        return replace(sampling, grammar=response, stop_at_calls=names)
    grammar = Grammar(
        "tools",
        json.dumps(tools),
        max_calls=1 if rules.single else None,
        alternative=None if rules.required else response,
    )
    return replace(sampling, grammar=grammar)
