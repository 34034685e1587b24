"""Tools: their schemas, from Python functions too, and their calls in the model's format.

>>> def weather(city: str, days: int = 1) -> str:
...     \"\"\"The weather of a city.
...
...     Args:
...         city: its name in English
...     \"\"\"
>>> function_schema(weather)["parameters"]["properties"]["city"]
{'type': 'string', 'description': 'its name in English'}
"""

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from polyphi.runtime.arguments import describe

CALL, CALL_END = "<|tool_call|>", "<|/tool_call|>"
"""The marks around the JSON of tool calls in an assistant's text (processing/template.py)."""


@dataclass(frozen=True)
class CallForm:
    """How a model writes calls: a JSON list of objects with "name" and "arguments" between two marks; `single`: one
    object with "name" and "parameters", and several as a list."""

    before: str = ""
    after: str = ""
    single: bool = False

    def write(self, text: str) -> str:
        """Calls between Phi-4's two marks (`call_text`), in this form. Raises ValueError for other JSON."""
        inner = text.removeprefix(CALL).removesuffix(CALL_END)
        if not self.single:
            return f"{self.before}{inner}{self.after}"
        calls = [tool_call(value) for value in json.loads(inner)]
        objects = [{"name": call["name"], "parameters": call["arguments"]} for call in calls]
        return json.dumps(objects[0] if len(objects) == 1 else objects, ensure_ascii=False)


PHI_CALLS = CallForm(CALL, CALL_END)
TAGGED_CALLS = CallForm("<tool_call>", "</tool_call>")
"""SmolLM2's, and many others'."""
SINGLE_CALL = CallForm(single=True)
"""Llama 3.1's and 3.2's."""

JSON_TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    list: "array",
    tuple: "array",
    dict: "object",
}
_SECTION = re.compile(r"(?:Args|Arguments|Parameters):\s*")
_ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")


def functions(tools: Any) -> list[dict[str, Any]] | None:
    """The schemas in OpenAI's list of tools (or its JSON), a list of schemas or of Python functions; None for an empty
    one. Raises ValueError for anything else."""
    if isinstance(tools, str):
        tools = _parsed_tools(tools) if tools.strip() else None
    if tools is None or tools in ([], ()):
        return None
    if not isinstance(tools, list | tuple):
        alone = callable(tools) or isinstance(tools, Mapping)
        raise ValueError(
            f"expected a list of tools, found {describe(tools)}{'; write [...] around it' if alone else ''}"
        )
    result = []
    for tool in tools:
        schema = tool.get("function", tool) if isinstance(tool, Mapping) else tool
        if callable(schema) and not isinstance(schema, type):
            schema = function_schema(schema)
        if not isinstance(schema, Mapping) or not isinstance(schema.get("name"), str):
            raise ValueError(
                f"a tool is an object with a name, or a Python function, found {schema!r:.80}"
            )
        result.append(dict(schema))
    return result


def _parsed_tools(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(
            f"tools: expected a list, or its JSON, found the text {text!r:.60}"
        ) from None


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The name, description and parameters (a JSON schema) of a function as a tool, in OpenAI's format without its
    wrapper. Descriptions of arguments come from the docstring's section "Args:". Raises ValueError for a parameter
    without an annotation, with one that JSON has no type for, and for * and **."""
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise ValueError(f"tools: expected a function with a name, found {name or function!r:.80}")
    hints = typing.get_type_hints(function, include_extras=True)
    description, arguments = _docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"tools: {name} takes {parameter}; a tool has arguments with names")
        if parameter.name not in hints:
            raise ValueError(
                f"tools: the argument {parameter.name} of {name} has no type; write one, such as {parameter.name}: str"
            )
        try:
            schema = type_schema(hints[parameter.name])
        except ValueError as error:
            raise ValueError(f"tools: the argument {parameter.name} of {name}: {error}") from None
        if parameter.name in arguments:
            schema["description"] = arguments[parameter.name]
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": description, "parameters": parameters}


def type_schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of an annotation: plain types, lists, dicts, `Literal`, enums, unions, pydantic's models. Raises
    ValueError for others."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if origin is typing.Annotated:
        texts = [one for one in inner[1:] if isinstance(one, str)]
        return type_schema(inner[0]) | ({"description": texts[0]} if texts else {})
    if origin is Literal:
        return _choices(inner)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [type_schema(one) for one in inner]}
    if origin in (list, tuple, Sequence):
        items = [one for one in inner if one is not ...]
        return {"type": "array"} | ({"items": type_schema(items[0])} if len(items) == 1 else {})
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": type_schema(inner[1])}
    if hint in JSON_TYPES:
        return {"type": JSON_TYPES[hint]}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choices([member.value for member in hint])
    if (schema := model_schema(hint)) is not None:
        return schema
    raise ValueError(
        f"expected str, int, float, bool, list, dict, Literal, an enum or a pydantic model, found {hint!r:.80}"
    )


def model_schema(model: Any) -> dict[str, Any] | None:
    """The JSON schema of a pydantic model's class; None for anything else."""
    if isinstance(model, type) and hasattr(model, "model_json_schema"):
        return dict(model.model_json_schema())
    return None


def _choices(values: Sequence[Any]) -> dict[str, Any]:
    json_types = {JSON_TYPES.get(type(value)) for value in values}
    named = {"type": json_types.pop()} if len(json_types) == 1 and None not in json_types else {}
    return {**named, "enum": list(values)}


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """(the description, the descriptions of arguments) of a docstring in Google's style."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if _SECTION.fullmatch(line)), len(lines))
    ends = (i for i, line in enumerate(lines[start + 1 :], start + 1) if line and line[0] != " ")
    arguments: dict[str, str] = {}
    last = ""
    for line in lines[start + 1 : next(ends, len(lines))]:
        if match := _ARGUMENT.fullmatch(line.strip()):
            last = match[1]
            arguments[last] = match[2]
        elif last and line.strip():
            arguments[last] += f" {line.strip()}"
    head = lines[:start]
    others = (
        i for i, line in enumerate(head) if re.fullmatch(r"(Returns|Raises|Yields):\s*", line)
    )
    return " ".join("\n".join(head[: next(others, start)]).split()), arguments


@dataclass(frozen=True)
class FunctionCall:
    """A call of a tool in an answer, with its arguments by name."""

    name: str
    arguments: Mapping[str, Any] = field(hash=False)


def tool_call(value: Any) -> dict[str, Any]:
    """A tool call as {"name", "arguments"}, from OpenAI's format or a plain one; raises ValueError for other values."""
    if isinstance(value, FunctionCall):
        return {"name": value.name, "arguments": dict(value.arguments)}
    call = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise ValueError(f"expected a tool call with a name and arguments, found {value!r:.80}")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise ValueError(
                f"the arguments of a call of {call['name']} are no JSON: {arguments!r:.80}"
            ) from None
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"the arguments of a call of {call['name']} are no object: {arguments!r:.80}"
        )
    return {"name": call["name"], "arguments": dict(arguments)}


def call_text(calls: Iterable[Any]) -> str:
    """Tool calls in the model's format: JSON between the two marks."""
    text = json.dumps([tool_call(call) for call in calls], ensure_ascii=False)
    # Marks inside an argument would be encoded as control tokens; JSON strings may escape "<":
    text = text.replace(CALL, "\\u003c" + CALL[1:]).replace(CALL_END, "\\u003c" + CALL_END[1:])
    return f"{CALL}{text}{CALL_END}"
