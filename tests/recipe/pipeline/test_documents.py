"""The conversion to datatrove's documents and back loses nothing."""

from dataclasses import replace
from pathlib import Path

from polyphi.data.shards import Shards
from polyphi_recipe.pipeline.documents import document, edit, note, sample
from tests.core.train.small import write_corpora


def test_a_sample_comes_back(tmp_path: Path) -> None:
    for name in ("documents", "questions", "pictures", "sounds"):
        for one in Shards(write_corpora(tmp_path) / name / "train"):
            assert sample(document(one)) == one


def test_a_document_says_all_that_is_said(tmp_path: Path) -> None:
    one = Shards(write_corpora(tmp_path) / "pictures" / "train")[0]
    doc = document(one)
    assert doc.text == f"{one.messages[0].text}\n{one.answer}"
    assert [m.media_bytes for m in doc.media] == [one.messages[0].parts[0].source]


def test_what_steps_find_stays_with_the_sample(tmp_path: Path) -> None:
    one = Shards(write_corpora(tmp_path) / "questions" / "train")[0]
    doc = document(one)
    note(doc, "language", found="en", score=0.9)
    again = document(sample(doc))  # a second pipeline continues the lineage of the first
    note(again, "quality", score=0.5)
    assert sample(again) == replace(
        one,
        meta={
            **one.meta,
            "lineage": [
                {"step": "language", "found": "en", "score": 0.9},
                {"step": "quality", "score": 0.5},
            ],
        },
    )


def test_edits_reach_every_text(tmp_path: Path) -> None:
    one = Shards(write_corpora(tmp_path) / "pictures" / "train")[0]
    doc = document(one)
    assert not edit(doc, str)
    assert edit(doc, str.upper)
    assert doc.text == sample(doc).messages[0].text + "\n" + sample(doc).answer
    assert sample(doc).answer == one.answer.upper()
    assert sample(doc).messages[0].parts[0] == one.messages[0].parts[0]
