"""Counting and cutting JSON while it arrives: independent of where the blocks begin, and right about strings."""

import json
import random
from collections import deque
from typing import Any

import pytest
from variants import few

from polyphi.serve.http import json_scanner
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.json_parser import _check, _load
from polyphi.serve.http.json_scanner import LONG, BodyPiece, Scanner

TRICKY = [
    '"',
    "\\",
    "\\\\",
    '\\"',
    '\\\\"',
    "[{,:}]" * 9,
    "/" * 9,
    "\n\t",
    "é😀",
    "A" * LONG,
    "A/" * LONG,
    "A" * (3 * LONG),
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
]


def pieces(text: bytes, sizes: list[int]) -> list[BodyPiece]:
    """The pieces of a text that arrives in blocks of these sizes, repeatedly."""
    scanner, result, at, number = Scanner(), list[BodyPiece](), 0, 0
    while at < len(text):
        end = at + sizes[number % len(sizes)]
        result += scanner.scan(text[at:end], last=end >= len(text))
        at, number = end, number + 1
    return result


def value(text: bytes, sizes: list[int]) -> Any:
    parsed, plain = _load(deque(pieces(text, sizes)))
    holder = [parsed]
    _check(holder, plain)
    return holder[0]


def encodings(body: Any) -> list[bytes]:
    escaped = json.dumps(body).encode()
    return [
        escaped,
        json.dumps(body, ensure_ascii=False, indent=1).encode(),
        escaped.replace(b"/", b"\\/"),  # as PHP writes it
    ]


@pytest.mark.parametrize("seed", few(range(12), 4))
def test_a_value_does_not_depend_on_the_blocks_it_arrives_in(seed: int) -> None:
    dice = random.Random(seed)

    def text() -> str:
        return "".join(dice.choices(TRICKY, k=dice.randrange(6)))

    body = {
        "text": text(),
        "list": [text(), 1, [text(), None], {"a": text(), "b": -1.5e3}],
        "plain": "A" * dice.randrange(6 * LONG),
    }
    assert b"".join(p.data for p in pieces(b"{}\\", [2])) == b"{}\\"
    for encoded in encodings(body):
        for sizes in ([1 << 20], [LONG], [dice.randrange(1, 3 * LONG) for _ in range(7)], [7]):
            assert b"".join(p.data for p in pieces(encoded, sizes)) == encoded
            assert value(encoded, sizes) == body


def test_base64_is_not_parsed() -> None:
    """Of a body with media, a parser receives next to nothing."""
    media = [{"type": "input_audio", "input_audio": {"data": "QUJ/" * (1 << 18)}}] * 4
    for encoded in encodings({"messages": [{"role": "user", "content": media}]}):
        parsed = [p for p in pieces(encoded, [100_000]) if not p.plain]
        assert sum(len(p.data) for p in parsed) < 12 * LONG < len(encoded) / 80


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (b"[" + b"1," * 200, "MAX_VALUES"),
        (b"[" + b"{}," * 200, "MAX_OBJECTS"),
        (b"[" + b"[1]," * 200, "MAX_LISTS"),
        (b"{" + b'"a":1,' * 200, "MAX_NAMES"),
        (b"[1" + b" " * 200, "MAX_OUTSIDE"),
        (b"1" * 200, "MAX_OUTSIDE"),
        (b'["' + b"\\n" * 100, "MAX_TEXT"),
    ],
)
def test_limits_hold_in_blocks_of_any_size(
    text: bytes, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_scanner, limit, 150)
    for size in (1, 7, 1000):
        with pytest.raises(ApiError, match="at most 150 ") as caught:
            pieces(text, [size])
        assert caught.value.status == 413
        pieces(text[:100], [size])


def test_brackets_in_strings_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_VALUES", "MAX_OBJECTS", "MAX_LISTS", "MAX_NAMES", "MAX_OUTSIDE"):
        monkeypatch.setattr(json_scanner, limit, 20)
    body = ["[{,:}]" * 100 + '"', '\\"[{,:}]' * 100, "\\"]
    for size in (1, 2, 3, 1000):
        assert value(json.dumps(body).encode(), [size]) == body
