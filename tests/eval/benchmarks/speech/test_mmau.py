"""MMAU: the file for its server."""

import json
from pathlib import Path
from typing import Any

from polyphi.types.completion import Completion
from polyphi_eval import score as scoring
from polyphi_eval.benchmarks.speech.mmau import benchmark
from polyphi_eval.cache import Cache
from polyphi_eval.sources import Data


def test_answers_to_test_questions_go_into_a_file_and_count_in_no_row(tmp_path: Path) -> None:
    class Model:
        def generate(self, messages: Any, **_: Any) -> Completion:
            return Completion("Rain")

    benchmark.write_fixtures(tmp_path)
    lines = scoring.evaluate(
        benchmark,
        Data(tmp_path),
        Cache(Model(), tmp_path / "out", "m"),
        tmp_path / "out",  # type: ignore[arg-type]
    )
    rows = scoring.rows_of(benchmark, scoring.score(benchmark, lines))
    assert [(r.label, r.n, r.status) for r in rows] == [
        (f"MMAU {task}", 2, "server-scored") for task in ("music", "sound", "speech")
    ]
    submission = json.loads((tmp_path / "out/mmau.submission.json").read_text())
    questions = json.loads((tmp_path / "MMAU/mmau-test.json").read_text())
    answers = [(row.pop("model_prediction"), row.pop("model_output")) for row in submission]
    assert submission == questions and set(answers) == {("Rain", "Rain")}
