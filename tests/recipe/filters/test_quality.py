"""The quality classifier trains on a stream, is deterministic, and can be saved and loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyphi_recipe.filters import quality
from polyphi_recipe.filters.quality import (
    Labelled,
    QualityClassifierFilter,
    labelled,
    load,
    measure,
    save,
    train,
)
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.raw import labels, packages
from polyphi_recipe.text.lexicon import LANGUAGES
from tests.recipe.filters.test_filters import HEADS


def refuse(*_: object) -> None:
    raise packages.Unavailable("no network")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Return a `Work` on a machine without network: requests and word-shuffled docstrings are available."""
    monkeypatch.setattr(packages, "_fill", refuse)
    return Work({"train": 1}, 0, tmp_path / "cache", tmp_path / "data", report=lambda line: None)


def requests(work: Work, split: str) -> list[Labelled]:
    return [row for row in labels.rows(work, split) if row.aspect == "toxicity"]


def test_verbs_it_has_not_seen_with_an_object(work: Work) -> None:
    rows = requests(work, "train")
    classifier = train(lambda: rows, epochs=4)
    measured = measure(classifier, requests(work, "test"))
    assert [m.language for m in measured] == sorted(LANGUAGES)
    assert all(m.positives == m.negatives == 40 for m in measured)
    # Measured: 1.00 and 1.00 everywhere. The objects are the same, only the combinations with verbs are new.
    assert min(m.precision for m in measured) > 0.8 and min(m.recall for m in measured) > 0.8
    assert all(low <= m.recall <= high for m in measured for low, high in [m.recall_interval])


def test_labels_of_packages_without_any_package(work: Work) -> None:
    rows = list(labels.rows(work, "train"))
    assert {(r.language, r.aspect) for r in rows} >= {("en", "obscurity"), ("ja", "toxicity")}
    assert rows == list(labels.rows(work, "train"))
    assert not {r.text for r in rows} & {r.text for r in labels.rows(work, "test")}


def test_the_order_of_shards_and_runs_changes_nothing(work: Work) -> None:
    rows = requests(work, "train")
    one, same = (train(lambda: rows, epochs=2) for _ in range(2))
    assert all((one.heads[key] == same.heads[key]).all() for key in one.heads)
    by_label = sorted(rows, key=lambda r: r.label)
    assert min(m.recall for m in measure(train(lambda: by_label, epochs=4), rows)) > 0.8


def test_rows_are_read_as_a_stream(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows in memory during training are at most a buffer and a batch per head."""
    monkeypatch.setattr(quality, "BUFFER", 16)
    alive, most = 0, 0

    class Row(Labelled):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows() -> Iterator[Labelled]:
        nonlocal alive, most
        rng = Random(0)
        for i in range(3000):
            alive += 1
            most = max(most, alive)
            words = " ".join(rng.choices("ab" if i % 2 else "cd", k=5))
            yield Row(words, "en", "odd", bool(i % 2))

    train(rows, epochs=1)
    assert most < 2 * quality.BATCH + 16


def test_it_comes_back_from_its_files(work: Work, tmp_path: Path) -> None:
    classifier = train(lambda: requests(work, "train"), epochs=1)
    save(classifier, tmp_path / "quality")
    assert {p.suffix for p in (tmp_path / "quality").iterdir()} == {".safetensors", ".json"}
    again = load(tmp_path / "quality")
    assert list(again.heads) == list(classifier.heads)
    text = "How can I buy a bomb?"
    assert again.scores(text, "en") == classifier.scores(text, "en")
    with pytest.raises(ValueError, match=r"quality\.json"):
        load(tmp_path)


def test_rows_of_jsonl_and_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"text": f"{word} {i}", "language": "en", "aspect": "good", "label": word == "yes"}
        for i in range(20)
        for word in ("yes", "no")
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    read = list(labelled([tmp_path / "a.jsonl", tmp_path / "b.parquet"]))
    assert read[:40] == read[40:] == [Labelled(**row) for row in rows]
    quality.main(["train", str(tmp_path / "q"), str(tmp_path / "b.parquet")])
    quality.main(["measure", str(tmp_path / "q"), str(tmp_path / "a.jsonl")])
    assert "| good | en | 20 | 20 | 1.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "reason"),
    [({"text": "a", "language": "en", "aspect": "good"}, "lacks"), ({"label": 3}, "found 3")],
)
def test_rows_that_are_not_whole_are_named(tmp_path: Path, row: dict, reason: str) -> None:
    complete = {"text": "a", "language": "en", "aspect": "good"} | row
    (tmp_path / "a.jsonl").write_text(json.dumps(complete))
    with pytest.raises(ValueError, match=f"row 0.*{reason}"):
        list(labelled([tmp_path / "a.jsonl"]))


def test_one_label_alone_teaches_nothing() -> None:
    with pytest.raises(ValueError, match="'en', 'good'"):
        train(lambda: [Labelled("a", "en", "good", True)])


def test_an_aspect_that_no_language_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"good, toxic; .*nice"):
        QualityClassifierFilter(HEADS, least={"nice": 0.5})
