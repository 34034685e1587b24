"""The word error rate filter: finds planted wrong transcripts, refuses speech that a recognizer doesn't support."""

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi_eval.services import speech_synthesis
from polyphi_recipe.filters.transcripts import (
    Recogniser,
    WordErrorRateFilter,
    measure,
    pocketsphinx,
)
from polyphi_recipe.pipeline.documents import document
from polyphi_recipe.synthetic.waves import encode, resample

WORDS = [
    "seven",
    "nine",
    "two",
    "one",
    "dog",
    "cat",
    "house",
    "tree",
    "river",
    "bread",
    "water",
    "street",
    "green",
    "open",
    "little",
]


def clip(id: str, text: str, written: str, **meta: str) -> Sample:
    """Return a clip with its spoken text in `meta`, for a synthetic recognizer."""
    wave = np.zeros(1600 + len(text), np.float32)
    meta = {"language": "en", "engine": "flite", "spoken text": text, **meta}
    messages = (Message.user(Audio(encode(wave)), "Transcribe."), Message.assistant(written))
    return Sample(id, messages, "here", "MIT", meta)


def planted(n: int = 200) -> list[Sample]:
    """Return clips of which every fifth has another clip's transcript."""
    chance = random.Random(0)
    texts = [" ".join(chance.sample(WORDS, 5)) for _ in range(n)]
    return [clip(str(i), s, texts[i - 7] if i % 5 == 0 else s) for i, s in enumerate(texts)]


def listener(samples: list[Sample], mistakes: float) -> Recogniser:
    """Return a recognizer that replaces a share of the spoken words."""
    chance = random.Random(1)
    texts = iter([s.meta["spoken text"] for s in samples])

    def transcribe(audio: bytes, language: str) -> str:
        return " ".join(
            chance.choice(WORDS) if chance.random() < mistakes else word
            for word in next(texts).split()
        )

    return Recogniser("listener", transcribe)


@pytest.mark.parametrize("mistakes", [0.0, 0.1, 0.2])
def test_wrong_transcripts_are_found(mistakes: float) -> None:
    samples = planted()
    judge = WordErrorRateFilter(listener(samples, mistakes), limit=0.65)
    dropped = {s.id for s in samples if judge.filter(document(s)) is not True}
    wrong = {s.id for s in samples if int(s.id) % 5 == 0}
    precision, recall = len(dropped & wrong) / len(dropped), len(dropped & wrong) / len(wrong)
    print(f"{mistakes:.0%} mistakes: precision {precision:.0%}, recall {recall:.0%}")
    assert precision >= 0.97 and recall >= 0.85  # measured: 100, 100, 100 and 90 to 95 %


def test_a_recognizer_out_of_its_depth_is_refused() -> None:
    deaf = Recogniser("small", lambda audio, language: "", ("en",), {"espeak-ng": "70 %"})
    judge = WordErrorRateFilter(deaf, 0.5)
    with pytest.raises(ValueError, match="only en, not de: sample 1 "):
        judge.filter(document(clip("1", "sieben", "sieben", language="de")))
    with pytest.raises(ValueError, match=r"espeak-ng \(70 %\)"):
        judge.filter(document(clip("2", "seven", "seven", engine="espeak-ng")))
    question = clip(
        "3", "seven", "7", language="en", spoken="fr"
    )  # a French question, an English answer
    with pytest.raises(ValueError, match="not fr"):
        judge.filter(document(question))
    silent = Sample("4", (Message.user("Hi"), Message.assistant("Hello")), "", "")
    assert judge.filter(document(silent)) is True


def test_a_recognizer_is_measured_on_what_is_certain() -> None:
    samples = [s for s in planted() if int(s.id) % 5]
    assert measure(listener(samples, 0.0), samples) == 0
    assert 0.2 <= measure(listener(samples, 0.4), samples) <= 0.6
    with pytest.raises(ValueError, match="found none"):
        measure(listener([], 0.0), [])


@pytest.mark.long
@pytest.mark.skipif(
    speech_synthesis.unavailable("flite") is not None, reason="flite isn't installed"
)
def test_pocketsphinx_distinguishes_flites_transcripts(capsys) -> None:
    pytest.importorskip("pocketsphinx")
    texts = [
        "the cat sat by the river and looked at the water",
        "please open the window and close the door",
        "we bought bread and milk on the way home",
        "seven people came to the party last night",
        "the green house at the end of the street is old",
        "she read the letter twice before she answered",
    ]
    tts_pool = speech_synthesis.TTSPool()

    def spoken(i: int, written: str) -> Sample:
        wave, rate = tts_pool.speak(texts[i], speech_synthesis.Voice("flite", "en", "rms"))
        meta = {"language": "en", "engine": "flite"}
        messages = (Message.user(Audio(encode(resample(wave, rate)))), Message.assistant(written))
        return Sample(str(i), messages, "here", "MIT", meta)

    right = [spoken(i, text) for i, text in enumerate(texts)]
    wrong = [spoken(i, texts[i - 1]) for i in range(len(texts))]
    # Right and wrong texts have the same six recordings.
    recognizer = replace(pocketsphinx(), transcribe=cache(pocketsphinx().transcribe))
    judge = WordErrorRateFilter(recognizer, 0.4)
    accepted = [judge.filter(document(s)) is True for s in right]
    caught = [judge.filter(document(s)) is not True for s in wrong]
    rate = measure(recognizer, right)
    with capsys.disabled():
        counted = f"kept {sum(accepted)} of 6 right, caught {sum(caught)} of 6 wrong"
        print(f"\npocketsphinx on flite rms: median word error rate {rate:.0%}, {counted}")
    assert sum(accepted) >= 5 and all(caught)
