"""LiveCodeBench's packed tests are read, and nothing in them is run; LiveBench's begun solutions are completed."""

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from polyphi.eval.benchmarks.text import livebench_code, livecodebench
from polyphi.eval.sources import Data
from polyphi.services import sandbox

CASES = [{"input": "1", "output": "2", "testtype": "stdin"}]


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/polyphi-was-here",)


def test_tests_are_json_or_pickled_text() -> None:
    text = json.dumps(CASES)
    assert livecodebench.cases(text, text) == CASES * 2
    assert livecodebench.cases("[]", packed(text)) == CASES
    assert livecodebench.cases("[]", packed(text.encode())) == CASES


def test_pickles_that_would_run_something_are_refused() -> None:
    with pytest.raises(ValueError, match=r"would run posix\.system"):
        livecodebench.cases("[]", packed(Evil()))
    with pytest.raises(ValueError, match="expected pickled text, found list"):
        livecodebench.cases("[]", packed([1]))


def test_only_the_months_of_the_label_count(tmp_path: Path) -> None:
    livecodebench.benchmark.write_fixtures(tmp_path)
    found = list(livecodebench.load(Data(tmp_path)))
    assert [s.id for s in found] == ["livecodebench-1", "livecodebench-2"]
    assert (
        found[0].prompt[1].text.endswith("### Answer: (use the provided format with backticks)\n\n")
    )


@pytest.mark.skipif(sandbox.unavailable() is not None, reason="no namespaces")
def test_what_is_missing_of_a_begun_solution_is_enough(tmp_path: Path) -> None:
    livebench_code.benchmark.write_fixtures(tmp_path)
    begun = next(s for s in livebench_code.load(Data(tmp_path)) if s.meta["begun"])
    rest = begun.answer.partition(begun.meta["begun"] + "\n")[2].removesuffix("\n```")
    open_end, wrong = f"```python\n{rest}", "```python\n        return 5\n```"
    answers = [begun.answer, f"{open_end}\n```", open_end, wrong, ""]
    scores = livebench_code.score_many([([answer], begun) for answer in answers])
    assert [s.value for s in scores] == [1, 1, 0, 0, 0]
    assert [s.parts["lenient"] for s in scores] == [1, 1, 1, 0, 0]
