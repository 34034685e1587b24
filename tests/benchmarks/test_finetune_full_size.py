"""The benchmark of fine-tuning at the published size, with a tiny model."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.long
def test_each_base_has_a_row(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "finetune_full_size.py"), "--tiny", "--steps", "3"]
    command += ["--out", str(tmp_path), "--bases", "bf16", "int4"]
    output = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()[2:]]
    assert [row[0] for row in rows] == ["bf16", "int4"]
    assert all(float(row[2]) >= float(row[1]) > 0 and float(row[5]) > 0 for row in rows)
