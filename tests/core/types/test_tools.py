"""Python functions as tools: their schemas equal transformers', and their calls are parsed."""

import enum
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel
from transformers.utils import get_json_schema

from polyphi import Message
from polyphi.types.messages import with_calls, with_tools
from polyphi.types.tools import FunctionCall, call_text, function_schema, functions


def weather(city: str, days: int = 1, detailed: bool = False, limits: list[float] = []) -> str:  # noqa: B006
    """The weather of a city.

    Args:
        city: its name in English,
            without the country
        days: from today on
        detailed: hour by hour
        limits: of the temperature

    Returns:
        a sentence
    """
    return ""


def convert(unit: Literal["C", "F"], table: dict[str, float]) -> float:
    """Convert a temperature.

    Args:
        unit: of the result
        table: by place
    """
    return 0.0


@pytest.mark.parametrize("function", [weather, convert])
def test_schemas_equal_those_of_transformers(function: Any) -> None:
    expected = get_json_schema(function)["function"]
    expected.pop("return", None)
    ours = function_schema(function)
    assert ours.pop("description") == expected.pop("description")
    theirs = expected["parameters"]["properties"]
    for name, schema in ours["parameters"]["properties"].items():
        assert schema == {k: v for k, v in theirs[name].items()}, name
    assert ours["parameters"]["required"] == expected["parameters"]["required"]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    x: int


def test_further_annotations() -> None:
    def draw(
        colour: Colour,
        at: Point,
        size: int | None,
        names: Sequence[str],
        label: Annotated[str, "on it"],
        rest: Any = None,
    ) -> None:
        pass

    properties = function_schema(draw)["parameters"]["properties"]
    assert properties["colour"] == {"type": "string", "enum": ["red", "blue"]}
    assert properties["at"]["properties"]["x"]["type"] == "integer"
    assert properties["size"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert properties["names"] == {"type": "array", "items": {"type": "string"}}
    assert properties["label"] == {"type": "string", "description": "on it"}
    assert properties["rest"] == {}


def test_functions_that_are_no_tools_are_one_line() -> None:
    def untyped(city) -> None:
        pass

    def open_ended(*cities: str) -> None:
        pass

    def of_object(thing: object) -> None:
        pass

    for function, message in ((untyped, "city"), (open_ended, "cities"), (of_object, "thing")):
        with pytest.raises(ValueError, match=f"tools: .*{message}") as error:
            functions([function])
        assert "\n" not in str(error.value)
    for wrong in (weather, 3, [3], "weather", {"name": "a"}):
        with pytest.raises(ValueError, match="tool"):
            functions(wrong)


def test_functions_and_schemas_are_the_same_tools() -> None:
    schema = function_schema(weather)
    wrapped = {"type": "function", "function": schema}
    forms: list[Any] = [[weather], [schema], [wrapped], json.dumps([wrapped])]
    assert all(functions(form) == [schema] for form in forms)
    messages = [Message.user("Hello")]
    assert len({with_tools(messages, form) for form in forms}) == 1
    assert len({Message.system("", form).tools for form in forms[:3]}) == 1
    assert Message.system("", [weather]).tools == with_tools(messages, [weather])[0].tools


def test_a_parsed_call_is_a_call_of_the_next_turn() -> None:
    call = FunctionCall("weather", {"city": "Rome"})
    plain = {"name": "weather", "arguments": {"city": "Rome"}}
    assert call_text([call]) == call_text([plain])
    parsed = Message.parse({"role": "assistant", "content": None, "tool_calls": [call]})
    assert parsed.parts == with_calls((), [plain])
