"""Questions by voice: spoken queries with no text beside them (SQQA), and written questions about a clip (SQA).

    arithmetic   spoken "What is 3 plus 4?" -> "7", in every language
    compare      spoken "Which is larger, 2 or 9?" -> "9"
    yes_no       spoken "Is 7 larger than 4?" -> "yes"
    clip         spoken "3 5 1", written "Which is the largest?" -> "5"; spoken words, "Which word is first?"

Questions are those of the text corpora, so the frozen language model knows how to answer them; only hearing is new.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.curate.text import fill, interleave
from polyphi.data.shards import Sample
from polyphi.synthetic import number_questions, speech
from polyphi.synthetic.speech import Studio, asked, numbered
from polyphi.text.lexicon import lexicon

SHARES = {"arithmetic": 35, "compare": 15, "yes_no": 20, "clip": 30}
"""Task -> its share of the training rows; test rows are equal."""
ENGLISH_SHARE = 0.5


class Asker:
    """One method per task; `i` is the sample's number within its task in the test split, where answers take turns."""

    def __init__(self, work: Work, split: str, rng: Random, studio: Studio | None = None) -> None:
        self.split, self.rng, self.studio = split, rng, studio or Studio(work)
        self.languages = work.languages

    def language(self, numbers: bool = False) -> str:
        """A language that is spoken here, for digits any of the eight."""
        spoken = [c for c in self.studio.languages if numbers or c in self.languages]
        return (
            "en"
            if "en" in spoken and self.rng.random() < ENGLISH_SHARE
            else self.rng.choice(spoken)
        )

    def spoken(
        self, task: str, said: str, answer: str, language: str, question: str = "", **meta: str
    ) -> Sample:
        group = self.rng.choice(self.studio.groups(language)) if self.split == "test" else ""
        speaker = self.studio.speaker(language, self.split, self.rng, group)
        clip = self.studio.say(said, speaker, self.rng)
        return asked(clip, question, answer, speaker, task=task, language=language, **meta)

    def arithmetic(self, i: int) -> Sample:
        language = self.language()
        value = i % 19 if self.split == "test" else None
        written, said, found = number_questions.sum_question(self.rng, language, value)
        return self.spoken("arithmetic", said, str(found), language, heard=written)

    def compare(self, i: int) -> Sample:
        written, said, answer = number_questions.comparison(self.rng, ("larger", "smaller")[i % 2])
        return self.spoken("compare", said, answer, "en", heard=written)

    def yes_no(self, i: int) -> Sample:
        written, said, answer = number_questions.yes_no_question(self.rng, i % 2 == 0)
        return self.spoken("yes_no", said, answer, "en", heard=written)

    def clip(self, i: int) -> Sample:
        """A written question about spoken digits or words."""
        if i % 3 == 2:
            words = self.rng.sample(list(lexicon().values()), 3)
            place, language = self.rng.choice(("first", "second", "last")), self.language()
            answer = words[{"first": 0, "second": 1, "last": -1}[place]][language]
            heard = [w[language] for w in words]
            return self.spoken(
                "clip",
                ", ".join(heard),
                answer,
                language,
                f"Which word is {place}?",
                kind="word",
                heard=" ".join(heard),
            )
        kind, language = self.rng.choice(("largest", "smallest")), self.language(numbers=True)
        value = i % 10 if self.split == "test" else self.rng.randrange(10)
        # The others lie on one side of the wanted answer; where there is no room (a largest 0), the question changes.
        if (kind == "largest" and value < 2) or (kind == "smallest" and value > 7):
            kind = "smallest" if kind == "largest" else "largest"
        others = range(value) if kind == "largest" else range(value + 1, 10)
        numbers = [value, *self.rng.sample(others, min(len(others), self.rng.randint(2, 3)))]
        self.rng.shuffle(numbers)
        said = speech.digit_text(numbers, language, self.rng)
        return self.spoken(
            "clip",
            said,
            str(value),
            language,
            f"Which is the {kind}?",
            kind="digit",
            heard=speech.written(numbers),
        )


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        asker = Asker(work, split, rng)
        if not asker.studio.languages:
            work.tell(
                "skipped spoken questions: no speech engine is installed; `apt install espeak-ng`"
            )
            return iter(())
        made = stream(asker, rng) if split == "train" else testing(asker)
        return numbered("sqa", split, islice(made, work.rows[split]))

    return fill(work, "sqa", make)


def stream(asker: Asker, rng: Random) -> Iterator[Sample]:
    """Endless training questions in the proportions of `SHARES`."""
    while True:
        yield getattr(asker, rng.choices(list(SHARES), list(SHARES.values()))[0])(
            rng.randrange(1 << 20)
        )


def testing(asker: Asker) -> Iterator[Sample]:
    """Endless test questions, tasks in turn."""

    def one(task: str) -> Iterator[Sample]:
        i = 0
        while True:
            yield getattr(asker, task)(i)
            i += 1

    return interleave([one(task) for task in SHARES])


# By bytes: by landmarks, synthetic voices that say nearly the same would be taken for copies.
corpus = Corpus("sqa", build=build, steps=against("sqa", ways=("same bytes",)))
