"""DocVQA: rows for questions with answers; a file of answers for the server that scores the others."""

import json
from pathlib import Path
from typing import Any

import pytest

from polyphi_eval import score as scoring
from polyphi_eval.benchmark import Benchmark, suite
from polyphi_eval.sources import Data
from tests.fixtures.scripted_model import measured


def run(benchmark: Benchmark, root: Path, out: Path, **more: Any) -> list[scoring.Measured]:
    return measured(benchmark, Data(root), out, lambda messages: " 2041 ", **more)


@pytest.mark.parametrize("benchmark", suite("docvqa", "infovqa"), ids=lambda b: b.name)
def test_answers_to_test_questions_go_into_a_file_and_count_in_no_row(
    benchmark: Benchmark, tmp_path: Path
) -> None:
    benchmark.write_fixtures(tmp_path)
    (row,) = run(benchmark, tmp_path, tmp_path / "out")
    assert (row.n, row.status) == (3, "server-scored")
    file = tmp_path / "out" / f"{benchmark.name}.submission.json"
    assert json.loads(file.read_text()) == [{"questionId": n, "answer": "2041"} for n in range(3)]
    # From the lines alone, as `polyphi eval score` does, which joins shards.
    file.unlink()
    ((again, _),) = scoring.rescore(tmp_path / "out")
    assert again == benchmark and len(json.loads(file.read_text())) == 3


def test_without_test_files_or_with_a_limit_there_is_no_submission_file(tmp_path: Path) -> None:
    (docvqa,) = suite("docvqa")
    docvqa.write_fixtures(tmp_path)
    run(docvqa, tmp_path, tmp_path / "limited", limit=2)
    for path in tmp_path.rglob("test-*.parquet"):
        path.unlink()
    run(docvqa, tmp_path, tmp_path / "validation")
    assert not list(tmp_path.rglob("*.submission.json"))
