"""Answers to the pieces of a recording join to one text, and streamed text is final."""

import random
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.processing.tokenizer import Tokenizer
from polyphi.transcription.transcript import Piece, PieceAnswer, StreamedText, join
from polyphi.transcription.vad import VoiceFeatures
from polyphi.types.completion import Completion

TOKENIZER = Tokenizer.train(["a b c"], vocab_size=384)
SPACED, BARE = [f"k{n}" for n in range(40)], [chr(0x4E00 + n) for n in range(40)]


def streamed(answers: list[PieceAnswer], texts: str) -> list[str]:
    text, after = StreamedText(texts), [a.piece for a in answers[1:]]
    return [text.add(a, piece) for a, piece in zip(answers, [*after, None], strict=True)]


def whole(answers: list[PieceAnswer], texts: str) -> str:
    sound = VoiceFeatures(np.zeros(10, np.float32), np.zeros(10, np.float32), 0.1)
    transcript = join(TOKENIZER, sound, answers, texts)
    return transcript.text if texts == "transcript" else transcript.translation or ""


def test_the_last_words_before_an_overlap_wait_for_the_next_piece() -> None:
    first = "so we saw the quick brown fox jumps over the lazy dog and the ca"
    second = "the lazy dog and the cat slept"
    answers = [
        PieceAnswer(Piece(0, 20), Completion(first)),
        PieceAnswer(Piece(18, 40, True), Completion(second)),
    ]
    deltas = streamed(answers, "transcript")
    assert deltas == [first.removesuffix(" and the ca"), " and the cat slept"]
    assert "".join(deltas) == whole(answers, "transcript")
    assert (
        streamed([replace(answers[0], answer=Completion("so we saw")), answers[1]], "both")[0] == ""
    )


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_streamed_text_is_final(rng: random.Random, bare: bool) -> None:
    """Overlapping pieces of one sequence of words, with words missing, mangled and doubled near their ends, empty
    answers, and separators anywhere."""
    names, space = (BARE, "") if bare else (SPACED, " ")
    spoken = [rng.choice(names) for _ in range(80)] if rng.random() < 0.3 else names * 2
    answers, at, clock = list[PieceAnswer](), 0, 0.0
    for _ in range(rng.randrange(1, 6)):
        length, overlaps = rng.randrange(0, 25), rng.random() < 0.7
        back = rng.randrange(0, 8) if overlaps and answers else 0
        mine = spoken[max(0, at - back) : at + length]
        for index in (rng.choice([0, 1, 2, -1, -2, -3]) for _ in range(rng.randrange(3))):
            if mine:
                mine[index % len(mine)] = rng.choice(["hm", "", "字", mine[0]])
        if rng.random() < 0.3:
            mine.insert(rng.randrange(len(mine) + 1), " <sep> ")
        text = rng.choice(["", " "]) + space.join(mine) + rng.choice(["", " \n"])
        start = clock - back / 4 if overlaps else clock
        clock = start + len(mine) / 3 + 1
        answers.append(PieceAnswer(Piece(max(0.0, start), clock, overlaps), Completion(text)))
        at += length
    for texts in ("transcript", "translation", "both"):
        assert "".join(streamed(answers, texts)) == whole(answers, texts)
