"""The benchmark of fine-tuning at the published size, with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.long
def test_every_part_is_measured(tmp_path: Path) -> None:
    """A second call has all results and prints the same tables. The model learns the rows by heart only at full
    width."""
    command = [sys.executable, str(BENCHMARKS / "finetune_full_size.py"), "--tiny", "--steps", "6"]
    command += ["--out", str(tmp_path)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (BENCHMARKS, BENCHMARKS.parent))),
    }

    def tables() -> str:
        return subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE, env=environment
        ).stdout

    first = tables()
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"run", "base bf16", "base int8", "base int4", "overfit"} <= results.keys()
    assert [r["step"] for r in results["run"]["records"]] == list(range(6)), "resumed"
    assert len(results["overfit"]["answers"]["transformers"]) == 8
    assert sum(line.startswith("|---") for line in first.splitlines()) == 5
    assert tables() == first
