"""Speech as a recogniser writes it, one token a frame, and what is to be done with it. [ours]

    . 3 . . 7 . .    Transcribe the audio clip into text.    ->   37
    sept . . trois   Translate the audio to English.         ->   seven three
    PICTURE . What . colour . . is this . ?                  ->   red

These are the conversations of `asr`, `ast`, `sqa` and `vision_speech` with the spoken words in writing, blanks between
their tokens (and the picture in words, where the stage asks for that). A
small language model does with speech only what it could do with words, and it is frozen before the first clip comes:
here it learns the requests, so that the speech stages have nothing to learn but what is in a frame.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from random import Random

from polyphi.corpora import asr, ast, sqa, vision_speech
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.text import fill, shuffled
from polyphi.data.shards import Sample
from polyphi.messages import Audio, Part, Text
from polyphi.processing.grids import EMPTY
from polyphi.processing.tokenizer import Tokenizer
from polyphi.synthetic.speech import SilentStudio, numbered

SHARES = {"asr": 34, "ast": 26, "sqa": 24, "vision_speech": 16}
"""Corpus whose conversations these are -> its share."""
TRANSCRIPTIONS = {"digits": 20, "numbers": 45, "words": 10, "questions": 25}
"""Task of `asr` -> its share of the transcriptions. Each of eight languages has other number words; with fewer
examples a model transcribed 29 of 96 numbers that stood in its frames (LOG.md)."""
KEPT = ("task", "language", "named")
"""What is known of a conversation with its clip and holds without it."""
LONGEST_PAUSE = 3
"""Blanks between two tokens. A frame is 80 ms, and a spoken word takes four to eight."""
HELD = 0.2
"""Share of digits that are written twice, as recognisers do that hear one in two frames. Words written twice would be
another word."""


def pieces(text: str, tokenizer: Tokenizer) -> list[str]:
    """The tokens of a text as text; characters of several tokens stay whole."""
    found, ids = [], list[int]()
    for id in tokenizer.encode(text):
        ids.append(id)
        piece = tokenizer.decode(ids)
        if "\ufffd" not in piece:
            found.append(piece)
            ids = []
    return found


def frames(text: str, tokenizer: Tokenizer, rng: Random) -> str:
    """The tokens of a text with blanks about them, as a recogniser's best guess for each frame reads.

    A blank is written " .": before a blank space the tokenizer begins a new token, so that the tokens of the text stay
    what they are."""
    blank = f" {EMPTY}"
    written = blank * rng.randint(0, LONGEST_PAUSE)
    for piece in pieces(text, tokenizer):
        if piece == " ":  # no audio frame is aligned with a space (train/alignment.py)
            continue
        twice = rng.random() < HELD and piece.isdigit()
        written += piece * (1 + twice) + blank * rng.randint(0, LONGEST_PAUSE)
    return written + blank


def heard(sample: Sample, tokenizer: Tokenizer, rng: Random) -> Sample:
    """The sample with frames of words in place of its clip."""

    def in_words(part: Part) -> Part:
        if not isinstance(part, Audio):
            return part
        return Text(frames(sample.meta["heard"], tokenizer, rng))

    messages = tuple(replace(m, parts=tuple(map(in_words, m.parts))) for m in sample.messages)
    meta = {key: sample.meta[key] for key in KEPT if key in sample.meta} | {"clip": "in words"}
    return replace(sample, messages=messages, meta=meta)


def about_pictures(work: Work, rng: Random, studio: SilentStudio) -> Iterator[Sample]:
    """Endless pictures of `image_qa` with their questions asked aloud."""
    rows = vision_speech.written(work, "train", studio, rng)
    while rows:
        for row in shuffled(rows, rng):
            meta = {**row.meta, "heard": row.prompt[-1].text}
            yield replace(vision_speech.aloud(row, b""), meta=meta)


def conversations(work: Work, rng: Random) -> Iterator[Sample]:
    """Endless conversations in the proportions of `SHARES`."""
    assert work.tokenizer is not None, "frames are written in tokens"
    studio, tokenizer = SilentStudio(work), Tokenizer.load(work.tokenizer)
    kinds = asr.Kinds(work, "train", rng, studio)
    asker = sqa.Asker(work, "train", rng, studio)
    streams: dict[str, Callable[[], Sample | None]] = {
        "asr": lambda: kinds.closed(
            rng.choices(list(TRANSCRIPTIONS), list(TRANSCRIPTIONS.values()))[0]
        ),
        "ast": partial(next, ast.training(work, rng, studio)),
        "sqa": partial(next, sqa.stream(asker, rng)),
        "vision_speech": partial(next, about_pictures(work, rng, studio), None),
    }
    while True:
        name = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if (sample := streams[name]()) is not None:
            yield heard(sample, tokenizer, rng)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        return numbered("written_speech", split, conversations(work, rng))

    return fill(work, "written_speech", make)


corpus = Corpus("written_speech", build=build, corpora=("image_qa",), tokenizer=True)
