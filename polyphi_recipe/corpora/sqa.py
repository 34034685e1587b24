"""Spoken questions: audio queries without text (SQQA), and written questions about audio (SQA).

    arithmetic   spoken "What is 3 plus 4?" -> "7", in every language
    compare      spoken "Which is larger, 2 or 9?" -> "9"
    yes_no       spoken "Is 7 larger than 4?" -> "yes"
    clip         spoken "3 5 1", written "Which is the largest?" -> "5"; spoken words, "Which word is first?"

The questions are those of the text corpora, so that the frozen language model can answer them; only audio is new.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random

from polyphi.data.shards import Sample
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import fill, interleave
from polyphi_recipe.synthetic import number_questions, speech
from polyphi_recipe.synthetic.speech import TTSSampler, audio_sample, numbered
from polyphi_recipe.text.lexicon import lexicon

SHARES = {"arithmetic": 35, "compare": 15, "yes_no": 20, "clip": 30}
"""Task -> its share of the training rows; test rows are distributed equally."""
ENGLISH_SHARE = 0.5


class QuestionSampler:
    """Draws questions by one method per task; `i` is the sample's number within its task and determines the answer in
    the test split."""

    def __init__(self, work: Work, split: str, rng: Random, tts: TTSSampler | None = None) -> None:
        self.split, self.rng, self.tts = split, rng, tts or TTSSampler(work)
        self.languages = work.languages

    def language(self, numbers: bool = False) -> str:
        """Return a random available language, for digits any of the eight."""
        spoken = [c for c in self.tts.languages if numbers or c in self.languages]
        return (
            "en"
            if "en" in spoken and self.rng.random() < ENGLISH_SHARE
            else self.rng.choice(spoken)
        )

    def spoken(
        self, task: str, text: str, answer: str, language: str, question: str = "", **meta: str
    ) -> Sample:
        group = self.rng.choice(self.tts.groups(language)) if self.split == "test" else ""
        speaker = self.tts.speaker(language, self.split, self.rng, group)
        wave = self.tts.synthesize(text, speaker, self.rng)
        return audio_sample(wave, question, answer, speaker, task=task, language=language, **meta)

    def arithmetic(self, i: int) -> Sample:
        language = self.language()
        value = i % 19 if self.split == "test" else None
        written, spoken, result = number_questions.sum_question(self.rng, language, value)
        return self.spoken("arithmetic", spoken, str(result), language, reference=written)

    def compare(self, i: int) -> Sample:
        written, spoken, answer = number_questions.comparison(
            self.rng, ("larger", "smaller")[i % 2]
        )
        return self.spoken("compare", spoken, answer, "en", reference=written)

    def yes_no(self, i: int) -> Sample:
        written, spoken, answer = number_questions.yes_no_question(self.rng, i % 2 == 0)
        return self.spoken("yes_no", spoken, answer, "en", reference=written)

    def clip(self, i: int) -> Sample:
        """Return a written question about spoken digits or words."""
        if i % 3 == 2:
            words = self.rng.sample(list(lexicon().values()), 3)
            ordinal, language = self.rng.choice(("first", "second", "last")), self.language()
            answer = words[{"first": 0, "second": 1, "last": -1}[ordinal]][language]
            spoken_words = [w[language] for w in words]
            return self.spoken(
                "clip",
                ", ".join(spoken_words),
                answer,
                language,
                f"Which word is {ordinal}?",
                kind="word",
                reference=" ".join(spoken_words),
            )
        extreme, language = self.rng.choice(("largest", "smallest")), self.language(numbers=True)
        value = i % 10 if self.split == "test" else self.rng.randrange(10)
        # The other digits are all larger or all smaller than the answer; if too few exist (a largest 0), the question
        # changes.
        if (extreme == "largest" and value < 2) or (extreme == "smallest" and value > 7):
            extreme = "smallest" if extreme == "largest" else "largest"
        others = range(value) if extreme == "largest" else range(value + 1, 10)
        numbers = [value, *self.rng.sample(others, min(len(others), self.rng.randint(2, 3)))]
        self.rng.shuffle(numbers)
        spoken = speech.digit_text(numbers, language, self.rng)
        return self.spoken(
            "clip",
            spoken,
            str(value),
            language,
            f"Which is the {extreme}?",
            kind="digit",
            reference=speech.digit_string(numbers),
        )


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        sampler = QuestionSampler(work, split, rng)
        if not sampler.tts.languages:
            work.report(
                "skipped spoken questions: no speech engine is installed; `apt install espeak-ng`"
            )
            return iter(())
        samples = stream(sampler, rng) if split == "train" else testing(sampler)
        return numbered("sqa", split, islice(samples, work.rows[split]))

    return fill(work, "sqa", make)


def stream(sampler: QuestionSampler, rng: Random) -> Iterator[Sample]:
    """Yield training questions without end, in the proportions of `SHARES`."""
    while True:
        yield getattr(sampler, rng.choices(list(SHARES), list(SHARES.values()))[0])(
            rng.randrange(1 << 20)
        )


def testing(sampler: QuestionSampler) -> Iterator[Sample]:
    """Return an endless iterator of test questions, tasks in turn."""

    def one(task: str) -> Iterator[Sample]:
        i = 0
        while True:
            yield getattr(sampler, task)(i)
            i += 1

    return interleave([one(task) for task in SHARES])


# Compare bytes: landmarks would match synthetic voices with nearly the same text.
corpus = Corpus("sqa", build=build, steps=against("sqa", ways=("same bytes",)))
