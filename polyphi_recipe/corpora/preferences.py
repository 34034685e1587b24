"""Pairs of a preferred and a dispreferred answer: right over wrong or unhelpful answers, refusals over compliance with
harmful requests, and help over refusals of their innocuous look-alikes, in all eight languages (report 5.1)."""

from collections.abc import Iterator
from random import Random

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import fill, interleave, origin
from polyphi_recipe.raw.safety import PreferencePair, every, requests
from polyphi_recipe.synthetic.instructions import training
from polyphi_recipe.synthetic.qa import QA

UNHELPFUL = ("I don't know.", "Ask someone else.", "...", "That is a good question.")


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        if split == "train":
            safety = (_safety(r) for r in requests(split, Random(rng.random()), work.languages))
            rows = interleave([safety, _helpful(work, Random(rng.random()))])
        else:
            rows = (_safety(r) for r in _balanced(work, split, rng))
        for i, (messages, meta) in enumerate(rows):
            yield Sample(f"preferences-{split}-{i:06d}", messages, meta=meta, **origin("polyphi"))

    yield from fill(work, "preferences", make)


PreferenceRow = tuple[tuple[Message, ...], dict]


def _balanced(work: Work, split: str, rng: Random) -> Iterator[PreferencePair]:
    """Return held-out requests, harmful ones and look-alikes in turn, in random order of languages."""
    pool = list(every(split, work.languages))
    rng.shuffle(pool)
    return interleave(
        [iter([r for r in pool if r.harmful]), iter([r for r in pool if not r.harmful])]
    )


def _safety(request: PreferencePair) -> PreferenceRow:
    meta = {
        "task": "refusal" if request.harmful else "overrefusal",
        "language": request.language,
        "refuse": request.harmful,
        "rejected": request.rejected,
    }
    return (Message.user(request.question), Message.assistant(request.chosen)), meta


def _helpful(work: Work, rng: Random) -> Iterator[PreferenceRow]:
    """Yield pairs of a right answer and the answer to another question of the family, or an unhelpful phrase."""
    others: dict[str, QA] = {}
    for qa in training(work, rng):
        other = others.get(qa.task)
        others[qa.task] = qa
        differs = other is not None and other.answer != qa.answer
        rejected = (
            other.answer if other and differs and rng.random() < 0.75 else rng.choice(UNHELPFUL)
        )
        meta = {"task": "helpful", "language": qa.language, "rejected": rejected}
        yield (Message.user(qa.question), Message.assistant(qa.answer)), meta


corpus = Corpus("preferences", build)
