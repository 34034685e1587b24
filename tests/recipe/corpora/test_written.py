"""Transcripts as frames: the tokens of the text stay the same."""

import re
from dataclasses import replace
from random import Random

import pytest

from polyphi.data.shards import Sample
from polyphi.messages import Image, Message, Text
from polyphi.processing.label_grids import EMPTY
from polyphi.processing.tokenizer import Tokenizer
from polyphi_recipe.corpora import vision_speech, written_speech

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
    """Return the text without spaces and without repeated digits."""
    return re.sub(r"(\d)\1+", r"\1", text.replace(" ", ""))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([*TEXTS * 20, ". . red star .\n. . . 7"], 1024)


@pytest.mark.parametrize("text", TEXTS)
def test_frames_hold_the_tokens_of_the_text_in_order(text: str, tokenizer: Tokenizer) -> None:
    blank = tokenizer.encode(f" {EMPTY}")
    for seed in range(20):
        frames = written_speech.frames(text, tokenizer, Random(seed))
        ids = tokenizer.encode(frames)
        text_without_blanks = tokenizer.decode([i for i in ids if i not in blank])
        joined = "".join(written_speech.pieces(text, tokenizer))
        assert joined == text
        assert once_each(text_without_blanks) == once_each(text), (text_without_blanks, text)
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
    spoken = vision_speech.with_spoken_question(row, b"wav")
    spoken = replace(spoken, meta={**meta, "reference": "What is this?"})
    written = written_speech.audio_as_frames(spoken, tokenizer, Random(0))
    picture, question = written.messages[0].parts
    assert picture == Image(b"png") and isinstance(question, Text)
    assert question.text.replace(f" {EMPTY}", "").startswith("What")
    assert written.meta["named"] == meta["named"] and written.answer == "red"
