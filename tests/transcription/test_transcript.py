"""Answers to the pieces of a recording are one text, and what is told of it early is never taken back."""

import random
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.messages import Completion
from polyphi.processing.tokenizer import Tokenizer
from polyphi.transcription.silence import Sound
from polyphi.transcription.transcript import Growing, Heard, Piece, join

TOKENIZER = Tokenizer.train(["a b c"], vocab_size=384)
SPACED, BARE = [f"k{n}" for n in range(40)], [chr(0x4E00 + n) for n in range(40)]


def followed(heard: list[Heard], texts: str) -> list[str]:
    growing, after = Growing(texts), [h.piece for h in heard[1:]]
    return [growing.add(h, piece) for h, piece in zip(heard, [*after, None], strict=True)]


def whole(heard: list[Heard], texts: str) -> str:
    sound = Sound(np.zeros(10, np.float32), np.zeros(10, np.float32), 0.1)
    found = join(TOKENIZER, sound, heard, texts)
    return found.text if texts == "transcript" else found.translation or ""


def test_the_last_words_before_an_overlap_wait_for_the_next_piece() -> None:
    first = "so we saw the quick brown fox jumps over the lazy dog and the ca"
    second = "the lazy dog and the cat slept"
    heard = [
        Heard(Piece(0, 20), Completion(first)),
        Heard(Piece(18, 40, True), Completion(second)),
    ]
    told = followed(heard, "transcript")
    assert told == [first.removesuffix(" and the ca"), " and the cat slept"]
    assert "".join(told) == whole(heard, "transcript")
    assert followed([replace(heard[0], answer=Completion("so we saw")), heard[1]], "both")[0] == ""


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_what_is_told_early_stays(rng: random.Random, bare: bool) -> None:
    """Pieces of one sequence of words that share some, with words missing, mangled and doubled near their ends, empty
    answers, and separators in any place."""
    names, space = (BARE, "") if bare else (SPACED, " ")
    said = [rng.choice(names) for _ in range(80)] if rng.random() < 0.3 else names * 2
    heard, at, clock = list[Heard](), 0, 0.0
    for _ in range(rng.randrange(1, 6)):
        length, overlaps = rng.randrange(0, 25), rng.random() < 0.7
        back = rng.randrange(0, 8) if overlaps and heard else 0
        mine = said[max(0, at - back) : at + length]
        for place in (rng.choice([0, 1, 2, -1, -2, -3]) for _ in range(rng.randrange(3))):
            if mine:
                mine[place % len(mine)] = rng.choice(["hm", "", "字", mine[0]])
        if rng.random() < 0.3:
            mine.insert(rng.randrange(len(mine) + 1), " <sep> ")
        text = rng.choice(["", " "]) + space.join(mine) + rng.choice(["", " \n"])
        start = clock - back / 4 if overlaps else clock
        clock = start + len(mine) / 3 + 1
        heard.append(Heard(Piece(max(0.0, start), clock, overlaps), Completion(text)))
        at += length
    for texts in ("transcript", "translation", "both"):
        assert "".join(followed(heard, texts)) == whole(heard, texts)
