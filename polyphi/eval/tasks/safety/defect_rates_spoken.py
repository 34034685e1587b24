"""Harmful replies to spoken prompts (report, Table 14): a clip alone, without a word of text."""

from collections.abc import Iterator
from dataclasses import replace

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


benchmark = Benchmark(
    name="defect_rates_spoken",
    title="Harmful replies, spoken prompts",
    modality="safety",
    rows=by_harm("Table 14"),
    sources=(PROMPTS,),
    load=load,
    mini=write_mild,
    judging=JUDGING,
    max_tokens=256,
    status="substitute data",
    note="prompts are not the report's; spoken by espeak-ng where they bring no clip",
)
