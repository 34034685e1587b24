"""Speech translation: spoken digit strings, numbers and words, into and out of English.

Two forms of the task, as in the report (Table 5): the translation alone, and chain of thought (transcript, `<sep>`,
translation). Training mixes both; the test split has both for each audio clip. Digits are translated as words, because
written digits are the same in every language. For your recordings, `speech_translation` makes targets by machine
translation (polyphi_recipe/syntheses/translations.py, docs/speech.md).
"""

from collections.abc import Iterator
from itertools import islice
from random import Random

from polyphi.data.shards import Sample
from polyphi.types.transcript import TRANSLATE
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import fill, interleave
from polyphi_recipe.synthetic import speech
from polyphi_recipe.synthetic.speech import (
    Reader,
    Speaker,
    TTSSampler,
    audio_sample,
    chained,
    numbered,
)
from polyphi_recipe.synthetic.waves import Wave
from polyphi_recipe.text.lexicon import LANGUAGES, digit_words, lexicon, number_words

RECORDED_SHARE = 0.2  # of training digit strings


class TranslationSampler:
    """Draws spoken phrases with their translations."""

    def __init__(self, work: Work, split: str, rng: Random, tts: TTSSampler | None = None) -> None:
        self.split, self.rng, self.tts = split, rng, tts or TTSSampler(work)
        self.languages = work.languages

    def direction(self) -> tuple[str, str]:
        """Return (source, target); one is English, as in the public test sets."""
        spoken = self.tts.languages
        source = self.rng.choice(spoken) if self.rng.random() < 0.6 or "en" not in spoken else "en"
        return source, self.target(source)

    def target(self, source: str) -> str:
        return (
            "en"
            if source != "en"
            else self.rng.choice([language for language in LANGUAGES if language != "en"])
        )

    def phrase(self, source: str, target: str) -> tuple[str, str, str, str]:
        """Return (form, transcript, spoken text, translation)."""
        in_lexicon = {source, target} <= set(self.languages)
        form = self.rng.choice(
            ("digits", "digits", "numbers", "words" if in_lexicon else "numbers")
        )
        if form == "digits":
            numbers = speech.digits(self.rng, self.split)
            transcript = speech.digit_string(numbers)
            spoken = speech.digit_text(numbers, source, self.rng)
            return form, transcript, spoken, digit_words(transcript.replace(" ", ""), target)
        if form == "numbers":
            n = self.rng.randint(10, 99)
            return form, number_words(n, source), number_words(n, source), number_words(n, target)
        words = self.rng.sample(list(lexicon().values()), self.rng.randint(1, 3))
        source_words = [w[source] for w in words]
        return (
            form,
            " ".join(source_words),
            ", ".join(source_words),
            " ".join(w[target] for w in words),
        )

    def synthetic_speech(self, group: str = "", source: str = "") -> tuple[Sample, Sample]:
        if source:
            target = self.target(source)
        else:
            source, target = self.direction()
        form, transcript, spoken, translation = self.phrase(source, target)
        speaker = self.tts.speaker(source, self.split, self.rng, group)
        wave = self.tts.synthesize(spoken, speaker, self.rng)
        return direct_and_chained(
            wave, speaker, transcript, translation, target, language=source, kind=form
        )

    def recorded_speech(self) -> tuple[Sample, Sample] | None:
        """Return recorded digits, or None without recorded speakers."""
        if not (readers := self.tts.readers(self.split)):
            return None
        reader = self.rng.choice(readers)
        numbers = speech.digits(self.rng, self.split, [n for n in reader.numbers if n < 10])
        transcript, target = speech.digit_string(numbers), self.target(reader.language)
        translation = digit_words(transcript.replace(" ", ""), target)
        wave = self.tts.read(numbers, reader, self.rng)
        return direct_and_chained(
            wave, reader, transcript, translation, target, language=reader.language, kind="digits"
        )


def direct_and_chained(
    wave: Wave,
    speaker: Speaker | Reader,
    transcript: str,
    translation: str,
    target: str,
    **meta: str,
) -> tuple[Sample, Sample]:
    """Return the direct and the chain-of-thought sample of the same audio."""
    meta = {"task": "ast", "to": target, "reference": transcript, **meta}
    prompt = TRANSLATE.format(LANGUAGES[target])
    direct = audio_sample(wave, prompt, translation, speaker, cot=False, **meta)
    return direct, chained(direct, transcript)


def training(work: Work, rng: Random, tts: TTSSampler | None = None) -> Iterator[Sample]:
    """Yield training samples without end, each in one of the two forms."""
    sampler = TranslationSampler(work, "train", rng, tts)
    while True:
        pair = None
        if rng.random() < RECORDED_SHARE or not sampler.tts.languages:
            pair = sampler.recorded_speech()
        if pair is None and sampler.tts.languages:
            pair = sampler.synthetic_speech()
        if pair is not None:
            yield rng.choice(pair)


def testing(work: Work, rng: Random) -> Iterator[Sample]:
    """Return both forms of every audio clip in turn; unseen variants, flite and recorded people are as 6 : 1 : 1."""
    sampler = TranslationSampler(work, "test", rng)
    groups = ["espeak_unseen"] * 3 + ["flite_slt"] + ["espeak_unseen"] * 3 + ["recorded"]

    def stream(group: str) -> Iterator[tuple[Sample, Sample]]:
        spoken = [language for language in LANGUAGES if group in sampler.tts.groups(language)]
        # Every other clip is English, the source for all other languages.
        order = [x for language in spoken if language != "en" for x in (language, "en")] or spoken
        for i in range(120 if group == "espeak_unseen" else 20):
            pair = sampler.recorded_speech() if group == "recorded" else None
            if pair is None and order:
                pair = sampler.synthetic_speech(group, order[i % len(order)])
            if pair is not None:
                yield pair

    streams = {group: stream(group) for group in set(groups)}
    return (sample for pair in interleave([streams[group] for group in groups]) for sample in pair)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        samples = training(work, rng) if split == "train" else testing(work, rng)
        return numbered("ast", split, islice(samples, work.rows[split]))

    return fill(work, "ast", make)


# Compare bytes: landmarks would match synthetic voices with nearly the same text.
corpus = Corpus("ast", build=build, steps=against("ast", ways=("same bytes",)))
