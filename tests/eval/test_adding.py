"""The benchmark file in docs/evaluation.md, run from a folder."""

import json
import re
from pathlib import Path

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_eval import evaluation
from polyphi_eval.benchmark import Benchmark, benchmarks, from_file, suite
from polyphi_eval.sources import Data

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


class Atlas:
    """Answers one question exactly and another one with additional words."""

    def generate_many(self, conversations, *, sampling, adapter="auto"):  # type: ignore[no-untyped-def]
        from polyphi.types.completion import Completion

        answers = {"France": "Paris.", "Japan": "That is Tokyo."}
        return [
            Completion(
                next((a for c, a in answers.items() if c in conversation[-1].text), "Atlantis")
            )
            for conversation in conversations
        ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (example,) = re.findall(r"(?s)```python\n(.*?)```", DOCS.read_text(encoding="utf-8"))
    path = tmp_path / "capitals.py"
    path.write_text(example, encoding="utf-8")
    return path


@pytest.fixture
def capitals(file: Path) -> Benchmark:
    return from_file(str(file))


def test_the_file_is_found_beside_others(file: Path, capitals: Benchmark) -> None:
    assert capitals.name == "capitals" and capitals not in benchmarks()
    chosen = suite("chartqa", str(file), str(file))
    assert [b.name for b in chosen] == ["chartqa", "capitals"]


def test_it_runs_from_its_files_to_the_page_and_is_scored_again(file: Path, tmp_path: Path) -> None:
    subject = evaluation.EvaluatedModel(Atlas(), "atlas", "atlas 1")  # type: ignore[arg-type]
    out = tmp_path / "results"
    rows = evaluation.measure(subject, (str(file),), out, data=None)
    assert [(r.label, r.n, round(r.score, 2)) for r in rows] == [
        ("Capitals", 3, 0.33),
        ("Capitals of Europe", 1, 1.0),
    ]
    assert rows[0].lenient == pytest.approx(2 / 3)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Other benchmarks" in page and "Capitals of Europe" in page
    before = json.loads((out / "results.json").read_text())["rows"]
    with pytest.raises(ValueError, match=r"--suite my_bench\.py"):
        evaluation.rescored(out)
    again = evaluation.rescored(out, (str(file),))
    assert [r.as_dict() for r in again] == [r.as_dict() for r in rows]
    assert json.loads((out / "results.json").read_text())["rows"] == before


def test_it_passes_the_tests_of_all_benchmarks(capitals: Benchmark, tmp_path: Path) -> None:
    capitals.write_fixtures(tmp_path)
    assert evaluation.data_problems([capitals], Data(tmp_path)) == {}
    samples = list(capitals.load(Data(tmp_path)))
    assert capitals.scorer is not None
    for sample in samples:
        scored = Sample(
            sample.id,
            (Message.assistant(sample.answer),),
            sample.source,
            sample.licence,
            sample.meta,
        )
        assert capitals.scorer(sample.answer, scored).value == 1.0
        for hostile in ("", "x " * 500_000, "\x00\u2028", "\ud800"):
            assert capitals.scorer(hostile, scored).value == 0.0


def test_missing_data_are_named_with_where_they_come_from(
    capitals: Benchmark, tmp_path: Path
) -> None:
    (message,) = evaluation.data_problems([capitals], Data(tmp_path))["capitals"]
    assert "test.jsonl is missing" in message and "our wiki" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("benchmark = 3", "expected `benchmark = Benchmark"),
        ("1 / 0", "ZeroDivisionError"),
        (None, "found no such file"),
        ("from polyphi_eval.benchmarks.vision.chartqa import benchmark", "already"),
    ],
)
def test_a_file_without_a_benchmark_is_refused(
    text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        suite(str(tmp_path / "mine.py"))


def test_other_names_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"expected all, mini, table1, .*my_bench\.py, .*chartqa"):
        suite("chartQA")


def test_the_suite_mini_needs_no_judge() -> None:
    assert all(b.judging is None for b in suite("mini"))
    assert {b.name for b in suite("all")} == {b.name for b in benchmarks()}
