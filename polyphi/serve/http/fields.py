"""Objects of request bodies as pydantic models: all fields are known, ignored or refused.

A field that can't change the answer is ignored. One that would give a wrong answer when ignored is refused: an option
that this server doesn't have, or a misspelt one. A null is refused only for a misspelt one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar

from fastapi.exceptions import RequestValidationError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.refusals import FIELDS

MAX_TEXT = 4_000_000
"""Maximum characters of one text."""
MAX_FIELDS = 1000
"""Maximum names in an object whose fields are known."""
MAX_JSON, MAX_JSON_VALUES = 4_000_000, 200_000
"""Maximum characters and values of the JSON of a body that is written or parsed again: tools, schemas and calls."""
FAST = Field(fail_fast=True)
"""The pydantic field of a list whose check ends at the first invalid element. A million errors would take minutes and
gigabytes."""


Refused = Mapping[str, tuple[Any, ...]]
"""Fields of options that this server doesn't have, with the values that don't use them."""


@dataclass
class Counts:
    """Total counts of the fields of a body; the context of its validation. `media`: characters of URLs and base64; the
    others are of the JSON that becomes part of a prompt or a grammar."""

    media: int = 0
    json_characters: int = 0
    json_values: int = 0

    def add_json(self, characters: int, values: int) -> None:
        """Raises ApiError 413 above a limit."""
        self.json_characters += characters
        self.json_values += values
        for count, most, what in (
            (self.json_characters, MAX_JSON, "characters"),
            (self.json_values, MAX_JSON_VALUES, "values"),
        ):
            if count > most:
                raise ApiError(
                    413,
                    f"the tools, tool calls and schemas of a body have at most {most:,} {what}, found more",
                )


def _count_media(text: str, info: ValidationInfo) -> str:
    if isinstance(info.context, Counts):
        info.context.media += len(text)
    return text


def _count_json(value: Any, info: ValidationInfo) -> Any:
    if isinstance(info.context, Counts):
        info.context.add_json(*json_size(value))
    return value


def _count_json_text(text: str, info: ValidationInfo) -> str:
    if isinstance(info.context, Counts):
        info.context.add_json(len(text), sum(map(text.count, ",[{")))
    return text


def refuse(value: Any, reason: str) -> BeforeValidator:
    """Refuses a value that other servers have."""

    def check(other: Any) -> Any:
        if other == value:
            raise PydanticCustomError(
                "refused_value", "expected another value: {reason}", {"reason": reason}
            )
        return other

    return BeforeValidator(check)


MediaText = Annotated[str, AfterValidator(_count_media)]
"""An image or audio as a URL or base64."""
JsonText = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_count_json_text)]
"""JSON as a text that is parsed."""


def json_size(value: Any) -> tuple[int, int]:
    """The characters of the strings and the number of values in JSON."""
    stack, characters, values = [value], 0, 0
    while stack:
        item = stack.pop()
        values += 1
        if isinstance(item, str):
            characters += len(item)
        elif isinstance(item, dict):
            characters += sum(map(len, item))
            stack += item.values()
        elif isinstance(item, list):
            stack += item
    return characters, values


class Fields(BaseModel):
    """An object whose fields are all known."""

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        protected_namespaces=(),
        json_schema_extra={"additionalProperties": False},
    )
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Fields that can't change the answer."""
    refused: ClassVar[Refused] = {}
    """Fields that are refused. They may be those of a base class that a route doesn't have."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if len(value) > MAX_FIELDS:
            raise PydanticCustomError(
                "too_many_fields",
                "expected at most {most} fields, found {count}",
                {"most": MAX_FIELDS, "count": len(value)},
            )
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name, inner in value.items():
            if name in cls.refused:
                if inner is None or inner in cls.refused[name]:
                    continue
                raise PydanticCustomError(
                    "unsupported_field",
                    "isn't supported: {reason}; leave it out",
                    {"field": name, "reason": FIELDS[name]},
                )
            if name in known or name in cls.ignored:
                continue
            ignored = inner is None or cls.ignores_unknown(value)
            if ignored and not any(_is_misspelling(name, n) for n in known):
                continue
            matches = get_close_matches(name, known, 1)
            hint = f"; did you mean {matches[0]!r}?" if matches else ""
            raise PydanticCustomError(
                "unknown_field",
                "unknown field {name}{hint}",
                {"name": repr(name)[:80], "hint": hint, "field": name[:80]},
            )
        return value

    @classmethod
    def ignores_unknown(cls, value: Mapping[str, Any]) -> bool:
        """Whether unknown fields of this object are ignored, unless they look like a misspelt known one."""
        return False


def _is_misspelling(name: str, known: str) -> bool:
    """Whether a name differs from a known one by a character: another, missing, additional or swapped one. Fast, since
    a body may have very many names."""
    if abs(len(name) - len(known)) > 1:
        return False
    pairs = enumerate(zip(name, known, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), min(len(name), len(known)))
    a, b = name[start:], known[start:]
    swapped = a[2:] == b[2:] and a[:2] == b[1::-1]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or swapped


STRING, LIST, OBJECT, BOOLEAN = "<string>", "<list>", "<object>", "<boolean>"
"""Names of union members. pydantic includes them in the path of an error; `validation_error` removes them."""


FileName = Annotated[str, Field(max_length=512)]

MAX_DEPTH = 64
"""Maximum nested objects and lists in JSON that becomes part of a prompt or a response."""


def check_json(value: Any) -> Any:
    """Return `value`. Raises a validation error for JSON that can't be encoded again: nested too deeply, or with a
    number that JSON doesn't have (Python's parser accepts NaN and infinity)."""
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


AnyObject = Annotated[dict[str, Any], AfterValidator(_count_json)]
"""An object that is written as JSON."""
JsonObject = Annotated[AnyObject, AfterValidator(check_json)]


def json_type(value: Any) -> str | None:
    return {str: STRING, list: LIST, dict: OBJECT, bool: BOOLEAN}.get(type(value))


def one_of(choose: Callable[[Any], str | None], expected: str) -> Discriminator:
    """The discriminator of a union: `choose` names the member to check a value against; errors are about it alone."""
    return Discriminator(
        choose, custom_error_type="no_member", custom_error_message=f"expected {expected}"
    )


def one_of_types(
    tags: Mapping[str, str],
    what: str,
    default: str | None = None,
    other: Callable[[Mapping[str, Any]], str | None] = lambda value: None,
) -> Discriminator:
    """The discriminator of a union of objects by their `type`, for which `tags` names the member; `default`: the type
    of an object without one; `other`: the member for an object of another type. Errors name an unknown type."""

    def choose(value: Any) -> str | None:
        type_ = value.get("type", default) if isinstance(value, dict) else None
        if not isinstance(type_, str):
            return None
        return tags.get(type_) or (other(value) if "type" in value else None)

    return Discriminator(
        choose,
        custom_error_type="unknown_type",
        custom_error_message=f"expected {what} with a type of {', '.join(tags)}",
    )


FIELD_ERRORS = ("unknown_field", "misplaced_field", "unsupported_field")
"""Types of errors about a field of an object, which they name."""


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
    if type_ in FIELD_ERRORS:
        param = ".".join(filter(None, [param, detail["ctx"]["field"]]))
    if type_ in ("model_type", "model_attributes_type", "dict_type"):
        message = "expected an object"
    value = detail.get("input")
    kind = value.get("type") if isinstance(value, dict) else None
    if type_ == "unknown_type" and isinstance(kind, str):
        message = f"unknown type {_short(kind)}; {message}"
    elif type_ == "no_member" and isinstance(kind, str):
        message += f", found one of type {_short(kind)}"
    elif type_ == "missing":
        message = "this field is required, found none"
    elif type_ not in (*FIELD_ERRORS, "too_many_fields"):
        message += f", found {_short(value)}"
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
