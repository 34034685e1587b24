"""The parquet schema of shards."""

from typing import Any

import pyarrow as pa

PART = pa.struct([("type", pa.string()), ("text", pa.string()), ("media", pa.int32())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        (
            "messages",
            pa.list_(
                pa.struct(
                    [("role", pa.string()), ("parts", pa.list_(PART)), ("tools", pa.string())]
                )
            ),
        ),
        (
            "media",
            pa.list_(
                pa.struct(
                    [
                        ("kind", pa.string()),
                        ("bytes", pa.binary()),
                        ("mime", pa.string()),
                        ("sha256", pa.string()),
                    ]
                )
            ),
        ),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("meta", pa.string()),
        ("sha256", pa.string()),
    ]
)
OPTIONAL = {"sha256"}
"""Columns that may be missing in shards."""


def missing_fields(schema: Any, expected: Any, path: str = "") -> list[str]:
    """Return the names of columns and of their fields that a schema lacks; types of text and bytes may differ."""
    missing = []
    for column in expected:
        name = path + column.name
        if column.name in OPTIONAL:
            continue
        index = schema.get_field_index(column.name)
        if index < 0:
            missing.append(name)
            continue
        inner, outer = schema.field(index).type, column.type
        while pa.types.is_list(outer):
            if not (pa.types.is_list(inner) or pa.types.is_large_list(inner)):
                break
            inner, outer = inner.value_type, outer.value_type
        if pa.types.is_struct(outer):
            missing += (
                missing_fields(inner, outer, f"{name}.") if pa.types.is_struct(inner) else [name]
            )
        elif pa.types.is_list(outer):
            missing.append(name)
    return missing
