"""The whole report with simulated facts: stable keys, what breaks chat, the command to start with."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from polyphi.doctor import report
from polyphi.doctor.probe import Probe

GB = 10**9
KEYS = {
    *("schema", "chat_runs", "start", "findings", "versions", "cpu", "kernels", "precision"),
    *("memory", "gpus", "cuda_build", "models", "requirements", "caches"),
    *("environment", "errors"),
}
"""Keys that scripts may rely on."""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHI_CACHE", str(tmp_path / "cache"))


def model(name: str, quant: str | None, context: int, device: str = "cpu") -> dict[str, Any]:
    return {
        "model": f"o/Phi-4-{name}-instruct",
        "device": device,
        "quant": quant,
        "dtype": "bfloat16",
        "parameters": 4 * GB,
        "weights": 8 * GB,
        "free": 9 * GB,
        "context": context,
        "token_bytes": 131072,
    }


def facts() -> dict[str, Any]:
    return {
        "libraries": {
            "threads": 2,
            "instructions": ["avx2"],
            "torch_uses": "AVX2",
            "cuda_build": None,
        },
        "memory": {"device": "cpu", "free": 9 * GB, "gpus": []},
        "kernels": {"missing": None, "path": "AVX2", "bf16": "ours", "encoders_int8": "ours"},
        "precision": {
            "inference": "bfloat16",
            "reason": "r",
            "training": "fp32",
            "training_reason": "r",
        },
        "models": [
            model("mini", "int4", 9000),
            model("multimodal", None, 0),
            model("multimodal", "int4", 5000),
        ],
    }


def test_keys_of_the_json_object() -> None:
    result = json.loads(json.dumps(report.assemble(Probe(facts())).as_json()))
    assert result.keys() == KEYS and result["schema"] == 3
    fields = {"section", "name", "state", "text", "cure", "fatal"}
    assert all(finding.keys() == fields for finding in result["findings"])
    assert result["start"] == "polyphi chat o/Phi-4-multimodal-instruct --quant int4"
    assert {"model", "class", "instructions", "cores", "threads"} <= result["cpu"].keys()


def test_sections_are_in_order() -> None:
    sections = [finding.section for finding in report.assemble(Probe(facts())).findings]
    assert list(dict.fromkeys(sections)) == [section for section, _ in groupby(sections)]


def test_without_torch_the_rest_is_reported() -> None:
    result = report.assemble(Probe({"tokenizers": "1"}, {"torch": "No module named 'torch'"}))
    assert not result.chat_runs and result.start is None
    assert {"CPU", "Memory", "Software", "Storage"} <= {f.section for f in result.findings}
    assert result.as_json().keys() == KEYS


def test_a_variable_that_is_refused_breaks_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHI_MAX_CPU_ISA", "AVX9")
    message = "POLYPHI_MAX_CPU_ISA must be one of AVX2, found 'AVX9'"
    errors = {"kernels": message, "models": message}
    fatal = [f for f in report.assemble(Probe({}, errors)).findings if f.fatal]
    assert [(f.name, f.cure) for f in fatal] == [
        ("POLYPHI_MAX_CPU_ISA", "unset POLYPHI_MAX_CPU_ISA")
    ]


def test_a_measurement_that_was_killed_does_not_break_chat() -> None:
    result = report.assemble(Probe(facts(), {"models": "killed by SIGKILL"}))
    (finding,) = [f for f in result.findings if f.state == "wrong"]
    assert result.chat_runs and finding.cure is not None and "memory" in finding.cure


def test_too_little_memory_does_not_break_chat() -> None:
    """Smaller models than the published ones run."""
    values = facts() | {"models": [model("mini", "int4", 100)]}
    result = report.assemble(Probe(values))
    assert result.chat_runs and result.start is None


def test_a_gpu_starts_unquantized() -> None:
    values = facts()
    values["models"] += [model("mini", quant, 9000, "cuda:0") for quant in (None, "int4")]
    assert report.assemble(Probe(values)).start == "polyphi chat o/Phi-4-mini-instruct"


def test_secrets_and_personal_paths_are_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "alice"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setenv("POLYPHI_CACHE", str(home / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("HTTPS_PROXY", "http://alice:password@proxy:3128")
    result = report.assemble(Probe(facts(), {"models": f"{home}/x: hf_abcdefgh"}))
    text = json.dumps(result.as_json())
    assert not [word for word in ("alice", "hf_abcdefgh", "password") if word in text]
    assert "~/cache" in text and "proxy:3128" in text
