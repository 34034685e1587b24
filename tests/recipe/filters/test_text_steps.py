"""The text steps in one corpus: dropped documents are recorded with the reason, and rows have a lineage."""

import json
from collections.abc import Iterator
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from polyphi.data.shards import Sample, Shards, document
from polyphi_recipe.filters.language import LanguageFilter
from polyphi_recipe.filters.pii import PiiFilter
from polyphi_recipe.filters.quality import Classifier, QualityClassifierFilter
from polyphi_recipe.filters.rules import QualityRulesFilter
from polyphi_recipe.pipeline import corpus
from polyphi_recipe.pipeline.corpus import Corpus, Work
from tests.recipe.filters.test_filters import PROSE, SENTENCES, head

PAGES = {
    "kept": f"{PROSE['en']}\nWrite to ada@lovelace.org for the tides.",
    "kept-ja": PROSE["ja"],
    "polish": "Pociąg nad morze odjeżdża w południe z drugiego peronu dworca głównego.",
    "short": SENTENCES["en"],
    "dull": PROSE["de"],
}


def pages(work: Work) -> Iterator[tuple[str, Sample]]:
    for name, text in PAGES.items():
        yield "train", document(name, text, "here", "MIT")


def test_a_corpus_of_clean_text(tmp_path: Path) -> None:
    def steps(work: Work) -> list[PipelineStep]:
        classifier = Classifier(
            {(c, "educational"): head(-1.0 if c == "de" else 1.0) for c in ("en", "de", "ja")}
        )
        return [
            LanguageFilter(),
            QualityRulesFilter(),
            QualityClassifierFilter(classifier, least={"educational": 0.5}),
            PiiFilter(),
        ]

    work = Work({"train": 10}, 0, tmp_path / "cache", tmp_path / "data", report=lambda line: None)
    corpus.build(Corpus("clean", build=pages, steps=steps), work)
    samples = {one.id: one for one in Shards(tmp_path / "data" / "clean" / "train")}
    assert set(samples) == {"kept", "kept-ja"}
    assert samples["kept"].answer == f"{PROSE['en']}\nWrite to [EMAIL] for the tides."
    lineage = samples["kept"].meta["lineage"]
    assert [step["step"] for step in lineage] == ["language", "rules", "quality", "pii"]
    assert lineage[-1] == {"step": "pii", "EMAIL": 1}
    build_folder = tmp_path / "data" / "clean" / ".made"
    lines = [
        json.loads(line)
        for file in build_folder.rglob("dropped/*/*.jsonl")
        for line in file.read_text().splitlines()
    ]
    reasons = {line["id"]: line["reason"] for line in lines}
    assert reasons["polish"].startswith("language_pl_")
    assert reasons["short"] == "gopher_short_doc"
    assert reasons["dull"] == "quality_low_educational"
