"""JSON schemas for llguidance: without the annotations that it refuses, and none whose compilation never ends.

>>> for_grammar({"type": "string", "format": "path", "$id": "my schema"})
{'type': 'string'}
>>> refuse_explosive({"type": "integer", "multipleOf": 9999991})
Traceback (most recent call last):
ValueError: multipleOf 9999991: expected ...

A keyword is dropped only where it is one: not where it is the name of a property, or part of a value in `enum`, `const`,
`default` or `examples`.
"""

import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

MAX_MULTIPLE = 10_000
"""Largest `multipleOf`, in units of its last decimal place, and least common multiple of all of a schema. llguidance
visits that many remainders: 10,000 take 0.05 s, 300,007 take 3 s. (Measured on Zen 5.)"""
MAX_PATTERNS = 8
"""Most patterns and formats that one string must match. Time grows exponentially with them: ten take up to 0.07 s,
twelve 1 s, twenty 28 s."""
FORMATS = frozenset(
    "date-time date time duration email hostname ipv4 ipv6 uri uuid unknown".split()
)
"""Formats of strings that llguidance enforces; all others are annotations."""
DIALECT = re.compile(
    r"https?://json-schema\.org/(draft-0[3467]|draft/20(19-09|20-12))/schema#?|"
)
"""Values of `$schema` that llguidance knows."""
URI = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?(?:[A-Za-z0-9._~/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*(?:#[A-Za-z0-9._~/-]*)?"
)
"""Values of `$id` that are certainly URIs; others are dropped."""
SCHEMA = frozenset(
    "additionalItems additionalProperties contains contentSchema else if items not propertyNames then "
    "unevaluatedItems unevaluatedProperties".split()
)
"""Keywords whose value is a schema, or a list of them in `items`."""
SCHEMAS = frozenset("allOf anyOf oneOf prefixItems".split())
"""Keywords whose value is a list of schemas."""
NAMED_SCHEMAS = frozenset(
    "$defs definitions dependencies dependentSchemas patternProperties properties".split()
)
"""Keywords whose value maps names to schemas."""


def for_grammar(schema: Any) -> Any:
    """The schema without annotations that llguidance refuses: formats that it doesn't know, `$id` and `$schema` that are
    no URIs or unknown ones, and `$dynamicAnchor`. The argument is unchanged."""
    if not isinstance(schema, dict):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if _is_refused(key, value):
            continue
        if key in SCHEMA | SCHEMAS and isinstance(value, list):
            value = [for_grammar(member) for member in value]
        elif key in SCHEMA:
            value = for_grammar(value)
        elif key in NAMED_SCHEMAS and isinstance(value, dict):
            value = {name: for_grammar(member) for name, member in value.items()}
        result[key] = value
    return result


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
    """Raise ValueError for a schema that llguidance would compile for seconds or without an end: large values of
    `multipleOf`, several without a small common multiple, or many patterns for one string."""
    common = 1
    for part in _objects(schema):
        value = part.get("multipleOf")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value:
            continue
        if (units := _units(value)) > MAX_MULTIPLE:
            raise ValueError(
                f"multipleOf {value!r:.40}: expected at most {MAX_MULTIPLE} in units of its last decimal place (such "
                "as 10000, or 1.0000); leave it out and check the number in your program"
            )
        if (common := math.lcm(common, units)) > MAX_MULTIPLE:
            raise ValueError(
                f"multipleOf {value!r:.40}: expected a least common multiple of at most {MAX_MULTIPLE} for all "
                "multipleOf of a schema, in units of their last decimal places; leave some of them out"
            )
    counts: dict[int, int] = {}
    for part in _objects(schema):
        if _patterns(part, schema, counts) > MAX_PATTERNS:
            raise ValueError(
                f"expected at most {MAX_PATTERNS} patterns that one string must match (allOf), found more; join them, "
                "or leave some of them out"
            )


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


def _units(value: float) -> int:
    """A number in units of its last decimal place: 0.25 is 25. Infinite for a number that isn't finite."""
    if not math.isfinite(value):
        return MAX_MULTIPLE + 1
    number = Decimal(repr(value)).normalize()
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    if number.adjusted() > 40:
        return MAX_MULTIPLE + 1
    return abs(int(number.scaleb(-min(0, exponent))))


def _patterns(schema: Any, root: Any, counts: dict[int, int]) -> int:
    """Patterns and formats that a string must match to match a schema, with those of `allOf` and `$ref`. `counts`: those
    of objects by `id`, which is extended."""
    if not isinstance(schema, dict):
        return 0
    if id(schema) in counts:
        return counts[id(schema)]
    counts[id(schema)] = 0  # for a circle
    members = schema.get("allOf")
    parts = [*(members if isinstance(members, list) else []), _target(schema.get("$ref"), root)]
    count = ("pattern" in schema) + (schema.get("format") in FORMATS)
    counts[id(schema)] = count + sum(_patterns(part, root, counts) for part in parts)
    return counts[id(schema)]


def _target(reference: Any, root: Any) -> Any:
    """What a reference to a part of the schema itself points to; None for another one."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    part = root
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, list) and name.isdecimal() and int(name[:9]) < len(part):
            part = part[int(name[:9])]
        elif isinstance(part, dict):
            part = part.get(name)
        else:
            return None
    return part
