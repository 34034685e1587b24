"""Speech with transcripts in eight languages: digit strings, numbers, words, questions, and recorded phrases.

Digit strings are written "314" in every language, numbers from 10 to 99 in words. Training hears espeak-ng's variants
and recorded speakers; testing hears others (`polyphi.synthetic.speech`). "open" is recorded speech of open vocabulary,
too hard for a small model: its number is reported as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat
from random import Random

from polyphi.corpora.vision_speech import spoken_questions
from polyphi.curate import safety
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.curate.text import fill, interleave, shuffled
from polyphi.data.shards import Sample
from polyphi.messages import TRANSCRIBE
from polyphi.synthetic import number_questions, speech
from polyphi.synthetic.speech import Studio, asked, numbered
from polyphi.text.lexicon import LANGUAGES, lexicon, number_words

SHARES = {"digits": 28, "numbers": 36, "words": 4, "questions": 31, "open": 1}
"""Kind -> its share of the training rows."""
SINGLE_DIGITS, CLEAN, DIGITS = 0.1, 0.22, 0.38
"""The training rows begin with single digits up to the first part of all rows, are nearly clean up to the second, and
have digits alone up to the third: a fresh recogniser that begins with everything at once sits on a plateau for
thousands of steps; this is its curriculum."""
RECORDED_SHARE = (
    0.15  # of training digit strings and numbers, where somebody recorded speaks the language
)
ENGLISH_SHARE = 0.4  # of the languages of synthesised speech; the others share the rest evenly
ENGLISH_NUMBERS = 0.15  # the same for numbers, whose words differ between languages


class Kinds:
    """One method per kind of sample; each returns a sample of the split, spoken by one of the named group of
    voices."""

    def __init__(self, work: Work, split: str, rng: Random, studio: Studio | None = None) -> None:
        self.work, self.split, self.rng, self.studio = work, split, rng, studio or Studio(work)
        self.questions = spoken_questions(work, split)
        self.requests = safety.requests(split, rng, ("en",))
        self.captions = shuffled(speech.captions(work, split), rng)
        self.toys = shuffled(speech.toys(work), rng) if split == "test" else []
        self.count = 0  # of the digits in a string; 0: any

    def language(self, kind: str) -> str:
        """A language that is spoken here, English most often; digits and numbers are in all eight."""
        spoken = self.studio.languages or tuple(
            {r.language for r in self.studio.readers(self.split)}
        )
        if kind not in ("digits", "numbers"):
            spoken = tuple(language for language in spoken if language in self.work.languages)
        others = [language for language in spoken if language != "en"]
        share = ENGLISH_NUMBERS if kind == "numbers" else ENGLISH_SHARE
        return (
            "en"
            if "en" in spoken and (not others or self.rng.random() < share)
            else self.rng.choice(others)
        )

    def synthetic(self, kind: str, text: str, spoken: str, language: str, group: str) -> Sample:
        speaker = self.studio.speaker(language, self.split, self.rng, group)
        clip = self.studio.say(spoken, speaker, self.rng)
        return asked(clip, TRANSCRIBE, text, speaker, task=kind, language=language, heard=text)

    def recorded(self, kind: str, language: str = "") -> Sample | None:
        """Digits or a number by somebody recorded, or None where nobody is."""
        found = self.studio.readers(self.split, language)
        if kind == "numbers":
            found = [r for r in found if any(n >= 10 for n in r.numbers)]
        if not found:
            return None
        reader = self.rng.choice(found)
        if kind == "numbers":
            numbers = [self.rng.choice([n for n in reader.numbers if n >= 10])]
            text = number_words(numbers[0], reader.language)
        else:
            allowed = [n for n in reader.numbers if n < 10]
            numbers = speech.digits(self.rng, self.split, allowed, self.count)
            text = speech.written(numbers)
        clip = self.studio.read(numbers, reader, self.rng)
        return asked(clip, TRANSCRIBE, text, reader, task=kind, language=reader.language)

    def digits(self, language: str, group: str = "") -> Sample:
        numbers = speech.digits(self.rng, self.split, count=self.count)
        spoken = speech.digit_text(numbers, language, self.rng)
        return self.synthetic("digits", speech.written(numbers), spoken, language, group)

    def numbers(self, language: str, group: str = "") -> Sample:
        text = number_words(self.rng.randint(10, 99), language)
        return self.synthetic("numbers", text, text, language, group)

    def words(self, language: str, group: str = "") -> Sample:
        """One to three words of the lexicon."""
        words = self.rng.sample([w[language] for w in lexicon().values()], self.rng.randint(1, 3))
        return self.synthetic("words", " ".join(words), ", ".join(words), language, group)

    def question(self, language: str, group: str = "") -> Sample | None:
        """A question as later stages will hear it: about a picture or a sum; in English also a comparison, or a
        request of the safety set. None where the split has no such question in the language."""
        dice = self.rng.random()
        if dice < 0.25:
            written, spoken, _ = number_questions.sum_question(self.rng, language)
        elif dice < 0.4 and language == "en":
            ask = (
                number_questions.comparison
                if dice < 0.32
                else lambda rng: number_questions.yes_no_question(rng, rng.random() < 0.5)
            )
            written, spoken, _ = ask(self.rng)
        elif dice < 0.45 and language == "en":
            written = spoken = next(self.requests).question
        else:
            # English has hundreds of questions, others a handful, which are heard no less often.
            found = [text for text, asked_in in self.questions if asked_in == language]
            if not found:
                return None
            written = self.rng.choice(found)
            spoken = written
        return self.synthetic("questions", written, spoken, language, group)

    def closed(self, kind: str) -> Sample | None:
        """A sample of a kind other than "open", in any language; None where nobody can say it."""
        language = self.language(kind)
        spoken = bool(self.studio.languages)
        of_numbers = kind in ("digits", "numbers")
        if of_numbers and self.rng.random() < (RECORDED_SHARE if spoken else 1):
            sample = self.recorded(kind, language)
            if sample is not None:
                return sample
        make: dict[str, Callable[[str], Sample | None]] = {
            "digits": self.digits,
            "numbers": self.numbers,
            "words": self.words,
            "questions": self.question,
        }
        return make[kind](language) if spoken else None

    def open(self, recordings: Sequence[speech.Recording]) -> Iterator[Sample]:
        """Recorded phrases, each once, then again with other augmentation."""
        for recording in (
            (r for again in repeat(recordings) for r in again)
            if self.split == "train"
            else recordings
        ):
            clip = self.studio.recorded(
                speech.load(recording.path), self.rng, self.split == "train"
            )
            yield asked(
                clip,
                TRANSCRIBE,
                recording.text,
                recording,
                task="open",
                language=recording.language,
                stamp=recording.id,
            )

    def toy_words(self) -> Iterator[Sample]:
        """Single recorded nouns, each once."""
        for recording in self.toys:
            clip = self.studio.recorded(speech.load(recording.path), self.rng, False)
            yield asked(
                clip,
                TRANSCRIBE,
                recording.text,
                recording,
                task="words",
                language=recording.language,
            )


def training(work: Work, rng: Random) -> Iterator[Sample]:
    """Endless training samples in the proportions of `SHARES`."""
    kinds = Kinds(work, "train", rng)
    open_ = kinds.open(kinds.captions) if kinds.captions else iter(())
    made = 0
    while True:
        kind, part = "digits", made / work.rows["train"]
        kinds.count = 1 if part < SINGLE_DIGITS else 0
        kinds.studio.strength = 0.15 if part < CLEAN else 0.6
        if part >= DIGITS:
            kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        sample = next(open_, None) if kind == "open" else kinds.closed(kind)
        if sample is not None:
            made += 1
            yield sample


def testing(work: Work, rng: Random) -> Iterator[Sample]:
    """Every kind by every group of voices, in turn."""
    kinds = Kinds(work, "test", rng)
    streams: list[Iterator[Sample | None]] = []
    for make, rows, languages in (
        (kinds.digits, 150, tuple(LANGUAGES)),
        (kinds.words, 90, work.languages),
        (kinds.numbers, 90, tuple(LANGUAGES)),
        (kinds.question, 90, work.languages),
    ):
        for group in ("espeak_unseen", "flite_slt"):
            spoken = [language for language in languages if group in kinds.studio.groups(language)]
            streams.append(in_turn(make, spoken, group, rows))
    streams.append(kinds.recorded("digits") for _ in range(150))
    streams.append(kinds.recorded("numbers") for _ in range(50))
    streams += [kinds.open(kinds.captions[:150]), kinds.toy_words()]
    return (sample for sample in interleave(streams) if sample is not None)


def in_turn(
    make: Callable[[str, str], Sample | None], languages: Sequence[str], group: str, rows: int
) -> Iterator[Sample | None]:
    """So many rows by a group of voices, languages in turn; none where the group speaks no language here."""
    for i in range(rows if languages else 0):
        yield make(languages[i % len(languages)], group)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        made = training(work, rng) if split == "train" else testing(work, rng)
        return numbered("asr", split, islice(made, work.rows[split]))

    return fill(work, "asr", make)


# By bytes: by landmarks, synthetic voices that say nearly the same would be taken for copies.
corpus = Corpus(
    "asr", build=build, corpora=("image_qa",), steps=against("asr", ways=("same bytes",))
)
