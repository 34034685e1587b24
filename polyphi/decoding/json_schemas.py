"""JSON schemas for llguidance: without the annotations that it refuses, and none whose compilation never ends.

>>> for_grammar({"type": "string", "format": "path", "$id": "my schema"})
{'type': 'string'}
>>> refuse_explosive({"type": "integer", "multipleOf": 9999991})
Traceback (most recent call last):
ValueError: multipleOf 9999991: expected ...

A keyword is dropped only where it is one: not where it is the name of a property, or part of a value in `enum`,
`const`, `default` or `examples`.
"""

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

MAX_MULTIPLE = 10_000
"""Largest `multipleOf`, in units of its last decimal place, and least common multiple of all of a schema. llguidance
visits that many remainders: 10,000 take 0.05 s, 300,007 take 3 s. (Measured on Zen 5.)"""
MAX_PATTERNS = 8
"""Most patterns and formats that one string must match. Time grows exponentially with them: ten take up to 0.07 s,
twelve 1 s, twenty 28 s."""
MAX_ALTERNATIVES = 256
"""Most combinations of alternatives (`anyOf` in `allOf`): 1,024 take up to 0.6 s, 16,384 don't end."""
MAX_NESTED = 1_000
"""Most levels of objects and lists in all schemas that `$ref` points to: llguidance compiles them recursively, and a
chain of 3,000 levels overflows the stack, which ends the process."""
FORMATS = frozenset(
    [
        "date",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "time",
        "unknown",
        "uri",
        "uuid",
    ]
)
"""Formats of strings that llguidance enforces; all others are annotations."""
DIALECT = re.compile(r"https?://json-schema\.org/(draft-0[3467]|draft/20(19-09|20-12))/schema#?|")
"""Values of `$schema` that llguidance knows."""
_CHARACTER = r"(?:[A-Za-z0-9._~/@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"
_HOST = r"//[A-Za-z0-9.-]*(?::[0-9]{1,4})?(?=[/?#]|$)"
URI = re.compile(
    rf"(?:[A-Za-z][A-Za-z0-9+.-]*:(?:{_HOST}|(?!//))(?:{_CHARACTER}|[:?])*|(?!//)(?:{_CHARACTER}|\?)*)#?"
)
"""Values of `$id` that are certainly URIs; others are dropped."""
SCHEMA = frozenset(
    [
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    ]
)
"""Keywords whose value is a schema, or a list of them in `items`."""
SCHEMAS = frozenset(["allOf", "anyOf", "oneOf", "prefixItems"])
"""Keywords whose value is a list of schemas."""
NAMED_SCHEMAS = frozenset(
    [
        "$defs",
        "definitions",
        "dependencies",
        "dependentSchemas",
        "patternProperties",
        "properties",
    ]
)
"""Keywords whose value maps names to schemas."""


COMBINING = frozenset(["allOf", "oneOf", "not", "if", "dependentSchemas", "dependencies"])
"""Keywords with schemas that describe the same object as others."""
OTHER_MEMBERS = frozenset(
    ["additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"]
)
"""Keywords about members that aren't among `properties`."""


def for_grammar(schema: Any) -> Any:
    """The schema without annotations that llguidance refuses: formats that it doesn't know, an unknown `$schema`, an
    `$id` that is no URI, and `$dynamicAnchor`. The argument is unchanged.

    An object whose `properties` are listed gets no others, unless the schema speaks of them. All answers of the result
    fit the schema, but a small model would write further members without end. Where several schemas may describe one
    object, all of them stay open."""
    return _for_grammar(schema, close=not any(map(_is_combined, _objects(schema))))


