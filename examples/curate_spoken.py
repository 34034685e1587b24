"""Spoken queries out of one's own text rows: read aloud by voices of which some are held out, unfit ones left out, and
clips that a recognizer doesn't understand, too (report 3.3, 3.4.2).

    polyphi curate examples/curate_spoken.py --out runs/mine --workers 8
    polyphi curate show spoken --out runs/mine
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from polyphi.data import user_data
from polyphi.data.shards import Sample
from polyphi_eval.services.speech_synthesis import Voice
from polyphi_recipe.filters.transcripts import WordErrorRateFilter, pocketsphinx
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import in_split
from polyphi_recipe.synthetic.read_aloud import ReadAloud, split_voices

QUERIES = Path("queries.jsonl")
# Voice("espeak-ng", "fr", "f2"), Voice("endpoint", "en", "ann", where="http://127.0.0.1:8000/v1"), and
# Voice("command", "en", where="my-tts --lang {language} {text}") are voices, too.
VOICES = split_voices(
    train=[Voice("flite", "en", name) for name in ("rms", "awb", "kal16")],
    test=[Voice("flite", "en", "slt")],
)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    """Rows in OpenAI's, ShareGPT's, LLaVA's or Alpaca's format; one query in ten is for testing."""
    (split,) = work.rows
    for sample in user_data.read(QUERIES, licence="CC-BY-4.0"):
        if in_split(split, "query", sample.prompt[-1].text):
            yield split, replace(sample, meta={"language": "en"})


def steps(work: Work) -> list[PipelineStep]:
    return [ReadAloud(VOICES, strength=0.1), WordErrorRateFilter(pocketsphinx(), limit=0.5)]


corpus = Corpus("spoken", build, steps=steps)
