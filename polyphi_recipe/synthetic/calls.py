"""Function calling by template: tools in the system message, a request, and the call in the model's syntax.

>>> call(Random(0), "train").answer
'<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Rome", "day": "Monday"}}]<|/tool_call|>'

Each conversation offers two tools; one in ten requests fits neither and is answered `NO_TOOL`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from polyphi.types.tools import call_text
from polyphi_recipe.raw.real_text import in_split
from polyphi_recipe.text.lexicon import COLOURS, LANGUAGES, NOUNS

NO_TOOL = "None of the tools can do that."
_CITIES, _PEOPLE, _ROOMS, _DAYS = (
    tuple(names.split())
    for names in (
        "Paris Rome Berlin Tokyo Madrid London Lisbon Milan Lyon Munich Osaka Porto Boston Beijing Seville Vienna",
        "Anna Paul Maria Ken Lucia Tom Mei Jan Rosa Leo",
        "kitchen bedroom bathroom garden office hall",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    )
)


@dataclass(frozen=True)
class Tool:
    """A function: its description, the types of its parameters, a function that draws arguments, and templates of
    requests for it."""

    description: str
    parameters: Mapping[str, str]
    draw: Callable[[Random], dict[str, object]]
    requests: tuple[str, ...]


TOOLS: dict[str, Tool] = {
    "get_weather": Tool(
        "Weather in a city",
        {"city": "str", "day": "str"},
        lambda rng: {"city": rng.choice(_CITIES), "day": rng.choice(_DAYS)},
        ("What is the weather in {city} on {day}?", "Will it rain in {city} on {day}?"),
    ),
    "find_train": Tool(
        "Find a train",
        {"start": "str", "end": "str"},
        lambda rng: dict(zip(("start", "end"), rng.sample(_CITIES, 2), strict=True)),
        ("Find a train from {start} to {end}.", "I want to go from {start} to {end} by train."),
    ),
    "add": Tool(
        "Add two numbers",
        {"a": "int", "b": "int"},
        lambda rng: {"a": rng.randrange(10, 1000), "b": rng.randrange(10, 1000)},
        ("Add {a} and {b}.", "What is {a} plus {b}?"),
    ),
    "set_timer": Tool(
        "Start a timer",
        {"minutes": "int"},
        lambda rng: {"minutes": rng.randrange(1, 100)},
        ("Set a timer for {minutes} minutes.", "Wake me in {minutes} minutes."),
    ),
    "translate": Tool(
        "Translate a text",
        {"text": "str", "language": "str"},
        lambda rng: {
            "text": rng.choice(sorted(NOUNS)),
            "language": rng.choice(sorted(LANGUAGES.values())),
        },
        ("Translate {text} to {language}.", "How do you say {text} in {language}?"),
    ),
    "send_message": Tool(
        "Send a message",
        {"to": "str", "text": "str"},
        lambda rng: {
            "to": rng.choice(_PEOPLE),
            "text": rng.choice(("yes", "no", "hello", "thank you", "see you")),
        },
        ("Send {text} to {to}.", "Write {to}: {text}"),
    ),
    "set_light": Tool(
        "Colour the light of a room",
        {"room": "str", "colour": "str"},
        lambda rng: {"room": rng.choice(_ROOMS), "colour": rng.choice(sorted(COLOURS))},
        ("Make the {room} light {colour}.", "Set the light in the {room} to {colour}."),
    ),
    "buy": Tool(
        "Buy things",
        {"item": "str", "count": "int"},
        lambda rng: {"item": rng.choice(sorted(NOUNS)), "count": rng.randrange(1, 10)},
        ("Buy {count} of these: {item}", "Order {count} times {item}."),
    ),
}


@dataclass(frozen=True)
class Call:
    """A request with the available tools (JSON) and the answer; `tool` is the name of the fitting one, or ""."""

    tools: str
    question: str
    answer: str
    tool: str


def specification(names: list[str]) -> str:
    """Return the JSON list of tools for a system message, in the form of the published chat template."""
    specifications = [
        {
            "name": n,
            "description": TOOLS[n].description,
            "parameters": {p: {"type": t} for p, t in TOOLS[n].parameters.items()},
        }
        for n in names
    ]
    return json.dumps(specifications)


def call(rng: Random, split: str, tool: str | None = None) -> Call:
    """Return a random conversation that needs `tool` ("": none of the available ones fits; None: a random choice), with
    arguments of this split."""
    if tool is None:
        tool = rng.choice(sorted(TOOLS)) if rng.random() < 0.9 else ""
    requested = tool or rng.choice(sorted(TOOLS))
    while True:
        arguments = TOOLS[requested].draw(rng)
        if in_split(split, "call", requested, *arguments.values(), percent=15):
            break
    others = [n for n in sorted(TOOLS) if n != requested]
    tools = rng.sample(others, 2) if not tool else [tool, rng.choice(others)]
    rng.shuffle(tools)
    answer = call_text([{"name": tool, "arguments": arguments}]) if tool else NO_TOOL
    return Call(
        specification(tools),
        rng.choice(TOOLS[requested].requests).format(**arguments),
        answer,
        tool,
    )
