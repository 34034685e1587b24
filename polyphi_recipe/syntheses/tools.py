"""Function calling: conversations with several tools, several turns, calls and their results (report 3.1.2).

    TOOL_CONVERSATION    any sample -> tools, and a conversation in which they are called

The rules: the tools' parameters are JSON schemas, every call names a tool and its arguments fit that schema, every call
has a result, and the answer after results says something that stands in them. Then a judge reads the conversation.
"""

import json
from dataclasses import replace
from typing import Any

from polyphi.data.shards import Sample
from polyphi.types.messages import Message, with_calls, with_tools
from polyphi.types.parts import Text
from polyphi.types.sampling import SamplingParams
from polyphi_recipe.syntheses.prompts import PROMPTS
from polyphi_recipe.syntheses.syntheses import (
    JSON_TEXT,
    json_list,
    json_object,
    judged,
    pick,
    words,
)
from polyphi_recipe.syntheses.synthesize import Json, Synthesis

FIELDS = (
    *("travel and trains", "the weather", "a calendar", "a shop and its orders", "a bank account", "a smart home"),
    *("a library", "a hospital's appointments", "a company's staff", "parcels", "sports results", "a restaurant"),
    *("files and folders", "e-mail", "a database of films", "maps and distances", "currencies", "a repository of code"),
)  # fmt: skip
PLANS = (
    "one question that needs two tools, one after the other: the second call uses the result of the first",
    "one question that needs two calls at once",
    "two questions of the user, one after the other, each with a call",
    "a question with a call, whose result shows that a second call is needed",
    "a question that needs a call, and a second one that none of the tools can answer, which the assistant says",
)
"""[ours] What happens in a conversation."""
LEAST_TOOLS = 2
ROLES = ("user", "calls", "results", "assistant")
_FOLLOWS = {"": ("user",), "user": ("calls", "assistant"), "calls": ("results",)}
_FOLLOWS |= {"results": ("calls", "assistant"), "assistant": ("user",)}
"""Role -> the roles that may follow it."""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _tool_mistake(tools: Json) -> str:
    import jsonschema

    names = [tool["name"] for tool in tools]
    if len(names) < LEAST_TOOLS or len(set(names)) < len(names):
        return f"{len(set(names))} different tools, expected at least {LEAST_TOOLS}"
    for tool in tools:
        parameters = _parsed(tool["parameters"])
        if not isinstance(parameters, dict) or parameters.get("type") != "object":
            return "parameters that are no JSON schema of an object"
        try:
            jsonschema.validators.validator_for(parameters).check_schema(parameters)
        except jsonschema.SchemaError as error:
            return f"parameters that are no JSON schema: {error.message:.80}"
    return ""


def _call_mistake(call: Json, tools: Json) -> str:
    import jsonschema

    tool = next((tool for tool in tools if tool["name"] == call["name"]), None)
    if tool is None:
        return f"a call of a tool that isn't there: {call['name']:.40}"
    arguments = _parsed(call["arguments"])
    if not isinstance(arguments, dict):
        return "arguments that are no JSON object"
    try:
        jsonschema.validate(arguments, json.loads(tool["parameters"]))
    except jsonschema.ValidationError as error:
        return f"arguments that don't fit the parameters: {error.message:.80}"
    except Exception as error:  # a schema may refer to what isn't there
        return f"parameters that can't be checked: {error!r:.80}"
    return ""


def values(result: Json) -> set[str]:
    """Return the words and numbers in a result, without the names of its fields."""
    if isinstance(result, dict):
        return set().union(*map(values, result.values()))
    if isinstance(result, list):
        return set().union(*map(values, result))
    return set(words(str(result)))


def _turn_mistake(turns: Json, tools: Json) -> str:
    before, number, results = "", 0, set[str]()
    for turn in turns:
        role, text = turn["role"], turn["text"].strip()
        if role not in _FOLLOWS[before]:
            return f"{role} after {before or 'nothing'}"
        if role in ("user", "assistant") and not text:
            return f"an empty turn of the {role}"
        if role == "calls":
            number = len(turn["calls"])
            if mistake := next(filter(None, (_call_mistake(c, tools) for c in turn["calls"])), ""):
                return mistake
        if role == "results":
            parsed = [_parsed(result) for result in turn["results"]]
            if len(parsed) != number or not number:
                return f"{len(parsed)} results of {number} calls"
            if any(result is None for result in parsed):
                return "a result that is no JSON"
            results = set().union(*map(values, parsed))
        if role == "assistant" and before == "results" and not results & set(words(text)):
            return "the answer uses nothing of the results"
        before = role
    if before != "assistant":
        return "the conversation doesn't end with an answer"
    return ""


def _verify(sample: Sample, item: Json) -> str:
    calls = sum(turn["role"] == "calls" for turn in item["turns"])
    if mistake := _tool_mistake(item["tools"]):
        return mistake
    if not calls:
        return "no tool is called"
    return _turn_mistake(item["turns"], item["tools"])


def _make(sample: Sample, item: Json) -> Sample:
    tools = [{**tool, "parameters": json.loads(tool["parameters"])} for tool in item["tools"]]
    messages = list[Message]()
    for turn in item["turns"]:
        if turn["role"] == "calls":
            parts = with_calls([Text(turn["text"].strip())], turn["calls"])
            messages.append(Message("assistant", parts))
        elif turn["role"] == "results":
            text = json.dumps([json.loads(r) for r in turn["results"]], ensure_ascii=False)
            messages.append(Message("tool_response", (Text(text),)))
        else:
            messages.append(Message(turn["role"], (Text(turn["text"].strip()),)))
    names = sorted({call["name"] for turn in item["turns"] for call in turn["calls"]})
    meta = {"task": "tool_conversation", "language": "en", "tool": ", ".join(names)}
    system = Message.system("You may call tools.")
    return replace(sample, messages=with_tools([system, *messages], tools), meta=meta)


_CALL = json_object(name=JSON_TEXT, arguments=JSON_TEXT)
TOOL_CONVERSATION = Synthesis(
    "tool_conversation",
    PROMPTS["tool_conversation"],
    read=lambda sample: {
        "field": pick(sample, "field", FIELDS),
        "plan": pick(sample, "plan", PLANS),
    },
    schema=json_object(
        tools=json_list(json_object(name=JSON_TEXT, description=JSON_TEXT, parameters=JSON_TEXT)),
        turns=json_list(
            json_object(
                role={"enum": list(ROLES)},
                text=JSON_TEXT,
                calls=json_list(_CALL),
                results=json_list(JSON_TEXT),
            )
        ),
    ),
    verify=_verify,
    make=_make,
    checks=(judged(PROMPTS["tool_conversation_check"]),),
    sampling=SamplingParams(max_tokens=4096, temperature=0.8, top_p=0.95),
    tries=2,
    varied=True,
)
