"""Schemas for llguidance: annotations that it refuses are dropped, and schemas that it can't compile are refused."""

import json
import subprocess
import sys
import time
from typing import Any

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyphi.decoding.json_schemas import FORMATS, MAX_MULTIPLE, for_grammar, refuse_explosive

STRING = {"type": "string"}
CLOSED = {"additionalProperties": False}
UNKNOWN_FORMATS = [
    "path",
    "file-path",
    "directory-path",
    "password",
    "base64",
    "base64url",
    "binary",
    "byte",
    "json-string",
    "uri-reference",
    "iri",
    "iri-reference",
    "idn-email",
    "idn-hostname",
    "uri-template",
    "json-pointer",
    "relative-json-pointer",
    "regex",
    "ipvanyaddress",
    "ipvanyinterface",
    "ipvanynetwork",
    "ipv4network",
    "ipv6network",
    "ipv4interface",
    "ipv6interface",
    "uuid1",
    "uuid3",
    "uuid4",
    "uuid5",
    "uuid6",
    "uuid7",
    "uuid8",
    "multi-host-uri",
    "name-email",
    "color",
    "decimal",
    "int32",
    "int64",
    "float",
    "double",
]


def refusal(schema: Any) -> str | None:
    """Why llguidance refuses a schema."""
    matcher = llguidance.LLMatcher
    grammar = matcher.grammar_from_json_schema(json.dumps(schema))
    is_invalid, messages = matcher.validate_grammar_with_warnings(grammar)
    return messages[0] if is_invalid else None


@pytest.mark.parametrize("name", UNKNOWN_FORMATS)
def test_unknown_formats_are_annotations(name: str) -> None:
    """Of JSON Schema, OpenAPI and pydantic; nothing is added to this list while llguidance enforces a format."""
    schema = {"type": "object", "properties": {"a": {**STRING, "format": name}}}
    assert "format" in str(refusal(schema)), "llguidance enforces it now: add it to FORMATS"
    assert for_grammar(schema) == {"type": "object", "properties": {"a": STRING}, **CLOSED}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_known_formats_are_enforced(name: str) -> None:
    schema = {**STRING, "format": name}
    assert for_grammar(schema) == schema and refusal(schema) is None


@pytest.mark.parametrize(
    "annotation",
    [
        {"$id": "my schema"},
        {"$id": "http://a b"},
        {"$id": "http://[::1"},
        {"$schema": "draft-07"},
        {"$schema": "https://example.com/mine"},
        {"$dynamicAnchor": "node"},
        {"format": 5},
        {"format": None},
    ],
)
@pytest.mark.parametrize("key", ["", "properties", "$defs", "items", "anyOf"])
def test_other_annotations_that_are_refused(annotation: dict[str, Any], key: str) -> None:
    def around(inner: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {"items": inner, "anyOf": [inner, {"type": "null"}]}
        return {key: values.get(key, {"a": inner})} if key else inner

    schema = around({**STRING, **annotation})
    assert refusal(schema) or key
    closed = CLOSED if key == "properties" else {}
    assert for_grammar(schema) == around(STRING) | closed and refusal(around(STRING)) is None


@pytest.mark.parametrize(
    "annotation",
    [
        {"$id": "https://example.com/s.json"},
        {"$id": "Person"},
        {"$id": "urn:x:y"},
        {"$schema": "https://json-schema.org/draft/2020-12/schema"},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
        {"$comment": "x", "examples": ["a"], "deprecated": True, "readOnly": True},
        {"contentEncoding": "base64", "contentMediaType": "image/png", "discriminator": {}},
    ],
)
def test_annotations_that_are_accepted(annotation: dict[str, Any]) -> None:
    schema = {**STRING, **annotation}
    assert for_grammar(schema) == schema and refusal(schema) is None


@given(st.text('ab:/?#[]@!%20 {}|\\"é.-~', max_size=12))
def test_every_id_is_accepted(text: str) -> None:
    assert refusal(for_grammar({**STRING, "$id": text})) is None


def test_values_and_names_of_properties_are_kept() -> None:
    looks = {"format": "path", "$id": "my schema", "$schema": "x"}
    schema = {
        "type": "object",
        "properties": {"format": STRING, "$id": STRING, "$schema": STRING, "a": {"const": looks}},
        "required": ["format"],
        "default": looks,
        "examples": [looks],
        "enum": [looks],
    }
    before = json.dumps(schema)
    assert for_grammar(schema) == {**schema, **CLOSED} and json.dumps(schema) == before
    assert for_grammar(True) is True


def test_references_by_id_still_work() -> None:
    part = {"$id": "https://example.com/a.json", "type": "integer"}
    schema = {"$defs": {"a": part}, "$ref": "https://example.com/a.json"}
    assert for_grammar(schema) == schema and refusal(schema) is None


def chain(levels: int) -> dict[str, Any]:
    """Objects that point to each other."""
    objects = {
        f"a{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}}
        for i in range(levels)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**objects, f"a{levels}": STRING}}


def union(start: int, count: int) -> dict[str, Any]:
    return {"anyOf": [{"const": start * i} for i in range(count)]}


