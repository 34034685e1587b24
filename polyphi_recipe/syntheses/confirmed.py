"""Syntheses of syntheses.py that a second request confirms, for the built-in corpora (teacher_rows.py).

A text is judged beside its source: by the judge, or, where media must be seen, by the teacher in another request.
Answers about pages and charts are asked for again. Answers to the generator's spoken questions are compared with the
right ones.
"""

from dataclasses import replace

from polyphi.data.shards import Sample
from polyphi.types.messages import media
from polyphi.types.parts import Image
from polyphi_recipe.syntheses.media import ASKED_AGAIN, MOST_QUESTIONS
from polyphi_recipe.syntheses.prompts import PROMPTS
from polyphi_recipe.syntheses.syntheses import (
    AUDIO_QA,
    CAPTION,
    CHART_QA,
    NUMBER,
    OCR_QA,
    PASSAGE_TEXT,
    SPEECH_QA,
    SPEECH_SUMMARY,
    SPOKEN_ANSWER,
    judged,
    words,
)

PASSAGE = replace(
    PASSAGE_TEXT,
    checks=(judged(PROMPTS["passage_text_check"]),),
)
IMAGE_CAPTION = replace(
    CAPTION,
    checks=(
        replace(
            judged(PROMPTS["caption_check"]),
            shows=lambda sample, item: media(sample.messages, Image),
            by_judge=False,
        ),
    ),
)
PAGE_QUESTIONS = replace(OCR_QA, checks=(ASKED_AGAIN,), most_checked=MOST_QUESTIONS)
CHART_QUESTIONS = replace(CHART_QA, checks=(ASKED_AGAIN,), most_checked=MOST_QUESTIONS)

SPEECH_QUESTIONS = replace(
    SPEECH_QA,
    checks=(judged(PROMPTS["speech_qa_check"]),),
    most_checked=MOST_QUESTIONS,
)
AUDIO_QUESTIONS = replace(
    AUDIO_QA,
    checks=(judged(PROMPTS["audio_qa_check"]),),
    most_checked=MOST_QUESTIONS,
)
RECORDING_SUMMARIES = replace(
    SPEECH_SUMMARY,
    checks=(judged(PROMPTS["speech_summary_check"]),),
    most_checked=5,
)


def _known(sample: Sample, text: str) -> str:
    """Return a reason unless the last number of an answer, or its first yes or no, is the generator's answer."""
    expected = sample.answer.strip().casefold()
    results = [word for word in words(text) if word in ("yes", "no")][:1]
    if NUMBER.fullmatch(expected):
        results = NUMBER.findall(text)[-1:]
    return "" if results == [expected] else f"wrong: expected {expected}"


KNOWN_ANSWER = replace(SPOKEN_ANSWER, verify=_known)
