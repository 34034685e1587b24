"""A corpus that loses most of its samples says which step dropped them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from polyphi.data.shards import Sample, document
from polyphi_recipe.corpora import cards
from polyphi_recipe.pipeline import corpus
from polyphi_recipe.pipeline.corpus import Corpus, Work


class Short(BaseFilter):
    """Drops all samples from a number on, for two reasons."""

    name = "Short [texts]"

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return int(doc.id) < self.first or (False, "tiny" if int(doc.id) == 11 else "short")


def numbers(work: Work) -> Iterator[tuple[str, Sample]]:
    (split,) = work.rows
    for i in range(12):
        yield split, document(str(i), f"number {i} \x1b[2Jin red", "here", "MIT")


def build(folder: Path, first: int, **fields: object) -> tuple[list[str], dict]:
    """Build a corpus that keeps the first samples; returns the reports and the manifest."""

    def steps(work: Work) -> list[PipelineStep]:
        return [Short(12), Short(first)]

    reports: list[str] = []
    pages = Corpus(**{"name": "pages", "build": numbers, "steps": steps, **fields})  # type: ignore[arg-type]
    work = Work({"train": 20}, 0, folder, folder / "data", report=reports.append)
    return reports, corpus.build(pages, work)["train"]


@pytest.mark.parametrize("rows", [0, 5])
def test_most_samples_dropped_is_a_warning_with_the_first(rows: int, tmp_path: Path) -> None:
    (report,), manifest = build(tmp_path, rows)
    first, *examples = report.splitlines()
    lost = 12 - rows
    assert first.startswith(f"warning: pages/train has {rows} rows")
    assert f"of 12 samples {lost} were dropped" in first
    assert f"{lost}, by Short [texts] 2 ({lost - 1} for short)" in first
    assert [line.split(":")[:2] for line in examples] == [
        [f"  {id}", " short"] for id in range(rows, rows + 3)
    ]
    assert f"number {rows}" in examples[0] and "\x1b" not in report
    assert (manifest["read"], manifest["dropped"]) == (12, {"Short [texts] 2": lost})
    card = cards.card(tmp_path / "data" / "pages")
    assert report in card and f"  -{examples[0][1:]}" in card  # below its step, too


def test_half_dropped_is_none(tmp_path: Path) -> None:
    reports, manifest = build(tmp_path, 6)
    assert not reports and manifest["dropped"] == {"Short [texts] 2": 6} and manifest["rows"] == 6


def test_nothing_read_is_a_warning(tmp_path: Path) -> None:
    (report,), manifest = build(tmp_path, 12, build=lambda work: iter(()))
    assert report == "warning: pages/train has no rows: its `build` yielded none"
    assert manifest["read"] == 0


def test_a_manifest_of_an_earlier_version_has_none(tmp_path: Path) -> None:
    build(tmp_path, 5)
    path = tmp_path / "data" / "pages" / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["read"], manifest["dropped"]
    path.write_text(json.dumps(manifest))
    assert "warning" not in cards.card(tmp_path / "data" / "pages")


def test_a_source_that_loses_most_of_its_samples_is_a_warning(tmp_path: Path) -> None:
    """Beside others that lose none; a source of few samples may be a single document, and has none."""
    samples = {"a.jsonl": [0] * 12, "b.jsonl": [5, 6, 7, 8, 9, 10], "c.txt": [7, 8]}

    def several(work: Work) -> Iterator[tuple[str, Sample]]:
        (split,) = work.rows
        for source, ids in samples.items():
            yield from ((split, document(f"{i}", f"of {source}", source, "MIT")) for i in ids)

    (report,), manifest = build(tmp_path, 6, build=several)
    first, *examples = report.splitlines()
    assert first.startswith(
        "warning: pages/train has 1 row of b.jsonl: of 6 samples 5 were dropped"
    )
    assert [line.strip() for line in examples] == [f"{i}: short: of b.jsonl" for i in (6, 7, 8)]
    assert manifest["sources_read"] == {"a.jsonl": 12, "b.jsonl": 6, "c.txt": 2}
    assert manifest["sources_dropped"]["b.jsonl"] == {"Short [texts] 2": 5}
