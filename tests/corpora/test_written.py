"""Speech in words: tokens that stay what they are."""

import re
from dataclasses import replace
from random import Random

import pytest

from polyphi.corpora import vision_speech, written_speech
from polyphi.data.shards import Sample
from polyphi.messages import Image, Message, Text
from polyphi.processing.grids import EMPTY
from polyphi.processing.tokenizer import Tokenizer

TEXTS = (
    "sept trois",
    "vierundvierzig",
    "What is 3 + 4?",
    "ななじゅう",
    "七十三",
    "37",
    "\u00fcber 5",
)


def once_each(text: str) -> str:
    """Without spaces, and with a digit once where it is repeated."""
    return re.sub(r"(\d)\1+", r"\1", text.replace(" ", ""))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([*TEXTS * 20, ". . red star .\n. . . 7"], 1024)


@pytest.mark.parametrize("text", TEXTS)
def test_frames_hold_the_tokens_of_the_text_in_order(text: str, tokenizer: Tokenizer) -> None:
    blank = tokenizer.encode(f" {EMPTY}")
    for seed in range(20):
        written = written_speech.frames(text, tokenizer, Random(seed))
        ids = tokenizer.encode(written)
        kept = tokenizer.decode([i for i in ids if i not in blank])
        # A token that is held for two frames is written twice.
        once = "".join(written_speech.pieces(text, tokenizer))
        assert once == text
        assert once_each(kept) == once_each(text), (kept, text)
        assert tokenizer.encode(" ") not in ([i] for i in ids), "no frame holds a space"


def test_frames_without_pauses_and_repeats_are_the_text(tokenizer: Tokenizer) -> None:
    class Never(Random):
        def randint(self, a: int, b: int) -> int:
            return 0

        def random(self) -> float:
            return 1.0

    assert written_speech.frames("sept trois", tokenizer, Never()) == f"sept trois {EMPTY}"


def test_a_spoken_question_in_words_keeps_its_picture(tokenizer: Tokenizer) -> None:
    messages = (Message.user(Image(b"png"), "What is this?"), Message.assistant("red"))
    meta = {"task": "colour", "language": "en", "named": [[["red star", 0.0, 0.0, 1.0, 1.0]]]}
    row = Sample("1", messages, "polyphi", "MIT", meta)
    asked = vision_speech.aloud(row, b"wav")
    asked = replace(asked, meta={**meta, "heard": "What is this?"})
    written = written_speech.heard(asked, tokenizer, Random(0))
    picture, question = written.messages[0].parts
    assert picture == Image(b"png") and isinstance(question, Text)
    assert question.text.replace(f" {EMPTY}", "").startswith("What")
    assert written.meta["named"] == meta["named"] and written.answer == "red"
