"""Rows of one's own, cleaned before training: pictures and clips with questions and answers, in the forms of
docs/finetune_reference.md. Copies go, what the model will be measured on goes, and personal data become fakes.

    polyphi curate examples/curate_own.py --out runs/desk
    polyphi curate show desk --out runs/desk
    polyphi finetune both --model runs/nano/model --data runs/desk/data/desk --out runs/adapter

What is dropped stays aside with the reason: runs/desk/data/desk/.made/*/*/dropped.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from polyphi.data import user_data
from polyphi.data.shards import Sample
from polyphi_recipe.dedup.decontaminate import Decontaminate, Index
from polyphi_recipe.dedup.dedup import AUDIO, EXACT, IMAGES, deduplicate
from polyphi_recipe.filters.pii import Fakes, PiiFilter
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import held_out

ROWS = ("receipts.jsonl", "calls.jsonl")
MEASURED = ("desk_test.jsonl",)  # rows that the model will be measured on
BAD = "bad_rows.txt"


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    """A twentieth of the rows is for testing."""
    (split,) = work.rows
    with Path(BAD).open("w") as bad:
        for sample in user_data.read(*ROWS, bad=lambda line: print(line, file=bad)):
            if held_out(sample.id, percent=5) == (split == "test"):
                yield split, replace(sample, meta={"language": "en", **sample.meta})


def steps(work: Work) -> list[PipelineStep]:
    folder = work.data / "desk"
    Index.of({"mine": user_data.read(*MEASURED)}).save(folder / "known")
    return [
        Decontaminate(folder / "known", ledger=folder / "ledger"),
        PiiFilter(fake=Fakes(seed=work.seed)),
    ]


corpus = Corpus(
    "desk",
    build,
    steps=steps,
    across=tuple(partial(deduplicate, alike) for alike in (EXACT, IMAGES, AUDIO)),
)
