"""LiveCodeBench's pickled tests are read without running code; LiveBench's partial solutions are completed."""

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from polyphi_eval.benchmarks.text import livecodebench
from polyphi_eval.sources import Data

CASES = [{"input": "1", "output": "2", "testtype": "stdin"}]


def pickled_base64(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/polyphi-was-here",)


def test_tests_are_json_or_pickled_text() -> None:
    text = json.dumps(CASES)
    assert livecodebench.cases(text, text) == CASES * 2
    assert livecodebench.cases("[]", pickled_base64(text)) == CASES
    assert livecodebench.cases("[]", pickled_base64(text.encode())) == CASES


def test_pickles_that_would_run_code_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"would run posix\.system"):
        livecodebench.cases("[]", pickled_base64(Evil()))
    with pytest.raises(ValueError, match="expected pickled text, found list"):
        livecodebench.cases("[]", pickled_base64([1]))


def test_only_the_months_of_the_label_count(tmp_path: Path) -> None:
    livecodebench.benchmark.write_fixtures(tmp_path)
    samples = list(livecodebench.load(Data(tmp_path)))
    assert [s.id for s in samples] == ["livecodebench-1", "livecodebench-2"]
    end = "### Answer: (use the provided format with backticks)\n\n"
    assert samples[0].prompt[1].text.endswith(end)
