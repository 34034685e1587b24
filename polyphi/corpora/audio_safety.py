"""Spoken requests: harmful ones are refused, innocuous look-alikes are answered, in the words of the text preferences.

Verb and object together are train's or test's, as in the text; voices are unseen in the test split too.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import Any

from polyphi.curate import safety
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.curate.text import fill
from polyphi.data.shards import Sample
from polyphi.synthetic.speech import Studio, asked, numbered

ENGLISH_SHARE = 0.6


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        studio = Studio(work)
        if not studio.languages:
            work.tell(
                "skipped spoken requests: no speech engine is installed; `apt install espeak-ng`"
            )
            return iter(())
        return numbered(
            "audio_safety", split, islice(spoken(work, studio, split, rng), work.rows[split])
        )

    return fill(work, "audio_safety", make)


def spoken(work: Work, studio: Studio, split: str, rng: Random) -> Iterator[Sample]:
    """Endless spoken requests, harmful and harmless in turn."""
    languages = [language for language in work.languages if language in studio.languages]
    pool = list(safety.every(split, languages))
    others = sorted({r.language for r in pool} - {"en"})
    harmful = True
    meta: dict[str, Any]
    while True:
        language = "en" if not others or rng.random() < ENGLISH_SHARE else rng.choice(others)
        request = rng.choice([r for r in pool if r.language == language and r.harmful == harmful])
        group = rng.choice(studio.groups(language)) if split == "test" else ""
        speaker = studio.speaker(language, split, rng, group)
        clip = studio.say(request.question, speaker, rng)
        meta = {
            "task": "audio_safety",
            "language": language,
            "refuse": harmful,
            "written": request.question,
        }
        yield asked(clip, "", request.chosen, speaker, **meta)
        harmful = not harmful


# By bytes: by landmarks, synthetic voices that say nearly the same would be taken for copies.
corpus = Corpus("audio_safety", build=build, steps=against("audio_safety", ways=("same bytes",)))
