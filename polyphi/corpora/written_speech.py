"""Speech as a recogniser writes it, one token a frame, and what is to be done with it. [ours]

    . 3 . . 7 . .    Transcribe the audio clip into text.    ->   37
    sept . . trois   Translate the audio to English.         ->   seven three

These are the conversations of `asr`, `ast` and `sqa` with the spoken words in writing, blanks between their tokens. A
small language model does with speech only what it could do with words, and it is frozen before the first clip comes:
here it learns the requests, so that the speech stages have nothing to learn but what is in a frame.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from random import Random

from polyphi.chat import Audio, Part, Text
from polyphi.corpora import asr, ast, sqa
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.speech import SilentStudio, numbered
from polyphi.curate.text import fill
from polyphi.data.shards import Sample
from polyphi.processing.grids import EMPTY
from polyphi.processing.tokenizer import Tokenizer

SHARES = {"asr": 40, "ast": 30, "sqa": 30}
"""Corpus whose conversations these are -> its share."""
LONGEST_PAUSE = 3
"""Blanks between two tokens. A frame is 80 ms, and a spoken word takes four to eight."""
HELD = 0.2
"""Share of tokens that are written twice, as recognisers do that see a word in two frames."""


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
        twice = rng.random() < HELD and (piece.isdigit() or piece.startswith(" "))
        written += piece * (1 + twice) + blank * rng.randint(0, LONGEST_PAUSE)
    return written + blank


def heard(sample: Sample, tokenizer: Tokenizer, rng: Random) -> Sample:
    """The sample with frames of words in place of its clip."""

    def in_words(part: Part) -> Part:
        if not isinstance(part, Audio):
            return part
        return Text(frames(sample.meta["heard"], tokenizer, rng))

    messages = tuple(replace(m, parts=tuple(map(in_words, m.parts))) for m in sample.messages)
    meta = {"task": sample.meta["task"], "language": sample.meta["language"], "clip": "in words"}
    return replace(sample, messages=messages, meta=meta)


def conversations(work: Work, rng: Random) -> Iterator[Sample]:
    """Endless conversations in the proportions of `SHARES`."""
    assert work.tokenizer is not None, "frames are written in tokens"
    studio, tokenizer = SilentStudio(work), Tokenizer.load(work.tokenizer)
    kinds = asr.Kinds(work, "train", rng, studio)
    closed = {kind: share for kind, share in asr.SHARES.items() if kind != "open"}
    asker = sqa.Asker(work, "train", rng, studio)
    streams: dict[str, Callable[[], Sample | None]] = {
        "asr": lambda: kinds.closed(rng.choices(list(closed), list(closed.values()))[0]),
        "ast": partial(next, ast.training(work, rng, studio)),
        "sqa": partial(next, sqa.stream(asker, rng)),
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
