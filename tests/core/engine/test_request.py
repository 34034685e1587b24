"""Text that is final: whole characters, no prefixes of stop strings; pieces join to the whole."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from polyphi.engine.request import AnswerText
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.sampling import SamplingParams

BYTES = Tokenizer.train(
    ["ab"], vocab_size=320
)  # few merges: characters outside ASCII take several tokens
WORDS = Tokenizer.train(["abcab abcde <sep> yes no été 日本 END end"] * 3, vocab_size=420)
SNIPPETS = st.text(alphabet="ab<>sep é日本😀\n", max_size=12)


def expected(text: str, stops: tuple[str, ...]) -> str:
    """The text up to the first stop string to be complete, reading character by character."""
    for end in range(len(text) + 1):
        starts = [text[:end].find(s) for s in stops if s in text[:end]]
        if starts:
            return text[: min(starts)]
    return text


@given(
    SNIPPETS,
    st.lists(st.text(alphabet="ab<>sep é日", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_pieces_join_to_the_text_before_the_first_stop(text: str, stops: tuple[str, ...]) -> None:
    answer = AnswerText(BYTES, SamplingParams(stop=stops))
    pieces = [answer.add(token) for token in BYTES.encode(text)]
    pieces.append(answer.finish())
    assert "".join(pieces) == expected(text, stops)
    stopped = expected(text, stops) != text or any(text.endswith(s) for s in stops)
    assert (answer.stop_string in stops) == stopped
    assert all("\ufffd" not in piece for piece in pieces)


@given(st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=20))
def test_any_tokens_at_all_join_to_their_decoding(tokens: list[int]) -> None:
    """Incomplete characters included."""
    answer = AnswerText(BYTES)
    pieces = [answer.add(token) for token in tokens]
    assert "".join([*pieces, answer.finish()]) == BYTES.decode(tokens, skip_special=True)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, WORDS.vocab_size - 1), max_size=12),
    st.lists(st.text(alphabet="abcdeEND ", min_size=1, max_size=3), max_size=3).map(tuple),
)
@example(WORDS.encode("abc"), ("abc", "b"))
def test_how_a_text_is_cut_into_tokens_does_not_move_its_stop(
    tokens: list[int], stops: tuple[str, ...]
) -> None:
    answer = AnswerText(WORDS, SamplingParams(stop=stops))
    pieces = [answer.add(token) for token in tokens]
    text = WORDS.decode(tokens, skip_special=True)
    assert "".join([*pieces, answer.finish()]) == expected(text, stops)


def test_the_start_of_a_stop_string_is_held_back() -> None:
    answer = AnswerText(BYTES, SamplingParams(stop=("<sep>",)))
    pieces = [answer.add(token) for token in BYTES.encode("a<se")]
    assert "".join(pieces) == "a"
    assert answer.add(BYTES.encode("b")[0]) == "<seb"
    assert answer.stop_string is None


def test_a_character_is_returned_when_it_is_complete() -> None:
    tokens = BYTES.encode("😀")
    assert len(tokens) == 4
    answer = AnswerText(BYTES)
    assert [answer.add(t) for t in tokens] == ["", "", "", "😀"]
    answer = AnswerText(BYTES)
    assert [answer.add(t) for t in tokens[:2]] == ["", ""]
    assert answer.finish() == "\ufffd"


@given(
    SNIPPETS,
    st.lists(st.text(alphabet="ab<>sep é日", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_an_included_stop_string_ends_the_text(text: str, stops: tuple[str, ...]) -> None:
    answer = AnswerText(BYTES, SamplingParams(stop=stops, include_stop=True))
    pieces = [answer.add(token) for token in BYTES.encode(text)]
    pieces.append(answer.finish())
    assert "".join(pieces) == expected(text, stops) + (answer.stop_string or "")


@given(SNIPPETS, st.integers(0, 14))
def test_the_text_of_the_first_tokens_has_no_stop_string(text: str, count: int) -> None:
    """With `min_tokens`: the search begins after them, at the next whole character."""
    stops = ("a", "é")
    tokens = BYTES.encode(text)
    while BYTES.decode(tokens[:count]).endswith("\ufffd"):
        count += 1
    answer = AnswerText(BYTES, SamplingParams(stop=stops, min_tokens=count))
    pieces = [answer.add(token) for token in tokens]
    pieces.append(answer.finish())
    before = BYTES.decode(tokens[:count])
    assert "".join(pieces) == before + expected(text[len(before) :], stops)


def test_control_tokens_are_part_of_the_text_on_request() -> None:
    tokens = [*BYTES.encode("a"), BYTES.control("<|user|>"), *BYTES.encode("b")]
    for skip, text in ((True, "ab"), (False, "a<|user|>b")):
        answer = AnswerText(BYTES, SamplingParams(skip_special_tokens=skip))
        assert "".join([*map(answer.add, tokens), answer.finish()]) == text
