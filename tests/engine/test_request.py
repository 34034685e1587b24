"""Text that may be shown: whole characters, no beginnings of stop strings; pieces join to the whole."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polyphi.engine.request import AnswerText
from polyphi.processing.tokenizer import Tokenizer

BYTES = Tokenizer.train(
    ["ab"], vocab_size=320
)  # hardly any merges: letters outside ASCII take several tokens
WORDS = Tokenizer.train(["abcab abcde <sep> yes no été 日本 END end"] * 3, vocab_size=420)
SNIPPETS = st.text(alphabet="ab<>sep é日本😀\n", max_size=12)


def expected(text: str, stops: tuple[str, ...]) -> str:
    """What is left of a text: up to the first stop string to be complete, reading letter by letter."""
    for end in range(len(text) + 1):
        found = [text[:end].find(s) for s in stops if s in text[:end]]
        if found:
            return text[: min(found)]
    return text


@given(
    SNIPPETS,
    st.lists(st.text(alphabet="ab<>sep é日", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_pieces_join_to_the_text_before_the_first_stop(text: str, stops: tuple[str, ...]) -> None:
    shown = AnswerText(BYTES, stops)
    pieces = [shown.add(token) for token in BYTES.encode(text)]
    pieces.append(shown.finish())
    assert "".join(pieces) == expected(text, stops)
    assert shown.stopped == (expected(text, stops) != text or any(text.endswith(s) for s in stops))
    assert all("\ufffd" not in piece for piece in pieces)


@given(st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=20))
def test_any_tokens_at_all_join_to_their_decoding(tokens: list[int]) -> None:
    """Broken characters included."""
    shown = AnswerText(BYTES)
    pieces = [shown.add(token) for token in tokens]
    assert "".join([*pieces, shown.finish()]) == BYTES.decode(tokens, skip_special=True)


@pytest.mark.xfail(
    strict=True, reason="of two stop strings in one token the one that begins first wins"
)
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, WORDS.vocab_size - 1), max_size=12),
    st.lists(st.text(alphabet="abcdeEND ", min_size=1, max_size=3), max_size=3).map(tuple),
)
@example(WORDS.encode("abc"), ("abc", "b"))
def test_how_a_text_is_cut_into_tokens_does_not_move_its_stop(
    tokens: list[int], stops: tuple[str, ...]
) -> None:
    shown = AnswerText(WORDS, stops)
    pieces = [shown.add(token) for token in tokens]
    text = WORDS.decode(tokens, skip_special=True)
    assert "".join([*pieces, shown.finish()]) == expected(text, stops)


def test_nothing_is_shown_that_may_become_a_stop_string() -> None:
    shown = AnswerText(BYTES, ("<sep>",))
    pieces = [shown.add(token) for token in BYTES.encode("a<se")]
    assert "".join(pieces) == "a"
    assert shown.add(BYTES.encode("b")[0]) == "<seb"
    assert not shown.stopped


def test_a_character_is_shown_when_it_is_whole() -> None:
    tokens = BYTES.encode("😀")
    assert len(tokens) == 4
    shown = AnswerText(BYTES)
    assert [shown.add(t) for t in tokens] == ["", "", "", "😀"]
    shown = AnswerText(BYTES)
    assert [shown.add(t) for t in tokens[:2]] == ["", ""]
    assert shown.finish() == "\ufffd"
