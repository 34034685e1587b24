"""The soak of the server for two minutes, on a machine that may have other work."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_no_attack_costs_another_client_an_answer() -> None:
    options = ["--minutes", "2", "--seconds", "5"]
    command = [sys.executable, Path(__file__).with_name("soak.py"), *options]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
