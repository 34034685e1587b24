"""Speech tasks with text frames instead of audio: one token per frame, as a recogniser outputs it. [ours]

    . 3 . . 7 . .    Transcribe the audio clip into text.    ->   37
    sept . . trois   Translate the audio to English.         ->   seven three
    PICTURE . What . colour . . is this . ?                  ->   red

These are the conversations of `asr`, `ast`, `sqa` and `vision_speech` with the transcript instead of audio, with blanks
between its tokens (and with the image in words, where the stage requests that). A small language model can do with
speech only what it can do with text, and it is frozen before the speech stages. Here it learns their tasks, so that the
speech stages only train the encoder and projector to output the content of a frame.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from random import Random

from polyphi.data.shards import Sample
from polyphi.messages import Audio, Part, Text
from polyphi.processing.label_grids import EMPTY
from polyphi.processing.tokenizer import Tokenizer
from polyphi_recipe.corpora import asr, ast, sqa, vision_speech
from polyphi_recipe.curate.corpus import Corpus, Work
from polyphi_recipe.curate.text import fill, shuffled
from polyphi_recipe.synthetic.speech import SilentTTSSampler, numbered

SHARES = {"asr": 34, "ast": 26, "sqa": 24, "vision_speech": 16}
"""Corpus of the conversations -> its share."""
TRANSCRIPTIONS = {"digits": 20, "numbers": 45, "words": 10, "questions": 25}
"""Task of `asr` -> its share of the transcriptions. The eight languages have different number words; with fewer
examples a model transcribed 29 of 96 numbers in its frames (LOG.md)."""
META_KEYS = ("task", "language", "named")
"""Keys of `meta` that are valid without the audio."""
LONGEST_PAUSE = 3
"""Maximum number of blanks between two tokens. A frame is 80 ms; a spoken word takes four to eight frames."""
REPEAT_SHARE = 0.2
"""Share of digits that are repeated, as in the output of a recogniser for two frames of one digit. A repeated part of a
word would give another word."""


def pieces(text: str, tokenizer: Tokenizer) -> list[str]:
    """Return the tokens of a text as strings; characters of several tokens stay whole."""
    texts, ids = [], list[int]()
    for id in tokenizer.encode(text):
        ids.append(id)
        piece = tokenizer.decode(ids)
        if "\ufffd" not in piece:
            texts.append(piece)
            ids = []
    return texts


def frames(text: str, tokenizer: Tokenizer, rng: Random) -> str:
    """Return the tokens of a text with blanks between them, as the argmax of a recogniser for each frame.

    A blank is " .": the tokenizer starts a new token at a space, so that the tokens of the text don't change."""
    blank = f" {EMPTY}"
    output = blank * rng.randint(0, LONGEST_PAUSE)
    for piece in pieces(text, tokenizer):
        if piece == " ":  # no audio frame is aligned with a space (train/alignment.py)
            continue
        repeated = rng.random() < REPEAT_SHARE and piece.isdigit()
        output += piece * (1 + repeated) + blank * rng.randint(0, LONGEST_PAUSE)
    return output + blank


def audio_as_frames(sample: Sample, tokenizer: Tokenizer, rng: Random) -> Sample:
    """Return the sample with text frames instead of audio."""

    def in_words(part: Part) -> Part:
        if not isinstance(part, Audio):
            return part
        return Text(frames(sample.meta["reference"], tokenizer, rng))

    messages = tuple(replace(m, parts=tuple(map(in_words, m.parts))) for m in sample.messages)
    meta = {key: sample.meta[key] for key in META_KEYS if key in sample.meta} | {"clip": "in words"}
    return replace(sample, messages=messages, meta=meta)


def image_questions(work: Work, rng: Random, tts: SilentTTSSampler) -> Iterator[Sample]:
    """Yield images of `image_qa` with spoken questions without end."""
    rows = vision_speech.written_questions(work, "train", tts, rng)
    while rows:
        for row in shuffled(rows, rng):
            meta = {**row.meta, "reference": row.prompt[-1].text}
            yield replace(vision_speech.with_spoken_question(row, b""), meta=meta)


def conversations(work: Work, rng: Random) -> Iterator[Sample]:
    """Yield conversations without end, in the proportions of `SHARES`."""
    assert work.tokenizer is not None, "frames are written in tokens"
    tts, tokenizer = SilentTTSSampler(work), Tokenizer.load(work.tokenizer)
    asr_sampler = asr.SpeechSampler(work, "train", rng, tts)
    question_sampler = sqa.QuestionSampler(work, "train", rng, tts)
    streams: dict[str, Callable[[], Sample | None]] = {
        "asr": lambda: asr_sampler.closed(
            rng.choices(list(TRANSCRIPTIONS), list(TRANSCRIPTIONS.values()))[0]
        ),
        "ast": partial(next, ast.training(work, rng, tts)),
        "sqa": partial(next, sqa.stream(question_sampler, rng)),
        "vision_speech": partial(next, image_questions(work, rng, tts), None),
    }
    while True:
        name = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if (sample := streams[name]()) is not None:
            yield audio_as_frames(sample, tokenizer, rng)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        return numbered("written_speech", split, conversations(work, rng))

    return fill(work, "written_speech", make)


corpus = Corpus("written_speech", build=build, corpora=("image_qa",), tokenizer=True)