def _for_grammar(schema: Any, *, close: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if _is_refused(key, value):
            continue
        if key in SCHEMA | SCHEMAS and isinstance(value, list):
            value = [_for_grammar(member, close=close) for member in value]
        elif key in SCHEMA:
            value = _for_grammar(value, close=close)
        elif key in NAMED_SCHEMAS and isinstance(value, dict):
            value = {name: _for_grammar(member, close=close) for name, member in value.items()}
        result[key] = value
    if close and _lists_members(schema):
        result["additionalProperties"] = False
    return result


def _is_combined(schema: Mapping[str, Any]) -> bool:
    """Whether a schema has keywords whose schemas describe the same object as the schema itself."""
    with_properties = "properties" in schema and ("anyOf" in schema or "$ref" in schema)
    return with_properties or not COMBINING.isdisjoint(schema)


def _lists_members(schema: Mapping[str, Any]) -> bool:
    """Whether a schema has properties, and says nothing of others. (One with an empty list is any object.)"""
    properties, required = schema.get("properties"), schema.get("required", ())
    if not (properties and isinstance(properties, dict) and isinstance(required, list | tuple)):
        return False
    return properties.keys() >= set(map(str, required)) and OTHER_MEMBERS.isdisjoint(schema)


def _is_refused(key: str, value: Any) -> bool:
    """Whether a keyword is an annotation that llguidance refuses."""
    match key:
        case "format":
            return not isinstance(value, str) or value not in FORMATS
        case "$schema":
            return isinstance(value, str) and not DIALECT.fullmatch(value)
        case "$id":
            return isinstance(value, str) and not URI.fullmatch(value)
        case _:
            return key == "$dynamicAnchor"


def refuse_explosive(schema: Any) -> None:
    """Raise ValueError for a schema, nested at most 64 deep, that llguidance would compile for seconds, without an end
    or by more recursion than a thread's stack allows."""
    if _nested(schema) > MAX_NESTED:
        raise ValueError(
            f"expected schemas that $ref points to with at most {MAX_NESTED} nested levels together, found more; leave "
            "out what the answer doesn't need"
        )
    common = 1
    for part in _objects(schema):
        value = part.get("multipleOf")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value:
            continue
        if (units := _units(value)) > MAX_MULTIPLE:
            raise ValueError(
                f"multipleOf {value!r:.40}: expected at most {MAX_MULTIPLE} in units of its last decimal place (10000, "
                "or 1.0000); leave it out and check the number in your program"
            )
        if (common := math.lcm(common, units)) > MAX_MULTIPLE:
            raise ValueError(
                f"multipleOf {value!r:.40}: expected a least common multiple of at most {MAX_MULTIPLE} for all "
                "multipleOf of a schema, in units of their last decimal places; leave some of them out"
            )
    combinations = _Combinations(schema)
    for part in _objects(schema):
        try:
            combinations.check(part)
        except RecursionError:
            raise ValueError("expected fewer schemas that point to each other by $ref") from None


class _Combinations:
    """What a value must match at the same time to match a schema, with the schemas in its `allOf` and `$ref`."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._patterns: dict[int, int] = {}
        self._alternatives: dict[int, int] = {}

    def check(self, schema: dict[str, Any]) -> None:
        """Raise ValueError for an object that combines too much."""
        if self.patterns(schema) > MAX_PATTERNS:
            raise ValueError(
                f"expected at most {MAX_PATTERNS} patterns that one string must match (allOf), found more; join them, "
                "or leave some of them out"
            )
        factors = self._factors(schema)
        if math.prod(factors) > max(MAX_ALTERNATIVES, *factors):
            raise ValueError(
                f"expected at most {MAX_ALTERNATIVES} combinations of alternatives (anyOf in allOf), found "
                f"{min(math.prod(factors), 10**9)} or more; list those that you need in one anyOf"
            )

    def patterns(self, schema: Any) -> int:
        """Patterns and formats that a string must match."""
        if not isinstance(schema, dict):
            return 0
        if id(schema) not in self._patterns:
            self._patterns[id(schema)] = 0  # in a circle of references
            own = ("pattern" in schema) + ("format" in schema)
            self._patterns[id(schema)] = own + sum(map(self.patterns, self._members(schema)))
        return self._patterns[id(schema)]

    def alternatives(self, schema: Any) -> int:
        """Schemas of which a value must match one, after multiplying out."""
        if not isinstance(schema, dict):
            return 1
        if id(schema) not in self._alternatives:
            self._alternatives[id(schema)] = 1
            self._alternatives[id(schema)] = min(math.prod(self._factors(schema)), 10**9)
        return self._alternatives[id(schema)]

    def _factors(self, schema: dict[str, Any]) -> list[int]:
        """The factors whose product is the number of alternatives of `schema`."""
        unions = [schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)]
        return [
            1,
            *(sum(map(self.alternatives, union)) for union in unions),
            *map(self.alternatives, self._members(schema)),
        ]

    def _members(self, schema: dict[str, Any]) -> list[Any]:
        """The schemas in `allOf` and `$ref` that a value must match in addition to `schema`."""
        members = schema.get("allOf")
        target = _target(schema.get("$ref"), self._root)
        return [*(members if isinstance(members, list) else []), target]


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in a JSON value, also those that are no schemas: `$ref` may point to any."""
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            yield part
            stack += part.values()
        elif isinstance(part, list):
            stack += part


def depth(value: Any) -> int:
    """Levels of objects and lists in a JSON value."""
    level, count = [value], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        level = [m for part in level for m in (part.values() if isinstance(part, dict) else part)]
        count += 1
    return count


def _units(value: float) -> int:
    """A number in units of its last decimal place: 0.25 is 25."""
    if isinstance(value, int):
        return abs(value)
    if not math.isfinite(value):
        return MAX_MULTIPLE + 1
    number = Decimal(repr(value)).normalize()
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    return abs(int(number.scaleb(-min(0, exponent))))


def _nested(schema: Any) -> int:
    """Levels of a schema and of all parts that its references point to, each part once. A reference by a name may point
    to any part, and counts as the whole schema."""
    references = [part["$ref"] for part in _objects(schema) if isinstance(part.get("$ref"), str)]
    named = {reference for reference in references if not reference.startswith("#/")}
    pointed = (_target(reference, schema) for reference in set(references) - named)
    parts = {id(part): part for part in (schema, *pointed)}
    return sum(map(depth, parts.values())) + len(named) * depth(schema)


def _target(reference: Any, root: Any) -> Any:
    """What a reference points to by the path of a part of the schema itself; None for another one."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return root if reference == "#" else None
    part = root
    for step in reference[2:].split("/"):
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(part, list) and name.isdecimal() and int(name[:9]) < len(part):
            part = part[int(name[:9])]
        elif isinstance(part, dict):
            part = part.get(name)
        else:
            return None
    return part
