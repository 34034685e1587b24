"""A corpus of one's own: web pages, PDFs and rows in a folder `raw`, in one of our languages, without rubbish, without
personal data.

    polyphi curate examples/curate_pages.py --out runs/mine --workers 8
    polyphi curate show pages --out runs/mine
"""

from collections.abc import Iterator

from datatrove.pipeline.base import PipelineStep

from polyphi.data.shards import Sample
from polyphi_recipe.filters.language import LanguageFilter
from polyphi_recipe.filters.pii import Fakes, PiiFilter
from polyphi_recipe.filters.rules import QualityRulesFilter
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw import pages


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    """One document in a hundred is for testing; its content decides which."""
    (split,) = work.rows
    for sample in pages.read(["raw"], source="my crawl", licence="CC-BY-4.0", part=work.part):
        if (int(sample.id[:8], 16) % 100 == 0) == (split == "test"):
            yield split, sample


def steps(work: Work) -> list[PipelineStep]:
    return [LanguageFilter(), QualityRulesFilter(), PiiFilter(fake=Fakes(seed=work.seed))]


corpus = Corpus("pages", build, steps=steps, tasks=16)
