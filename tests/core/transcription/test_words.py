"""Seams of overlapping texts, and detection of loops."""

from itertools import pairwise

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from polyphi.processing.tokenizer import Tokenizer
from polyphi.transcription.words import (
    MAX_MANGLED,
    compression_ratio,
    join_texts,
    repetition,
    script,
    seam,
    token_spans,
    word_spans,
)

SPACED = [
    f"{a}{b}" for a in ("ka", "to", "mi", "re", "su") for b in ("n", "la", "do", "sh", "", "po")
]
BARE = [chr(0x4E00 + i) for i in range(30)]  # Han: no spaces


def joined(left: str, right: str, most: int) -> str | None:
    cuts = seam(left, right, most)
    return None if cuts is None else join_texts(left[: cuts[0]], right[cuts[1] :])


@settings(max_examples=80, deadline=None)
@given(
    st.booleans(),
    st.lists(st.integers(0, 29), min_size=4, max_size=40),
    st.data(),
)
def test_an_overlap_is_written_once(bare: bool, numbers: list[int], data: st.DataObject) -> None:
    """Two overlapping parts of one sequence of words: no word is lost or doubled, also if the words at the cuts are
    mangled."""
    names, space = (BARE, "") if bare else (SPACED, " ")
    words = [names[i] for i in numbers]
    begin = data.draw(st.integers(1, len(words) - 2))  # where the second one begins
    end = data.draw(st.integers(begin + 1, len(words) - 1))  # where the first one ends
    shared = words[begin:end]
    # The overlap of a sequence that repeats itself at the cut is ambiguous.
    assume(len(set(words[max(0, begin - 9) : end + 9])) == len(words[max(0, begin - 9) : end + 9]))
    sure = max(0, len(shared) - 2)
    bad_end = data.draw(st.integers(0, min(MAX_MANGLED, sure)))
    bad_begin = data.draw(st.integers(0, min(MAX_MANGLED, sure - bad_end)))
    left = words[: end - bad_end] + ["mmm" if not bare else "嗯"] * min(1, bad_end)
    right = ["hhh" if not bare else "哈"] * min(1, bad_begin) + words[begin + bad_begin :]
    most = len(shared) + 2
    assert joined(space.join(left), space.join(right), most) == space.join(words)


def test_case_and_punctuation_do_not_matter() -> None:
    assert joined("We met at noon. Then", "noon, then we ate.", 4) == "We met at noon. Then we ate."
    assert joined("今日は、雨です。", "雨です。傘を", 4) == "今日は、雨です。傘を"


def test_texts_without_a_seam() -> None:
    assert seam("one two three", "four five six", 3) is None
    assert seam("", "four", 3) is None and seam("one", "", 3) is None
    # One common word away from the cut may be chance.
    assert seam("the cat sat on", "and the dog", 3) is None
    assert seam("the cat sat", "sat down", 3) == (11, 3)


@given(st.text("ab  你好、カナ.", max_size=30))
def test_words_cover_a_text_except_its_spaces(text: str) -> None:
    spans = word_spans(text)
    assert "".join(text[a:b] for a, b in spans) == "".join(text.split())
    assert all(b <= c for (_, b), (c, _) in pairwise(spans))


def test_joined_texts_have_the_spaces_of_their_script() -> None:
    assert join_texts("one ", " two") == "one two"
    assert join_texts("你好。", "世界") == "你好。世界"
    assert join_texts("", " a ") == "a" and join_texts("a", "") == "a"


PROSE = {
    "en": "The committee met on Thursday to discuss the budget for the coming year. After a long debate members agreed "
    "that repairs to the old bridge could not be put off again, although nobody knew where the money would come from. "
    "One of them proposed to ask the neighbouring towns, whose people use it as well; another words that they had been "
    "asked three times already and had never answered. In the end they wrote a letter, signed by everybody. ",
    "de": "Am Abend sassen wir noch lange auf der Terrasse und sprachen darüber, wie das Dorf früher ausgesehen hatte. "
    "Meine Grossmutter erzählte von der Mühle am Bach, die längst abgerissen ist, und von dem Lehrer, der im Winter "
    "mit den Skiern zur Schule kam. ",
    "ja": "昨日は朝から雨が降っていたので、図書館で本を読んで過ごしました。夕方になると空が明るくなり、帰り道に"
    "小さな公園の桜がもう咲き始めているのを見つけて、少し得をした気分になりました。来週は友達と花見に行く約束です。",
}


def test_prose_is_no_loop_however_long() -> None:
    for text in PROSE.values():
        assert repetition(text) == 0 and compression_ratio(text) < 2.0
    numbers = " ".join(str(n) for n in range(1000, 4000))
    assert compression_ratio(numbers) < 4 and repetition(" ".join(PROSE.values())) == 0
    assert repetition("no no no no, " * 2) == 0  # said by people
    assert repetition("") == 0


def test_loops_are_detected_in_any_script() -> None:
    assert repetition(PROSE["en"] + "thank you. " * 20) == 40
    assert repetition("and then he words that " * 5) == 25
    assert repetition("ありがとう" * 6) == 30
    assert repetition("5" * 200) == 1  # one word; zlib detects it
    assert repetition(PROSE["ja"] + "x" * 900 + PROSE["en"]) == 1


def test_scripts() -> None:
    assert [script(t) for t in ("Grüße, 7", "こんにちは", "你好吗 ok", "привет", "7 !")] == [
        "Latin",
        "Han or kana",
        "Han or kana",
        "other",
        "",
    ]


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_tokens_cover_their_text(text: str) -> None:
    tokenizer = Tokenizer.train(["the quick brown fox", "図書館で本を読む"], vocab_size=384)
    tokens = tokenizer.encode(text)
    spans = token_spans(tokenizer, tokens)
    assert len(spans) == len(tokens)
    whole = tokenizer.decode(tokens, skip_special=True)
    at = 0
    for a, b in spans:
        assert a <= at <= b
        at = b
    assert at == len(whole) or not tokens
