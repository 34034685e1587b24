"""Nothing is lost on the way to datatrove and back."""

from dataclasses import replace
from pathlib import Path

from train.small import write_corpora

from polyphi.curate.documents import document, edit, note, sample
from polyphi.data.shards import Shards


def test_a_sample_comes_back(tmp_path: Path) -> None:
    for name in ("documents", "questions", "pictures", "sounds"):
        for one in Shards(write_corpora(tmp_path) / name / "train"):
            assert sample(document(one)) == one


def test_a_document_says_all_that_is_said(tmp_path: Path) -> None:
    one = Shards(write_corpora(tmp_path) / "pictures" / "train")[0]
    made = document(one)
    assert made.text == f"{one.messages[0].text}\n{one.answer}"
    assert [m.media_bytes for m in made.media] == [one.messages[0].parts[0].source]


def test_what_steps_find_stays_with_the_sample(tmp_path: Path) -> None:
    one = Shards(write_corpora(tmp_path) / "questions" / "train")[0]
    made = document(one)
    note(made, "language", found="en", score=0.9)
    again = document(sample(made))  # a second pipeline goes on where the first ended
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
    made = document(one)
    assert not edit(made, str)
    assert edit(made, str.upper)
    assert made.text == sample(made).messages[0].text + "\n" + sample(made).answer
    assert sample(made).answer == one.answer.upper()
    assert sample(made).messages[0].parts[0] == one.messages[0].parts[0]
