"""MMAU: the file for its server."""

import json
from pathlib import Path

from polyphi_eval.benchmarks.speech.mmau import benchmark
from polyphi_eval.sources import Data
from tests.fixtures.scripted_model import measured


def test_answers_to_test_questions_go_into_a_file_and_count_in_no_row(tmp_path: Path) -> None:
    benchmark.write_fixtures(tmp_path)
    rows = measured(benchmark, Data(tmp_path), tmp_path / "out", lambda messages: "Rain")
    assert [(r.label, r.n, r.status) for r in rows] == [
        (f"MMAU {task}", 2, "server-scored") for task in ("music", "sound", "speech")
    ]
    submission = json.loads((tmp_path / "out/mmau.submission.json").read_text())
    questions = json.loads((tmp_path / "MMAU/mmau-test.json").read_text())
    answers = [(row.pop("model_prediction"), row.pop("model_output")) for row in submission]
    assert submission == questions and set(answers) == {("Rain", "Rain")}
