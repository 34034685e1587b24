"""Normalizers and error rates, against hand-made counts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi_eval.text.normalization import (
    DIGIT_WORDS,
    cer,
    characters,
    digits,
    errors,
    normalize,
    numbers,
    wer,
    words,
)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Don't  PANIC!", "en", "dont panic"),
        ("L'eau, ça va ?", "fr", "l eau ça va"),
        ("Straße", "de", "strasse"),
        ("It is -3.5, or 1,234.", "en", "it is -3.5 or 1234"),
        ("ＡＢＣ　１２", "en", "abc 12"),
        ("你好，世界。 一", "zh", "你好世界一"),
        ("¿Qué?", "es", "qué"),
        ("", "en", ""),
    ],
)
def test_normalize(text: str, language: str, expected: str) -> None:
    assert normalize(text, language) == expected


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_normalizing_twice_changes_nothing(text: str) -> None:
    # Case folding can yield characters that NFKC composes anew, so one more pass may settle them; then it is stable.
    settled = normalize(normalize(text))
    assert normalize(settled) == settled


def test_units() -> None:
    assert words("One, two") == ["one", "two"]
    assert words("三 四", "zh") == ["三", "四"]
    assert characters("ab cd") == list("abcd")


def test_digits_written_and_spelled() -> None:
    assert digits("7 1-3.") == "713"
    assert digits("seven one three") == "713"
    assert digits("deux, cinq", "fr") == "25"
    assert digits("三五〇", "zh") == "350"
    assert digits("きゅう に 4", "ja") == "924"
    assert digits("no digit here") == ""
    for language, forms in DIGIT_WORDS.items():
        assert len(forms) == 10
        assert digits(" ".join(f[0] for f in forms), language) == "0123456789"


def test_numbers() -> None:
    assert numbers("9-4 = 5") == [9, 4, 5]
    assert numbers("x = -4.5, then 1,234") == [-4.5, 1234]
    assert numbers("there are three") == [3]
    assert numbers("nothing") == []


def test_error_counts() -> None:
    counts = errors(list("abcd"), list("axcde"))
    assert (counts.substitutions, counts.deletions, counts.insertions, counts.units) == (1, 0, 1, 4)
    assert errors([], ["a"]).total == 1
    assert errors(["a", "b"], []).rate == 1.0
    assert errors([], []).rate == 0.0


def test_rates() -> None:
    assert wer("one two three four", "One, two three") == 0.25
    assert wer("三四", "三五", "zh") == 0.5
    assert cer("abcd", "abxd") == 0.25
    assert wer("a", "a b c") == 2.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_edits_are_fewest(a: list[str], b: list[str]) -> None:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, previous = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    assert errors(a, b).total == row[-1]
