"""Valid JSON with one value replaced by a wrong one, for readers of files of strangers."""

import json
from collections.abc import Iterator
from typing import Any

WRONG = (
    "null",
    "-1",
    "0",
    "true",
    '"x"',
    "[]",
    "{}",
    "1e400",
    "NaN",
    "1.5",
    "10000000",
    "9" * 400,
    "[null]",
    '{"a": []}',
    "[" * 500 + "]" * 500,
    "[" * 100_000 + "]" * 100_000,
)
"""Values of other types and sizes; the last one is nested deeper than a parser may recurse."""
MARK = "a text that is nowhere else"


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all values, of lists only the first item's."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:1])
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from paths(inner, (*path, key))


def replaced(text: str, seed: int) -> Iterator[str]:
    """The text with each value replaced by one of the wrong ones; all seeds below their number give all."""
    for number, path in enumerate(paths(json.loads(text))):
        holder: Any = {"": json.loads(text)}
        inner: Any = holder
        key: str | int = ""
        for step in path:
            inner, key = inner[key], step
        inner[key] = MARK
        wrong = WRONG[(number + seed) % len(WRONG)]
        yield json.dumps(holder[""]).replace(f'"{MARK}"', wrong)