EXPLOSIVE: dict[str, Any] = {
    "prime": {"type": "integer", "multipleOf": 9999991},
    "a million": {"type": "integer", "multipleOf": 1000000},
    "300007": {"type": "integer", "multipleOf": 300007},
    "negative": {"multipleOf": -300007},
    "very large": {"multipleOf": 10**400},
    "decimals": {"type": "number", "multipleOf": 12345.678},
    "small decimals": {"type": "number", "multipleOf": 1.0000001},
    "not finite": {"multipleOf": float("inf")},
    "together": {"allOf": [{"type": "integer", "multipleOf": m} for m in (997, 991)]},
    "alternatives": {"anyOf": [{"type": "integer", "multipleOf": 503 + i} for i in range(20)]},
    "by a reference": {"allOf": [{"$ref": "#/x"}, {"multipleOf": 991}], "x": {"multipleOf": 997}},
    "patterns": {**STRING, "allOf": [{"pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(20)]},
    "patterns in patterns": {
        "allOf": [{"allOf": [{"pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(5)]}] * 4
    },
    "alternatives of alternatives": {"allOf": [union(i, 4) for i in range(1, 8)]},
    "a chain of references": chain(1000),
    "a short chain": chain(400),
    "named references": {
        "allOf": [{"$ref": f"a{i}"} for i in range(400)],
        "$defs": {f"a{i}": {"$id": f"a{i}", "type": "object"} for i in range(400)},
    },
}


@pytest.mark.parametrize("schema", EXPLOSIVE.values(), ids=EXPLOSIVE)
def test_explosive_schemas_are_refused_at_once(schema: Any) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match="expected"):
        refuse_explosive(schema)
    assert time.process_time() - started < 2


USUAL: dict[str, Any] = {
    "cents": {"type": "number", "multipleOf": 0.01, "minimum": 0},
    "minutes": {
        "properties": {n: {"multipleOf": m} for n, m in {"a": 15, "b": 60, "c": 7}.items()}
    },
    "floats": {"multipleOf": 100.0},
    "zero": {"multipleOf": 0},
    "texts": {"multipleOf": "5", "allOf": 5, "anyOf": {}, "$ref": 5, "pattern": 3, "format": []},
    "limits": {"type": "array", "items": {**STRING, "maxLength": 100_000}, "maxItems": 100_000},
    "a password": {**STRING, "allOf": [{"pattern": p} for p in ("[a-z]", "[A-Z]", "[0-9]")]},
    "a large union": union(1, 2000),
    "one of a union": {"allOf": [union(1, 2000)], "type": "integer"},
    "a tree": {"$defs": {"t": {"items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"},
    "a circle": {"$defs": {"t": {"allOf": [{"$ref": "#/$defs/t"}]}}, "$ref": "#"},
    "definitions": chain(100),
    "no schema": True,
}


@pytest.mark.parametrize("schema", USUAL.values(), ids=USUAL)
def test_usual_schemas_are_not_refused(schema: Any) -> None:
    refuse_explosive(schema)


def test_what_is_not_refused_compiles_in_time() -> None:
    """In a process of its own: the slowest multipleOf, patterns, alternatives and references that are allowed."""
    schemas = [
        {"type": "integer", "multipleOf": 9973},
        {"type": "integer", "multipleOf": MAX_MULTIPLE},
        {**STRING, "allOf": [{"pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(8)]},
        {"allOf": [union(i, 4) for i in range(1, 5)]},
        chain(300),
    ]
    for schema in schemas:
        refuse_explosive(schema)
    program = (
        "import json, llguidance, sys\n"
        "tokenizer = llguidance.LLTokenizer('byte')\n"
        "for schema in json.load(sys.stdin):\n"
        "    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))\n"
        "    llguidance.LLMatcher(tokenizer, grammar, log_level=0)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(schemas),
        text=True,
        timeout=60,
        check=True,
    )


def test_the_module_needs_neither_torch_nor_llguidance() -> None:
    program = (
        "import sys, polyphi.decoding.json_schemas; print({'torch', 'llguidance'} & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


LISTED = {"type": "object", "properties": {"a": STRING}, "required": ["a"]}


def test_objects_with_listed_members_have_no_others() -> None:
    inner = {"type": "array", "items": {"$ref": "#/$defs/b"}}
    schema = {"properties": {"a": LISTED, "c": inner}, "$defs": {"b": LISTED}}
    closed = {**LISTED, **CLOSED}
    assert for_grammar(schema) == {
        "properties": {"a": closed, "c": inner},
        "$defs": {"b": closed},
        **CLOSED,
    }
    assert for_grammar({"anyOf": [LISTED, {"type": "null"}]})["anyOf"][0] == closed


@pytest.mark.parametrize(
    "schema",
    [
        {**LISTED, "additionalProperties": True},
        {**LISTED, "additionalProperties": STRING},
        {**LISTED, "patternProperties": {"^x": STRING}},
        {**LISTED, "required": ["a", "b"]},
        {**LISTED, "anyOf": [{"properties": {"b": STRING}}, {"properties": {"c": STRING}}]},
        {**LISTED, "$ref": "#/$defs/b", "$defs": {"b": {"properties": {"b": STRING}}}},
        {"allOf": [LISTED, {"properties": {"b": STRING}}]},
        {"oneOf": [LISTED, {"properties": {"b": STRING}}]},
        {"type": "object"},
        {"type": "object", "properties": {}},
    ],
    ids=str,
)
def test_objects_that_may_have_others_stay_open(schema: dict[str, Any]) -> None:
    assert for_grammar(schema) == schema
