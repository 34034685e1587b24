"""Objects of request bodies as pydantic models that reject unknown fields.

An unknown field is an error that suggests the nearest known name, because to ignore a misspelt option would give a
wrong answer. Fields that can't change an answer are named in `ignored`.
"""

import math
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, model_validator
from pydantic_core import PydanticCustomError

from polyphi.serve.errors import ApiError

SURROGATE = re.compile(r"[\ud800-\udfff]")
MAX_TEXT = 4_000_000
"""Maximum characters of one text."""
MAX_OBJECTS = 20_000
"""Maximum JSON objects of one body: to check that many takes a few tenths of a second."""
CONTAINERS = frozenset({str, dict, list})
"""Types of list elements that are checked; a list of numbers is skipped."""
FAST = Field(fail_fast=True)
"""For lists: the first invalid element ends the check. A million errors would take minutes and gigabytes."""


class Fields(BaseModel):
    """An object whose fields are all known."""

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        protected_namespaces=(),
        json_schema_extra={"additionalProperties": False},
    )
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for name in value:
                if name not in known and name not in cls.ignored:
                    matches = get_close_matches(str(name), known, 1)
                    hint = f"; did you mean {matches[0]!r}?" if matches else ""
                    raise PydanticCustomError(
                        "unknown_field",
                        "unknown field {name}{hint}",
                        {"name": repr(str(name))[:80], "hint": hint, "field": str(name)[:80]},
                    )
        return value


class Body(Fields):
    """A whole request body. Rejects strings that can't be encoded as UTF-8, at any depth."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_surrogates(cls, value: Any) -> Any:
        stack, objects = [value], 0
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                if not item.isascii() and SURROGATE.search(item):
                    raise PydanticCustomError(
                        "no_text",
                        "expected text, found half of a surrogate pair (\\ud800 to \\udfff alone)",
                    )
            elif isinstance(item, dict):
                objects += 1
                if objects > MAX_OBJECTS:
                    raise ApiError(400, f"a body has at most {MAX_OBJECTS} objects, found more")
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, list) and not CONTAINERS.isdisjoint(map(type, item)):
                stack += item
        return value


STRING, LIST, OBJECT, BOOLEAN = "<string>", "<list>", "<object>", "<boolean>"
"""Names of union members. pydantic includes them in the path of an error; `validation_error` removes them."""
MAX_DEPTH = 64
"""Maximum nested objects and lists in JSON that becomes part of a prompt or a response."""


def check_json(value: Any) -> Any:
    """The value. Raises a validation error for one that can't be encoded again: nested too deeply, or with a number
    that JSON doesn't have (Python's parser accepts NaN and infinity)."""
    level, depth = [value], -1
    while level:
        inner = [i for v in level for i in (v.values() if isinstance(v, dict) else v)]
        if any(isinstance(number, float) and not math.isfinite(number) for number in inner):
            raise PydanticCustomError("not_finite", "expected finite numbers")
        level = [value for value in inner if isinstance(value, dict | list)]
        depth += 1
        if depth > MAX_DEPTH:
            raise PydanticCustomError(
                "too_deep", "expected JSON nested at most {depth} deep", {"depth": MAX_DEPTH}
            )
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(check_json)]


def json_type(value: Any) -> str | None:
    return {str: STRING, list: LIST, dict: OBJECT, bool: BOOLEAN}.get(type(value))


def one_of(choose: Callable[[Any], str | None], expected: str) -> Discriminator:
    """The discriminator of a union: `choose` names the member to check a value against; errors are about it alone."""
    return Discriminator(
        choose, custom_error_type="no_member", custom_error_message=f"expected {expected}"
    )


def needs(field: str, other: str) -> PydanticCustomError:
    """The error for a field that requires another one."""
    return PydanticCustomError(
        "misplaced_field",
        "{field} requires {other}: true; set {other}, or leave {field} out",
        {"field": field, "other": other},
    )


def validation_error(error: RequestValidationError) -> ApiError:
    """The ApiError for a body that doesn't match the schema, with the path of the invalid part."""
    errors = [([step for step in e["loc"] if not _is_tag(step)], e) for e in error.errors()]
    path, detail = max(errors, key=lambda pair: len(pair[0]))
    type_, message = str(detail["type"]), str(detail["msg"]).replace("Input should be", "expected")
    if type_ == "json_invalid":
        return ApiError(400, "expected a JSON body", code="invalid_json")
    param = dotted(path[1:])  # without "body", "path" or "query"
    if type_ in ("unknown_field", "misplaced_field"):
        param = ".".join(filter(None, [param, detail["ctx"]["field"]]))
    if type_ in ("model_type", "model_attributes_type", "dict_type"):
        message = "expected an object"
    if type_ not in ("unknown_field", "misplaced_field", "missing", "no_text"):
        message += f", found {_short(detail.get('input'))}"
    return ApiError(400, f"{param}: {message}" if param else message, param=param or None)


def _is_tag(step: str | int) -> bool:
    """Whether a step of an error's path is the name of a union's member, such as `STRING`."""
    return isinstance(step, str) and step.startswith("<") and step.endswith(">")


def dotted(path: Sequence[str | int]) -> str:
    """The path of a part of a body as one string: `messages[1].content[0].image_url.url`."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "".join(steps).removeprefix(".")


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return repr(value)[:40]
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"a text of {len(value)} characters"
    return "an object" if isinstance(value, dict) else "a list"
