"""The engine's capacity in simulated memory, and the report of memory."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyphi import kernels
from polyphi.engine import capacity
from polyphi.engine.cache import token_bytes
from polyphi.engine.engine import Engine
from polyphi.kernels import bf16
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared import memory
from polyphi.quantization.quantize import quantize

CPU = torch.device("cpu")


def test_an_engine_takes_half_of_what_is_free(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most; with much memory that of 32 sequences of 2,048 tokens."""
    each = token_bytes(engine.model.config.decoder, torch.float32)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * 320 * each + 1)
    assert Engine(engine.model, engine.processor).capacity == 320
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**15)
    assert Engine(engine.model, engine.processor).capacity == 32 * 2048


def test_the_memory_report(tiny_config: ModelConfig) -> None:
    model = PhiModel(tiny_config).to(torch.bfloat16)
    weights = 2 * sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    per_token = 2 * 2 * 2 * 16 * 2
    report = capacity.memory_report(model, weights + 100 * per_token, CPU, 10**6)
    assert (report.weights, report.per_token, report.tokens) == (weights, per_token, 100)
    assert replace(report, free=10**12).tokens == 512  # no more than the model's context
    assert replace(report, free=weights - 1).tokens == 0
    assert replace(report, capacity=60).tokens == 60  # or than the engine's capacity
    full = capacity.MemoryReport(
        "cuda:0", "bfloat16", 11_200_000_000, 24_000_000_000, 131072, 131072, 10**6
    )
    assert str(full) == (
        "cuda:0, bfloat16: 11.2 GB of weights leave 12.8 GB of 24.0 GB free, "
        "up to 97,656 of 131,072 tokens of context"
    )
    with torch.device("meta"):
        published = PhiModel(ModelConfig()).to(torch.bfloat16)
    line = str(capacity.memory_report(published, int(16.2e9), CPU, 10**6)).split(": ")[1]
    assert line in (Path(__file__).parents[3] / "docs/chat.md").read_text()
    quantize(model, "int8")
    eight = capacity.memory_report(model, 10**6, CPU, 0)
    unquantized = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert "bfloat16 and int8" in str(eight)
    assert unquantized < weights and eight.weights > unquantized, "quantized weights count"


def test_the_report_names_the_kernels_of_few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(kernels, "missing", lambda: None)
    monkeypatch.setattr(kernels, "path", lambda: "AVX2")
    assert capacity._arithmetic(torch.bfloat16, "int4", cpu) == " and int4 by AVX2"
    monkeypatch.setattr(bf16, "needed", lambda: True)
    assert capacity._arithmetic(torch.bfloat16, None, cpu) == ", multiplied in float32 by AVX2"
    assert capacity._arithmetic(torch.float32, None, cpu) == ""
    monkeypatch.setattr(kernels, "missing", lambda: "there was no compiler")
    assert (
        capacity._arithmetic(torch.bfloat16, "int4", cpu)
        == " and int4 by torch (there was no compiler)"
    )
    assert (
        capacity._arithmetic(torch.bfloat16, "int8", cpu)
        == " and int8 by torch (there was no compiler)"
    )
    assert capacity._arithmetic(torch.bfloat16, "bf16", cpu) == " and bf16"
    assert capacity._arithmetic(torch.bfloat16, None, cpu) == ""
