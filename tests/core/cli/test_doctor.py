"""The page and the exit code of `polyphi doctor`."""

import json
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from polyphi.cli import doctor
from polyphi.doctor import report
from polyphi.doctor.findings import Finding
from polyphi.doctor.report import DoctorReport
from tests.fixtures.command_line import RunCommand
from tests.fixtures.processes import ROOT, completed

MODEL = {
    "model": "microsoft/Phi-4-multimodal-instruct",
    "quant": "int4-all",
    "dtype": "bfloat16",
    "device": "cuda:0",
    "weights": 3947529472,
    "context": 131072,
}
FINDINGS = (
    Finding("CPU", "kernels", "missing: " + "a long reason " * 8, "slow", "pip install ."),
    Finding("Memory", "Phi-4-multimodal", "fits: int4-all"),
    Finding("Environment", "MKL_ENABLE_INSTRUCTIONS", "AVX2 " * 20, "slow", "unset MKL"),
    Finding("Optional", "[curate]", "corpora", "missing", 'pip install ".[curate]"'),
)
BROKEN = Finding("Software", "torch", "can't be imported", "wrong", "pip install torch", fatal=True)


@pytest.mark.parametrize("width", [80, 100])
def test_the_page_fits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    out = StringIO()
    monkeypatch.setattr(doctor, "console", Console(file=out, width=width))
    doctor.show(DoctorReport((*FINDINGS, BROKEN), {"models": [MODEL]}))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    for finding in (*FINDINGS, BROKEN):
        assert f" {finding.name} " in text, finding.name
        assert finding.cure is None or f"cure: {finding.cure}\n" in text
    assert "131,072" in text


@pytest.mark.parametrize(("findings", "code"), [(FINDINGS, 0), ((*FINDINGS, BROKEN), 1)])
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_exit_code(
    findings: tuple[Finding, ...],
    code: int,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    run_command: RunCommand,
) -> None:
    result = DoctorReport(findings, {"models": [{**MODEL, "device": "cpu"}]})
    monkeypatch.setattr(report, "inspect", lambda: result)
    exit_code, out, _ = run_command("doctor", *arguments)
    assert exit_code == code
    if arguments:
        assert json.loads(out)["chat_runs"] == (code == 0)


def test_torch_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libgomp.so.1: no such file')\n")
    path = f"{tmp_path}:{ROOT}"
    run = completed(sys.executable, "-m", "polyphi.cli", "doctor", PYTHONPATH=path)
    assert run.returncode == 1
    assert "libgomp.so.1" in run.stdout and "cure: pip install" in run.stdout
    assert "Traceback" not in run.stdout


@pytest.mark.long
def test_this_machine() -> None:
    run = completed(sys.executable, "-m", "polyphi.cli", "doctor", "--json", PYTHONPATH=str(ROOT))
    assert run.returncode == 0, run.stdout
    result = json.loads(run.stdout)
    assert result["chat_runs"] and not result["errors"]
    assert {m["model"] for m in result["models"]} == {
        "microsoft/Phi-4-mini-instruct",
        "microsoft/Phi-4-multimodal-instruct",
    }
