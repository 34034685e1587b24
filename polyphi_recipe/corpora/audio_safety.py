"""Spoken requests: harmful ones are refused, innocuous look-alikes answered, with the texts of the text preferences.

Things and places are split as in the text corpus; the splits have different voices.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import Any

from polyphi.data.shards import Sample
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw import safety
from polyphi_recipe.raw.real_text import fill
from polyphi_recipe.synthetic.speech import TTSSampler, audio_sample, numbered

ENGLISH_SHARE = 0.85
"""English has most requests: a small model must hear each thing dozens of times to tell it from its twin."""


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        tts = TTSSampler(work)
        if not tts.languages:
            work.report(
                "skipped spoken requests: no speech engine is installed; `apt install espeak-ng`"
            )
            return iter(())
        return numbered(
            "audio_safety", split, islice(spoken_requests(work, tts, split, rng), work.rows[split])
        )

    return fill(work, "audio_safety", make)


def spoken_requests(work: Work, tts: TTSSampler, split: str, rng: Random) -> Iterator[Sample]:
    """Yield spoken requests without end, harmful and harmless in turn."""
    languages = [language for language in work.languages if language in tts.languages]
    pool: dict[tuple[str, bool], list[safety.PreferencePair]] = {}
    for request in safety.every(split, languages):
        pool.setdefault((request.language, request.harmful), []).append(request)
    others = sorted({language for language, _ in pool} - {"en"})
    harmful = True
    meta: dict[str, Any]
    while True:
        language = "en" if not others or rng.random() < ENGLISH_SHARE else rng.choice(others)
        request = rng.choice(pool[language, harmful])
        group = rng.choice(tts.groups(language)) if split == "test" else ""
        speaker = tts.speaker(language, split, rng, group)
        wave = tts.synthesize(request.question, speaker, rng)
        meta = {
            "task": "audio_safety",
            "language": language,
            "refuse": harmful,
            "written": request.question,
        }
        yield audio_sample(wave, "", request.chosen, speaker, **meta)
        harmful = not harmful


# Compare bytes: landmarks would match synthetic voices with nearly the same text.
corpus = Corpus("audio_safety", build=build, steps=against("audio_safety", ways=("same bytes",)))
