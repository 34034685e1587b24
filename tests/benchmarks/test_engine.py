"""The engine's benchmark at a tiny size: both sides compute the same, and all rows are printed."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from types import ModuleType

import pytest
import torch

from polyphi import kernels
from polyphi.model.config import ModelConfig
from polyphi.quantization.quantize import quantize
from tests.fixtures.variants import few

needs_kernels = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
"""For models that the benchmark quantizes without a stored table of embeddings."""


@pytest.fixture
def bench(benchmark: Callable[..., ModuleType]) -> ModuleType:
    return benchmark("engine")


@pytest.fixture
def tiny(bench, tiny_config: ModelConfig):
    assert tiny_config.vision is not None
    lengths = {"max_position_embeddings": 4096, "original_max_position_embeddings": 2048}
    config = replace(
        tiny_config,
        decoder=replace(tiny_config.decoder, **lengths),
        vision=replace(tiny_config.vision, crop_size=448),
    )
    return bench.Size(config, prompt=24, tokens=2, frames=400, answer=2, transcript=5)


@pytest.mark.parametrize("precision", few(["bf16", "fp32"], 1))
def test_every_row_is_printed(
    bench,
    tiny,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates(bench, monkeypatch)
    monkeypatch.setattr(bench, "Size", lambda: tiny)
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda n: None)
    bench.main(["--json", "--repeats", "1", "--peer-dtype", precision])
    rows = {row["work"]: row for row in json.loads(capsys.readouterr().out)}
    works = "decode bf16, decode int8, prefill bf16, prefill int8, conformer, siglip, mixed batch"
    assert rows.keys() == set(works.split(", "))
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) for row in rows.values())
    peers = {row["peer_name"] for work, row in rows.items() if work != "mixed batch"}
    assert peers == {f"transformers {version('transformers')} {precision}"}


def rates(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits without a measurement."""
    for rate in ("read_rate", "bf16_limit", "int8_rate"):
        monkeypatch.setattr(bench, rate, lambda: 1e9)


def test_decoding_names_the_faster_precision_without_bf16_instructions(
    bench, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates(bench, monkeypatch)
    with torch.inference_mode():
        rows, _ = bench.decoder(tiny, 1, bench.Transformers("fp32"))
    peers = {row.work: row.peer_name.rpartition(" ")[2] for row in rows}
    assert peers["prefill bf16"] == peers["prefill int8"] == "fp32"
    assert peers["decode bf16"] == peers["decode int8"] in ("bf16", "fp32")


@pytest.mark.parametrize(
    ("precision", "stored"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_encoders_have_a_row_for_each_quant(
    bench, tiny, precision: str, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates(bench, monkeypatch)
    monkeypatch.setattr(bench.placement, "choose_dtype", lambda *_: stored)
    with torch.inference_mode():
        rows, others = bench.encoders(tiny, 1, bench.Transformers(precision))
    assert [row.work for row in rows] == ["conformer", "siglip"], "the published rows alone"
    kinds = (f"as stored, {str(stored)[6:]}", "int8-all")
    assert [row.work for row in others] == [f"{row.work}, {k}" for row in rows for k in kinds]
    assert all(row.peer_name.endswith(precision) and row.seconds for row in others)


@needs_kernels
def test_a_transcription_has_a_fixed_number_of_tokens(bench, tiny) -> None:
    rows, (row,) = bench.transcription(tiny, 1, bench.Transformers("bf16"))
    assert rows == [] and row.work == "transcription int8-all"
    assert float(row.seconds.split(" / ")[0]) == pytest.approx(1 / row.ours, abs=0.01)


@needs_kernels
def test_a_random_quantized_model_computes(bench, tiny) -> None:
    config = replace(tiny.config, vision=None, audio=None, adapters={})
    model = bench.random_quantized(config, "int8-all")
    assert model.decoder.embed_tokens.weight is None
    whole = bench.random_model(config)
    # the same distribution, other numbers: the order of the tensors differs
    ids = torch.arange(8)
    spread = [float(m.decoder.embed(ids).float().std()) for m in (model, whole)]
    assert spread[0] == pytest.approx(spread[1], rel=0.2)


def test_transformers_has_the_precision_that_is_faster(
    bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sidebyside

    def choose(missing: str | None, requested: str = "auto") -> str:
        monkeypatch.setattr(sidebyside.precision, "missing", lambda dtype: missing)
        monkeypatch.setattr(sidebyside.precision, "_is_emulated", lambda: False)
        return sidebyside.choose_transformers((), requested).precision

    assert choose(None) == "bf16"
    assert choose("no instructions") == "fp32"
    assert choose("no instructions", "bf16") == "bf16"
    monkeypatch.setattr(sidebyside, "matmul_rate", lambda seconds, dtype: dtype)
    assert sidebyside.product_limit() == (torch.float32, "fp32")
    assert sidebyside.Transformers("fp32", cut="8 layers").name.endswith(" fp32, 8 layers")


def test_a_decoder_that_does_not_fit_is_cut(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    size, peers = bench.Size(), {p: bench.Transformers(p) for p in ("bf16", "fp32")}
    monkeypatch.setattr(bench, "free_memory", lambda device: 20e9)
    assert bench.fitting(size, peers["bf16"]) == (size, peers["bf16"])
    cut, peer = bench.fitting(size, peers["fp32"])
    assert cut.config.decoder.num_hidden_layers == 8 and peer.name.endswith("fp32, 8 layers")
    assert cut.config.vision == size.config.vision
    monkeypatch.setattr(bench, "free_memory", lambda device: 40e9)
    assert bench.fitting(size, peers["fp32"]) == (size, peers["fp32"])


def test_rows_without_a_peer_are_shown(bench, capsys: pytest.CaptureFixture[str]) -> None:
    row = bench.Row("a", 2.0, float("nan"), "none", "clips/s")
    bench.show([], as_json=False, others=[row, replace(row, peer=4.0, peer_name="other")])
    output = capsys.readouterr().out
    assert "0.50 / -" in output and "0.50 / 0.25" in output and "peer: other" in output


def test_the_weights_that_a_token_reads(bench, tiny) -> None:
    config = replace(tiny.config, vision=None, audio=None, adapters={})
    model = bench.random_model(config)
    whole = sum(p.numel() for p in model.parameters())
    assert bench.read_per_token(model) == 2 * whole
    layers = sum(p.numel() for p in model.decoder.layers.parameters() if p.dim() > 1)
    with torch.no_grad():
        quantize(model, "int8")
    head = model.decoder.embed_tokens.weight.numel()
    # a byte for each weight, four for each output's scale, what a kernel pads (much at this width)
    assert layers + head < bench.read_per_token(model) < 1.7 * (layers + head)
