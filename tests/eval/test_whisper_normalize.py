"""Whisper's normalizers: the same strings as transformers', in linear time."""

import doctest
import hashlib
import json
import random
import time
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper_normalizer.english import EnglishNumberNormalizer

from polyphi_eval import whisper_normalize
from polyphi_eval.whisper_normalize import basic, english

SPELLINGS = files("whisper_normalizer") / "normalizers" / "english.json"
SHA256 = "6607f948be9824d2e1b2fa2223cd94c06c45afa4e05ea0e3d5e1f2bdffde2465"
SENTENCES = """
Mr. Quilter is the apostle of the middle classes, and we're glad to welcome his gospel.
uh I think it's twenty-one dollars
the colour of money
'cause I don't wanna say y'all'd've come; ma'am, he's been gone, she'd done it, they'd gone, it's got
i'ma'am let's 's been't 'ren't ain't can't won't I'd I'll I've I'm
Dr. St. John Jr., Prof. Capt. Gov. Ald. Gen. Sen. Rep. Pres. Rev. Hon. Asst. Assoc. Lt. Col. Sr. Esq.'s mrs
one oh one, nineteen ninety-nine, twenty twenty, two thousand and twenty four, twenty-first of the nineties
two and a half million, three and a half, and a half, a cat and a half, ten and a half
three dollars and five cents, $3.50, fifty cents, $0.05, 2 pounds, 20 euros 1 cent, a dollar, cents
fifty percent, five per cent, five per hour, percent, 5 % 5% %, minus five, minus me, plus or minus 3
double seven triple o, double decker, double eleven, double double two
three point one four, point five million, point hundred, one point, 192 point 168 point 0 point 1, 3.5 million
hundred hundredth, two hundred and one hundreds, zero hundred, five zeroth, thousandth, millions of ones, sixes
1,000,000 2nd 3 rd 1960s 60 s 4x4 a1b2 007 0 00 1 1s ٣ ² ½ ninth nineth eighth twelfth
[noise] <unk> (laughs) () ((a) b) [a (b] c) ]a[ >b< he said (um) hmm mhm mmm mm _mm_ uh-huh
naïve café Æsop œuvre straße Łódź Þór đ ø ʼn ﬁ Ⅳ é̂ 中文 가각 ʰ it ' s 'tis rock 'n' roll a_b
the grey programme organised a theatre in favour of travellers; analyse aluminium, mum
$ £ € ¢ . .5 5. ... $5million €5.5k a.b a. 1.a $-5 -$5 +3 #1 1/2 3–4 5,6,7
""".strip().splitlines()

BESIDE = "a half $5 £0.05 20% 1,000 3rd 1960s 2.5 0 10 100 ¢7 ½ cat dollar's and and"


@pytest.fixture(scope="module")
def library():
    module = pytest.importorskip("transformers.models.whisper.english_normalizer")
    table = json.loads(SPELLINGS.read_text()) | {"mm": "hmm"}
    plain, split = module.BasicTextNormalizer(), module.BasicTextNormalizer(split_letters=True)
    return module.EnglishTextNormalizer(table), plain, split


def same(library, text: str) -> None:
    theirs, plain, split = library
    assert basic(text) == plain(text)
    assert basic(text, split_letters=True) == split(text)
    assert english(text) == theirs(text)


@pytest.mark.parametrize("text", SENTENCES)
def test_sentences_are_as_the_librarys(library, text: str) -> None:
    same(library, text)
    same(library, text.upper())


def test_words_of_numbers_in_any_order_are_as_the_librarys(library) -> None:
    draw = random.Random(0)
    known = [*sorted(EnglishNumberNormalizer().words), *BESIDE.split()]
    for _ in range(1000):
        same(library, " ".join(draw.choices(known, k=draw.randint(1, 9))))


letters = st.text("abcst '.,-$%()[]<>0123459\u0301é\u200d中文。がｶﾞ½ \t\u2028_", max_size=40)


@settings(max_examples=300, deadline=None)
@given(st.one_of(letters, st.text(max_size=40)))
def test_texts_of_any_letters_are_as_the_librarys(library, text: str) -> None:
    same(library, text)


def test_the_table_of_spellings_is_whispers() -> None:
    assert hashlib.sha256(SPELLINGS.read_bytes()).hexdigest() == SHA256
    assert english("m_m") == "m m" and english("_mm_ colour") == "hmm color"


def test_examples_are_so() -> None:
    assert doctest.testmod(whisper_normalize).failed == 0


@pytest.mark.parametrize(
    "text",
    [
        "[{(" * 60_000,
        "(" * 200_000,
        " " * 200_000,
        "9" * 100_000,
        "one " * 50_000,
        "9" * 999 + " million " * 1000,
        "point five million " * 10_000,
        "\ud800 \x00 \u202e",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_no_text_is_too_much(text: str) -> None:
    began = time.monotonic()
    english(text), basic(text, split_letters=True)
    assert time.monotonic() - began < 30  # quadratic time would be hours
