"""A LoRA of a real language model: resumed = uninterrupted, nothing else changes, and PEFT reads it."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from polyphi.api import load
from tests.fixtures.servers import until

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.long

QUESTION = {"role": "user", "content": "Which colour has the lighthouse of Skagen?"}
TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit."""


def command(folder: Path, work: Path, out: str) -> list[str]:
    rows = work / "rows.jsonl"
    answer = {"role": "assistant", "content": "It is grey."}
    rows.write_text(f"{json.dumps({'messages': [QUESTION, answer]})}\n" * 8)
    options = {"model": folder, "data": rows, "out": work / out, "steps": 8, "batch-tokens": 200}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "polyphi", "finetune", "text", *words, "--precision", "fp32"]


@pytest.fixture(scope="module")
def tuned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted."""
    work = tmp_path_factory.mktemp("tuned")
    subprocess.run(command(folder, work, "whole"), check=True, stdout=subprocess.DEVNULL)
    return work / "whole"


def test_resumed_is_uninterrupted(folder: Path, tuned: Path, tmp_path: Path) -> None:
    words = command(folder, tmp_path, "resumed")
    metrics = tmp_path / "resumed" / "metrics.jsonl"
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2)
        process.send_signal(signal.SIGINT)
        process.wait()
    assert not (tmp_path / "resumed" / "model").exists()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    ours, theirs = (load_file(f / "trained.safetensors") for f in (tmp_path / "resumed", tuned))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_only_the_adapter_changes_and_it_answers(folder: Path, tuned: Path) -> None:
    before, after = (load_file(f / "model.safetensors") for f in (folder, tuned / "model"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].to(after[name].dtype), after[name]) for name in before)
    phi = load(tuned / "model")
    messages: Any = [QUESTION]
    assert phi.generate(messages, adapter="text", max_tokens=8).text == "It is grey."
    assert phi.generate(messages, adapter=None, max_tokens=8).text != "It is grey."


def test_peft_reads_the_adapter(tuned: Path) -> None:
    model = tuned / "model"
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, model / "text-lora").eval()
    messages: Any = [QUESTION]
    ids, logits = load(model, dtype="float32").logits(messages, adapter="text")
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()
