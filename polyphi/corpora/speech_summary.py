"""Longer clips and one short sentence about each: which of six topics the talk is on. Few, as in the report (1 %).

"cat, dog, lion, cow, ..." -> "A list of animals."
"""

from collections.abc import Iterator
from itertools import islice
from random import Random

from datatrove.pipeline.base import PipelineStep

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import held_out
from polyphi.curate.lexicon import COLOURS, NOUNS, SHAPES, number_words
from polyphi.curate.speech import RATE, Studio, Wave, asked, join, numbered
from polyphi.curate.text import fill
from polyphi.data.shards import Sample

PROMPT = "Summarize the audio in one sentence."
NUMBERS = "numbers"
TOPICS = {
    "animals": list(NOUNS)[: list(NOUNS).index("apple")],
    "food": ["apple", "banana", "bread", "egg", "water"],
    "vehicles": ["car", "train", "boat", "plane", "bicycle"],
    "colours": list(COLOURS),
    "shapes": list(SHAPES),
    NUMBERS: [],
}
"""Topic -> English words of the lexicon."""
LANGUAGE_SHARES = {"en": 4, "fr": 1, "de": 1, "es": 1, "it": 1, "pt": 1}
SECONDS = (8.0, 16.0)


def talk(studio: Studio, topic: str, split: str, rng: Random) -> Sample:
    """Sentences of a few words each by one speaker, until the clip is long enough."""
    spoken = {
        language: share
        for language, share in LANGUAGE_SHARES.items()
        if language in studio.languages
    }
    language = rng.choices(list(spoken), list(spoken.values()))[0]
    group = rng.choice(studio.groups(language)) if split == "test" else ""
    speaker = studio.speaker(language, split, rng, group)
    every = {**COLOURS, **SHAPES, **NOUNS}
    length, waves = rng.uniform(*SECONDS), list[Wave]()
    while sum(map(len, waves)) < length * RATE:
        if topic == NUMBERS:
            words = [number_words(rng.randrange(100), language) for _ in range(4)]
        else:
            words = [every[w][language] for w in rng.sample(TOPICS[topic], 4)]
        waves.append(studio.say(", ".join(words) + ".", speaker, rng))
    clip = join(waves, [0.15] * (len(waves) - 1))
    return asked(
        clip,
        PROMPT,
        f"A list of {topic}.",
        speaker,
        task="speech_summary",
        language="en",
        spoken=language,
    )


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        studio = Studio(work)
        if not studio.languages:
            work.tell(
                "skipped spoken summaries: no speech engine is installed; `apt install espeak-ng`"
            )
            return iter(())
        talks = (
            talk(studio, list(TOPICS)[i % len(TOPICS)], split, rng) for i in range(work.rows[split])
        )
        return numbered("speech_summary", split, islice(talks, work.rows[split]))

    return fill(work, "speech_summary", make)


def steps(work: Work) -> list[PipelineStep]:
    """By bytes: by landmarks, synthetic voices that say nearly the same would be taken for copies."""
    return [*held_out(work, "speech_summary", ways=("same bytes",))]


corpus = Corpus("speech_summary", build=build, steps=steps)
