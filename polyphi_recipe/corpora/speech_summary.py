"""Longer audio with a one-sentence summary: which of six topics the talk is about. A small share, as in the report
(1 %).

"cat, dog, lion, cow, ..." -> "A list of animals."

At sizes whose rows hold long audio (`work.seconds`: not nano), one in fifty is a recording of up to 30 minutes: help
pages read by two voices in turn, with their headings as topics. Summaries of full transcripts need a teacher:
docs/synthesis.md.
"""

from collections.abc import Iterator
from itertools import chain, islice
from random import Random

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.packages import LIBREOFFICE
from polyphi_recipe.raw.real_text import fill, help_pages, in_split, origin, shuffled
from polyphi_recipe.synthetic.instructions import TOPICS, topic_words
from polyphi_recipe.synthetic.recordings import LONGEST_PARAGRAPH, record
from polyphi_recipe.synthetic.speech import TTSSampler, audio_sample, numbered
from polyphi_recipe.synthetic.voices import unfit
from polyphi_recipe.synthetic.waves import RATE, Wave, join

PROMPT = "Summarize the audio in one sentence."
TOPICS_PROMPT = "List the topics of the recording in their order."
LANGUAGE_SHARES = {"en": 4, "fr": 1, "de": 1, "es": 1, "it": 1, "pt": 1}
SECONDS = (8.0, 16.0)
LONG_SECONDS, LONG_EVERY = 300.0, 50
"""Minimum length of a recording in seconds; one sample in `LONG_EVERY` is a recording."""


def talk(tts: TTSSampler, topic: str, split: str, rng: Random, *, transcribed: bool) -> Sample:
    """Return short sentences by one speaker, 8 to 16 seconds in total; `transcribed`: with their transcript."""
    spoken = {
        language: share for language, share in LANGUAGE_SHARES.items() if language in tts.languages
    }
    language = rng.choices(list(spoken), list(spoken.values()))[0]
    group = rng.choice(tts.groups(language)) if split == "test" else ""
    speaker = tts.speaker(language, split, rng, group)
    length, waves, texts = rng.uniform(*SECONDS), list[Wave](), list[str]()
    while sum(map(len, waves)) < length * RATE:
        texts.append(", ".join(topic_words(topic, language, rng)) + ".")
        waves.append(tts.synthesize(texts[-1], speaker, rng))
    wave = join(waves, [0.15] * (len(waves) - 1))
    return audio_sample(
        wave,
        PROMPT,
        f"A list of {topic}.",
        speaker,
        task="speech_summary",
        language="en",
        spoken=language,
        **({"transcript": " ".join(texts)} if transcribed else {}),
    )


def recording(tts: TTSSampler, work: Work, split: str, rng: Random) -> Sample | None:
    """Return a long recording of help pages in one language, or None without pages."""
    language = rng.choice([code for code in LANGUAGE_SHARES if code in tts.languages])
    pages = help_pages(language, work)
    paths = shuffled(
        [p for p in sorted(pages) if in_split(split, p, percent=5) and pages[p].title], rng
    )
    if not paths:
        return None
    headings = {f"{pages[p].title}.": pages[p].title for p in paths}

    def paragraphs(path: str) -> Iterator[str]:
        page = pages[path]
        texts = (text for _, text in page.paragraphs if text != page.title)
        yield f"{page.title}."
        yield from (text for text in texts if not unfit(text, LONGEST_PARAGRAPH))

    speakers = [tts.speaker(language, split, rng) for _ in range(2)]
    recorded = record(
        chain.from_iterable(map(paragraphs, paths)),
        [p.voice for p in speakers],
        seconds=rng.uniform(LONG_SECONDS, work.seconds),
        tts_pool=tts.tts_pool,
    )
    topics = "\n".join(headings[text] for text in recorded.paragraphs if text in headings)
    meta = {
        "task": "speech_topics",
        "language": language,
        "engine": speakers[0].engine,
        "voice": speakers[0].group,
        "speaker": ", ".join(dict.fromkeys(p.name for p in speakers)),
        "transcript": "\n".join(recorded.paragraphs),
        "seconds": recorded.seconds,
    }
    messages = (Message.user(Audio(recorded.audio), TOPICS_PROMPT), Message.assistant(topics))
    return Sample("", messages, meta=meta, **origin(LIBREOFFICE[language]))


def one(tts: TTSSampler, work: Work, split: str, rng: Random, i: int) -> Sample:
    """Return sample `i` of a split."""
    long = work.seconds > LONG_SECONDS and i % LONG_EVERY == LONG_EVERY - 1
    sample = recording(tts, work, split, rng) if long else None
    topic = list(TOPICS)[i % len(TOPICS)]
    return sample or talk(tts, topic, split, rng, transcribed=work.teachers)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        tts = TTSSampler(work)
        if not tts.languages:
            work.report(
                "skipped spoken summaries: no speech engine is installed; `apt install espeak-ng`"
            )
            return iter(())
        talks = (one(tts, work, split, rng, i) for i in range(work.rows[split]))
        return numbered("speech_summary", split, islice(talks, work.rows[split]))

    return fill(work, "speech_summary", make)


# Compare bytes: landmarks would match synthetic voices with nearly the same text.
corpus = Corpus(
    "speech_summary", build=build, steps=against("speech_summary", ways=("same bytes",))
)
