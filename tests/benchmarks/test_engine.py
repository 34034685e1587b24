"""The engine's benchmark at a size of milliseconds: both sides compute the same, and every row is there."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyphi.model.config import ModelConfig
from polyphi.model.quantize import quantize

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    """The script, by a name that isn't the tests' own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmark_engine", BENCHMARKS / "engine.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("sidebyside", None)


@pytest.fixture
def tiny(bench, tiny_config: ModelConfig):
    assert tiny_config.vision is not None
    room = {"max_position_embeddings": 4096, "original_max_position_embeddings": 2048}
    config = replace(
        tiny_config,
        decoder=replace(tiny_config.decoder, **room),
        vision=replace(tiny_config.vision, crop_size=448),
    )
    return bench.Size(config, prompt=24, tokens=2, frames=400, answer=2)


def test_every_row_is_told(
    bench, tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate in ("read_rate", "matmul_rate", "int8_rate"):
        monkeypatch.setattr(bench, rate, lambda: 1e9)
    monkeypatch.setattr(bench, "Size", lambda: tiny)
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda n: None)
    bench.main(["--json", "--repeats", "1"])
    told = {row["work"]: row for row in json.loads(capsys.readouterr().out)}
    works = "decode bf16, decode int8, prefill bf16, prefill int8, conformer, siglip, mixed batch"
    assert told.keys() == set(works.split(", "))
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) for row in told.values())


def test_weights_are_counted_once_and_fall(bench, tiny) -> None:
    config = replace(tiny.config, vision=None, audio=None, adapters={})
    model = bench.random_model(config)
    whole = sum(p.numel() for p in model.parameters())
    assert bench.held(model) * 2**30 == 2 * whole == bench.read_per_token(model)
    layers = sum(p.numel() for p in model.decoder.layers.parameters() if p.dim() > 1)
    with torch.no_grad():
        quantize(model, "int8")
    head = model.decoder.embed_tokens.weight.numel()
    # a byte for each weight, four for each output's scale, what a kernel pads (much at this width)
    assert layers + head < bench.read_per_token(model) < 1.7 * (layers + head)
