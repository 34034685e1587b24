"""Speech translation: spoken digit strings, numbers and words, into and out of English.

Two forms of the same task, as in the report (Table 5): the translation alone, and chain of thought, where the
transcript comes first and `<sep>` between the two. Training mixes both; the test split asks both of the same clips.
Digits are translated as words, since written digits are the same in every language. Targets by machine translation, for
recordings of one's own: `speech_translation` (polyphi/curate/translations.py, docs/speech.md).
"""

from collections.abc import Iterator
from itertools import islice
from random import Random

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.curate.text import fill, interleave
from polyphi.curate.waves import Wave
from polyphi.data.shards import Sample
from polyphi.messages import TRANSLATE
from polyphi.synthetic import speech
from polyphi.synthetic.speech import Reader, Speaker, Studio, asked, chained, numbered
from polyphi.text.lexicon import LANGUAGES, digit_words, lexicon, number_words

RECORDED_SHARE = 0.2  # of training digit strings


class Speech:
    """Draws a phrase with its translation, and has it spoken."""

    def __init__(self, work: Work, split: str, rng: Random, studio: Studio | None = None) -> None:
        self.split, self.rng, self.studio = split, rng, studio or Studio(work)
        self.languages = work.languages

    def direction(self) -> tuple[str, str]:
        """(source, target): English on one side, as in the public test sets."""
        spoken = self.studio.languages
        source = self.rng.choice(spoken) if self.rng.random() < 0.6 or "en" not in spoken else "en"
        return source, self.target(source)

    def target(self, source: str) -> str:
        return (
            "en"
            if source != "en"
            else self.rng.choice([language for language in LANGUAGES if language != "en"])
        )

    def phrase(self, source: str, target: str) -> tuple[str, str, str, str]:
        """(kind, transcript, spoken text, translation)."""
        worded = {source, target} <= set(self.languages)
        kind = self.rng.choice(("digits", "digits", "numbers", "words" if worded else "numbers"))
        if kind == "digits":
            numbers = speech.digits(self.rng, self.split)
            written = speech.written(numbers)
            said = speech.digit_text(numbers, source, self.rng)
            return kind, written, said, digit_words(written.replace(" ", ""), target)
        if kind == "numbers":
            n = self.rng.randint(10, 99)
            return kind, number_words(n, source), number_words(n, source), number_words(n, target)
        words = self.rng.sample(list(lexicon().values()), self.rng.randint(1, 3))
        heard = [w[source] for w in words]
        return kind, " ".join(heard), ", ".join(heard), " ".join(w[target] for w in words)

    def synthetic(self, group: str = "", source: str = "") -> tuple[Sample, Sample]:
        if source:
            target = self.target(source)
        else:
            source, target = self.direction()
        kind, transcript, said, translation = self.phrase(source, target)
        speaker = self.studio.speaker(source, self.split, self.rng, group)
        clip = self.studio.say(said, speaker, self.rng)
        return both(clip, speaker, transcript, translation, target, language=source, kind=kind)

    def recorded(self) -> tuple[Sample, Sample] | None:
        """Digits by somebody recorded; None where nobody is."""
        if not (found := self.studio.readers(self.split)):
            return None
        reader = self.rng.choice(found)
        numbers = speech.digits(self.rng, self.split, [n for n in reader.numbers if n < 10])
        written, target = speech.written(numbers), self.target(reader.language)
        translation = digit_words(written.replace(" ", ""), target)
        clip = self.studio.read(numbers, reader, self.rng)
        return both(
            clip, reader, written, translation, target, language=reader.language, kind="digits"
        )


def both(
    clip: Wave,
    speaker: Speaker | Reader,
    transcript: str,
    translation: str,
    target: str,
    **meta: str,
) -> tuple[Sample, Sample]:
    """The clip asked about directly and by chain of thought."""
    meta = {"task": "ast", "to": target, "heard": transcript, **meta}
    prompt = TRANSLATE.format(LANGUAGES[target])
    direct = asked(clip, prompt, translation, speaker, cot=False, **meta)
    return direct, chained(direct, transcript)


def training(work: Work, rng: Random, studio: Studio | None = None) -> Iterator[Sample]:
    """Every clip once, directly or by chain of thought."""
    made = Speech(work, "train", rng, studio)
    while True:
        pair = None
        if rng.random() < RECORDED_SHARE or not made.studio.languages:
            pair = made.recorded()
        if pair is None and made.studio.languages:
            pair = made.synthetic()
        if pair is not None:
            yield rng.choice(pair)


def testing(work: Work, rng: Random) -> Iterator[Sample]:
    """Both forms of every clip, one after the other; unseen variants, flite and recorded people are as 6 : 1 : 1."""
    made = Speech(work, "test", rng)
    groups = ["espeak_unseen"] * 3 + ["flite_slt"] + ["espeak_unseen"] * 3 + ["recorded"]

    def stream(group: str) -> Iterator[tuple[Sample, Sample]]:
        spoken = [language for language in LANGUAGES if group in made.studio.groups(language)]
        # Every other clip is English, which goes into all the others.
        order = [x for language in spoken if language != "en" for x in (language, "en")] or spoken
        for i in range(120 if group == "espeak_unseen" else 20):
            pair = made.recorded() if group == "recorded" else None
            if pair is None and order:
                pair = made.synthetic(group, order[i % len(order)])
            if pair is not None:
                yield pair

    streams = {group: stream(group) for group in set(groups)}
    return (sample for pair in interleave([streams[group] for group in groups]) for sample in pair)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        made = training(work, rng) if split == "train" else testing(work, rng)
        return numbered("ast", split, islice(made, work.rows[split]))

    return fill(work, "ast", make)


# By bytes: by landmarks, synthetic voices that say nearly the same would be taken for copies.
corpus = Corpus("ast", build=build, steps=against("ast", ways=("same bytes",)))
