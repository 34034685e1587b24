"""Safety preferences in all eight languages: the recipe's English pairs and a red team's findings, translated by a
teacher and translated back to check (report 5.1). One task per language; pairs that lose their meaning are quarantined.

    polyphi curate examples/curate_safety.py --out runs/nano --workers 8
    polyphi curate show safety --out runs/nano
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from polyphi.data.shards import Sample, Shards
from polyphi_eval.services.endpoint import Endpoint
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw import feedback
from polyphi_recipe.raw.real_text import in_split
from polyphi_recipe.syntheses.translations import in_languages
from polyphi_recipe.text.lexicon import LANGUAGES

TEACHER = partial(Endpoint, "http://127.0.0.1:8000/v1", "some-model", key_from="TEACHER_KEY")
AT_LEAST = 50.0  # chrF of each text translated back; inspect the rejected ones, then choose
FINDINGS = Path("feedback.jsonl")


def pairs(work: Work, split: str) -> Iterator[Sample]:
    """The recipe's English pairs, and one finding in ten for testing, the others for training."""
    for sample in Shards(work.data / "preferences" / split):
        if sample.meta["language"] == "en":
            yield sample
    if FINDINGS.exists():
        findings = feedback.read(FINDINGS)
        yield from feedback.pairs(f for f in findings if in_split(split, "feedback", f.prompt))


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    (split,) = work.rows
    number, of = work.part if split == "train" else (0, 1)  # the test split is one task
    translations = in_languages(
        partial(pairs, work, split),
        list(LANGUAGES)[number::of],
        TEACHER(),
        Path("work/safety"),
        at_least=AT_LEAST,
        suffix=split,
    )
    return ((split, sample) for sample in translations)


corpus = Corpus("safety", build, corpora=("preferences",), tasks=len(LANGUAGES), files=(FINDINGS,))
