"""Parsing of judges' replies."""

import pytest

from polyphi_eval.judge import points, rating


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("The answer is good. Rating: [[7]]", 7),
        ("Rating: [[8.5]]", 8.5),
        ("I first thought [3], but in the end [[6]]; not [[9]].", 6),
        ("Rating: [4]", 4),
        ("Rating: [[10]]", 10),
        ("Rating: [[11]]", None),
        ("Rating: [[0]]", None),
        ("Rating: 7", None),
        ("[[rating]]", None),
        ("[[ 7 ]]", None),
        ("", None),
    ],
)
def test_ratings(reply: str, expected: float | None) -> None:
    assert rating(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"explanation": "fine", "score": 6}', 6),
        ('```json\n{"explanation": "two\nlines", "score": "5"}\n```', 5),
        ('Here {is} it: {"score": 2.5}', 2.5),
        ('{"explanation": "no summary", "score": "N/A"}', None),
        ('{"score": 8}', None),
        ('{"score": null}', None),
        ('{"points": 3}', None),
        ("6", None),
        ("{" * 300_000, None),
    ],
)
def test_points_of_a_json_object(reply: str, expected: float | None) -> None:
    assert points(reply, 1, 7) == expected
