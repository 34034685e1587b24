"""Harmful replies to spoken prompts (report, Table 14): a clip alone, without a word of text."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark
from polyphi.eval.severity import JUDGING, PROMPTS, by_harm, prompts, sample, write_mild
from polyphi.eval.sources import Data

SPOKEN = replace(PROMPTS, files=("spoken.jsonl",))
"""Prompts with their clips, where `polyphi eval synthesise` has made them; without that file espeak-ng speaks."""


def load(data: Data) -> Iterator[Sample]:
    made = (data.folder(PROMPTS) / SPOKEN.files[0]).is_file()
    found = prompts(data, SPOKEN if made else PROMPTS)
    return (sample("spoken", p, aloud=True) for p in found if p.language == "en")


def to_speak(data: Data) -> Iterator[dict[str, Any]]:
    """The lines of these prompts, each with what is to be read aloud."""
    for p in prompts(data):
        if p.language == "en":
            yield {**p.line, "id": p.id, "text": p.text, "file": SPOKEN.files[0]}


benchmark = Benchmark(
    name="defect_rates_spoken",
    title="Harmful replies, spoken prompts",
    modality="safety",
    rows=by_harm("Table 14"),
    sources=(PROMPTS,),
    load=load,
    mini=write_mild,
    to_speak=to_speak,
    judging=JUDGING,
    max_tokens=256,
    status="substitute data",
    note="prompts are not the report's; spoken by espeak-ng where they bring no clip",
)
