"""Speech with transcripts in eight languages: digit strings, numbers, words, questions, requests, and recorded phrases.

Digit strings are written "314" in every language, numbers from 10 to 99 in words. The splits have different espeak-ng
variants and recorded speakers (`polyphi_recipe.synthetic.speech`). "open" is recorded speech of open vocabulary, too
hard for a small model; its result is reported all the same.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat
from random import Random

from polyphi.data.shards import Sample
from polyphi.types.transcript import TRANSCRIBE
from polyphi_recipe.corpora import audio_safety
from polyphi_recipe.corpora.vision_speech import spoken_questions
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw import safety
from polyphi_recipe.raw.real_text import fill, interleave, shuffled
from polyphi_recipe.synthetic import number_questions, speech
from polyphi_recipe.synthetic.speech import TTSSampler, audio_sample, numbered
from polyphi_recipe.text.lexicon import LANGUAGES, lexicon, number_words

SHARES = {"digits": 25, "numbers": 32, "words": 4, "questions": 27, "requests": 11, "open": 1}
"""Task -> its share of the training rows. Requests are those of the safety set, which a model must understand word by
word before it can tell harmful ones from harmless ones."""
SINGLE_DIGITS, CLEAN, DIGITS = 0.1, 0.22, 0.38
"""Curriculum, as shares of the training rows: single digits up to the first, nearly clean audio up to the second, digit
strings only up to the third. An untrained recognizer that starts with all tasks stays on a plateau for thousands of
steps."""
RECORDED_SHARE = 0.15  # of training digit strings and numbers in languages with recorded speakers
ENGLISH_SHARE = 0.4  # of synthesized speech; the other languages have equal shares of the remainder
ENGLISH_NUMBERS = 0.15  # the same for numbers, because number words differ between languages


class SpeechSampler:
    """Draws spoken samples by one method per task; each returns a sample of the split with a voice of the given
    group."""

    def __init__(self, work: Work, split: str, rng: Random, tts: TTSSampler | None = None) -> None:
        self.work, self.split, self.rng, self.tts = work, split, rng, tts or TTSSampler(work)
        self.questions = spoken_questions(work, split)
        self.requests = {
            language: safety.requests(split, rng, (language,)) for language in work.languages
        }
        self.captions = shuffled(speech.captions(work, split), rng)
        self.toys = shuffled(speech.toys(work), rng) if split == "test" else []
        self.count = 0  # digits in a string; 0: any number

    def language(self, task: str) -> str:
        """Return a random available language, English most often; digits and numbers are in all eight."""
        spoken = self.tts.languages or tuple({r.language for r in self.tts.readers(self.split)})
        if task not in ("digits", "numbers"):
            spoken = tuple(language for language in spoken if language in self.work.languages)
        others = [language for language in spoken if language != "en"]
        share = {"numbers": ENGLISH_NUMBERS, "requests": audio_safety.ENGLISH_SHARE}.get(
            task, ENGLISH_SHARE
        )
        return (
            "en"
            if "en" in spoken and (not others or self.rng.random() < share)
            else self.rng.choice(others)
        )

    def synthetic_speech(
        self, task: str, text: str, spoken: str, language: str, group: str
    ) -> Sample:
        speaker = self.tts.speaker(language, self.split, self.rng, group)
        wave = self.tts.synthesize(spoken, speaker, self.rng)
        return audio_sample(
            wave, TRANSCRIBE, text, speaker, task=task, language=language, reference=text
        )

    def recorded_speech(self, task: str, language: str = "") -> Sample | None:
        """Return recorded digits or a recorded number, or None without a recorded speaker."""
        readers = self.tts.readers(self.split, language)
        if task == "numbers":
            readers = [r for r in readers if any(n >= 10 for n in r.numbers)]
        if not readers:
            return None
        reader = self.rng.choice(readers)
        if task == "numbers":
            numbers = [self.rng.choice([n for n in reader.numbers if n >= 10])]
            text = number_words(numbers[0], reader.language)
        else:
            allowed = [n for n in reader.numbers if n < 10]
            numbers = speech.digits(self.rng, self.split, allowed, self.count)
            text = speech.digit_string(numbers)
        wave = self.tts.read(numbers, reader, self.rng)
        return audio_sample(wave, TRANSCRIBE, text, reader, task=task, language=reader.language)

    def digits(self, language: str, group: str = "") -> Sample:
        numbers = speech.digits(self.rng, self.split, count=self.count)
        spoken = speech.digit_text(numbers, language, self.rng)
        return self.synthetic_speech(
            "digits", speech.digit_string(numbers), spoken, language, group
        )

    def numbers(self, language: str, group: str = "") -> Sample:
        text = number_words(self.rng.randint(10, 99), language)
        return self.synthetic_speech("numbers", text, text, language, group)

    def words(self, language: str, group: str = "") -> Sample:
        """Return one to three words of the lexicon."""
        words = self.rng.sample([w[language] for w in lexicon().values()], self.rng.randint(1, 3))
        return self.synthetic_speech("words", " ".join(words), ", ".join(words), language, group)

    def question(self, language: str, group: str = "") -> Sample | None:
        """Return a question of later stages, about an image or a sum; in English also a comparison, or a request of the
        safety set. None if the split has no such question in the language."""
        dice = self.rng.random()
        if dice < 0.25:
            written, spoken, _ = number_questions.sum_question(self.rng, language)
        elif dice < 0.4 and language == "en":
            draw = (
                number_questions.comparison
                if dice < 0.32
                else lambda rng: number_questions.yes_no_question(rng, rng.random() < 0.5)
            )
            written, spoken, _ = draw(self.rng)
        elif dice < 0.45 and language == "en":
            written = spoken = next(self.requests["en"]).question
        else:
            # English has hundreds of questions, the other languages a few, which are drawn as often.
            texts = [
                text for text, question_language in self.questions if question_language == language
            ]
            if not texts:
                return None
            written = self.rng.choice(texts)
            spoken = written
        return self.synthetic_speech("questions", written, spoken, language, group)

    def request(self, language: str, group: str = "") -> Sample:
        """Return a request of the safety set, harmful or harmless."""
        text = next(self.requests[language]).question
        return self.synthetic_speech("requests", text, text, language, group)

    def closed(self, task: str) -> Sample | None:
        """Return a sample of a task other than "open", in any language; None without an engine or recording."""
        language = self.language(task)
        spoken = bool(self.tts.languages)
        of_numbers = task in ("digits", "numbers")
        if of_numbers and self.rng.random() < (RECORDED_SHARE if spoken else 1):
            sample = self.recorded_speech(task, language)
            if sample is not None:
                return sample
        make: dict[str, Callable[[str], Sample | None]] = {
            "digits": self.digits,
            "numbers": self.numbers,
            "words": self.words,
            "questions": self.question,
            "requests": self.request,
        }
        return make[task](language) if spoken else None

    def open(self, recordings: Sequence[speech.RecordedPhrase]) -> Iterator[Sample]:
        """Yield recorded phrases, each once; in training again and again, with other augmentation."""
        for recording in (
            (r for again in repeat(recordings) for r in again)
            if self.split == "train"
            else recordings
        ):
            wave = self.tts.process(speech.load(recording.path), self.rng, self.split == "train")
            yield audio_sample(
                wave,
                TRANSCRIBE,
                recording.text,
                recording,
                task="open",
                language=recording.language,
                stamp=recording.id,
            )

    def toy_words(self) -> Iterator[Sample]:
        """Yield single recorded nouns, each once."""
        for recording in self.toys:
            wave = self.tts.process(speech.load(recording.path), self.rng, False)
            yield audio_sample(
                wave,
                TRANSCRIBE,
                recording.text,
                recording,
                task="words",
                language=recording.language,
            )


def training(work: Work, rng: Random) -> Iterator[Sample]:
    """Yield training samples without end, in the proportions of `SHARES`."""
    sampler = SpeechSampler(work, "train", rng)
    open_phrases = sampler.open(sampler.captions) if sampler.captions else iter(())
    count = 0
    while True:
        task, part = "digits", count / work.rows["train"]
        sampler.count = 1 if part < SINGLE_DIGITS else 0
        sampler.tts.strength = 0.15 if part < CLEAN else 0.6
        if part >= DIGITS:
            task = rng.choices(list(SHARES), list(SHARES.values()))[0]
        sample = next(open_phrases, None) if task == "open" else sampler.closed(task)
        if sample is not None:
            count += 1
            yield sample


def testing(work: Work, rng: Random) -> Iterator[Sample]:
    """Return samples of every task by every group of voices, in turn."""
    sampler = SpeechSampler(work, "test", rng)
    streams: list[Iterator[Sample | None]] = []
    for make, rows, languages in (
        (sampler.digits, 150, tuple(LANGUAGES)),
        (sampler.words, 90, work.languages),
        (sampler.numbers, 90, tuple(LANGUAGES)),
        (sampler.question, 90, work.languages),
    ):
        for group in ("espeak_unseen", "flite_slt"):
            spoken = [language for language in languages if group in sampler.tts.groups(language)]
            streams.append(languages_in_turn(make, spoken, group, rows))
    streams.append(sampler.recorded_speech("digits") for _ in range(150))
    streams.append(sampler.recorded_speech("numbers") for _ in range(50))
    streams += [sampler.open(sampler.captions[:150]), sampler.toy_words()]
    return (sample for sample in interleave(streams) if sample is not None)


def languages_in_turn(
    make: Callable[[str, str], Sample | None], languages: Sequence[str], group: str, rows: int
) -> Iterator[Sample | None]:
    """Yield `rows` samples of a group of voices, languages in turn; none if the group has no language."""
    for i in range(rows if languages else 0):
        yield make(languages[i % len(languages)], group)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        samples = training(work, rng) if split == "train" else testing(work, rng)
        return numbered("asr", split, islice(samples, work.rows[split]))

    return fill(work, "asr", make)


# Compare bytes: landmarks would match synthetic voices with nearly the same text.
corpus = Corpus(
    "asr", build=build, corpora=("image_qa",), steps=against("asr", ways=("same bytes",))
)
