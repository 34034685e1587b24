"""Longer clips and one short sentence about each: which of six topics the talk is on. Few, as in the report (1 %).

"cat, dog, lion, cow, ..." -> "A list of animals."

Where a row holds long clips (`work.seconds`: not at nano size), one in fifty is a recording up to 30 minutes: help
pages read in one piece by two voices in turn, and the headings that were read as its topics. Summaries of all that was
said want a teacher: docs/synthesis.md.
"""

from collections.abc import Iterator
from itertools import chain, islice
from random import Random

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.curate.recordings import LONGEST_PARAGRAPH, record
from polyphi.curate.sources import LIBREOFFICE
from polyphi.curate.text import fill, help_pages, origin, shuffled, side
from polyphi.curate.voices import unfit
from polyphi.curate.waves import RATE, Wave, join
from polyphi.data.shards import Sample
from polyphi.messages import Audio, Message
from polyphi.synthetic.speech import Studio, asked, numbered
from polyphi.text.lexicon import COLOURS, NOUNS, SHAPES, number_words

PROMPT = "Summarize the audio in one sentence."
TOPICS_PROMPT = "List the topics of the recording in their order."
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
LONG_SECONDS, LONG_EVERY = 300.0, 50
"""A recording is at least so long; one sample in so many is one."""


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


def recording(studio: Studio, work: Work, split: str, rng: Random) -> Sample | None:
    """Pages in one language, in one piece; None where there are none."""
    language = rng.choice([code for code in LANGUAGE_SHARES if code in studio.languages])
    pages = help_pages(language, work)
    own = shuffled([p for p in sorted(pages) if side(split, p, percent=5) and pages[p].title], rng)
    if not own:
        return None
    headings = {f"{pages[p].title}.": pages[p].title for p in own}

    def paragraphs(path: str) -> Iterator[str]:
        page = pages[path]
        told = (text for _, text in page.paragraphs if text != page.title)
        yield f"{page.title}."
        yield from (text for text in told if not unfit(text, LONGEST_PARAGRAPH))

    people = [studio.speaker(language, split, rng) for _ in range(2)]
    made = record(
        chain.from_iterable(map(paragraphs, own)),
        [p.voice for p in people],
        seconds=rng.uniform(LONG_SECONDS, work.seconds),
        booth=studio.booth,
    )
    topics = "\n".join(headings[text] for text in made.paragraphs if text in headings)
    meta = {
        "task": "speech_topics",
        "language": language,
        "engine": people[0].engine,
        "voice": people[0].group,
        "speaker": ", ".join(dict.fromkeys(p.name for p in people)),
        "transcript": "\n".join(made.paragraphs),
        "seconds": made.seconds,
    }
    messages = (Message.user(Audio(made.audio), TOPICS_PROMPT), Message.assistant(topics))
    return Sample("", messages, meta=meta, **origin(LIBREOFFICE[language]))


def one(studio: Studio, work: Work, split: str, rng: Random, i: int) -> Sample:
    """The i-th sample of a split."""
    long = work.seconds > LONG_SECONDS and i % LONG_EVERY == LONG_EVERY - 1
    made = recording(studio, work, split, rng) if long else None
    return made or talk(studio, list(TOPICS)[i % len(TOPICS)], split, rng)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        studio = Studio(work)
        if not studio.languages:
            work.tell(
                "skipped spoken summaries: no speech engine is installed; `apt install espeak-ng`"
            )
            return iter(())
        talks = (one(studio, work, split, rng, i) for i in range(work.rows[split]))
        return numbered("speech_summary", split, islice(talks, work.rows[split]))

    return fill(work, "speech_summary", make)


# By bytes: by landmarks, synthetic voices that say nearly the same would be taken for copies.
corpus = Corpus(
    "speech_summary", build=build, steps=against("speech_summary", ways=("same bytes",))
)
