"""Choice of device and dtype, with simulated memory and speed."""

from collections import Counter

import pytest
import torch

from polyphi import kernels
from polyphi.devices import placement, precision
from polyphi.engine.cache import token_bytes
from polyphi.kernels import bf16
from polyphi.model.config import DecoderConfig, ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.matrix_products import matrix_products

CPU = torch.device("cpu")


def test_the_best_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, best in ((1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: bool(cuda))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: bool(mps))
        assert placement.choose("auto") == torch.device(best)
    assert placement.choose("cpu") == placement.choose(CPU) == CPU
    for name, message in (
        ("cuda:0", "sees no cuda device"),
        ("mps", "sees no mps device"),
        ("tpu9", "device must be auto, cpu, cuda or mps, found 'tpu9'"),
    ):
        with pytest.raises(ValueError, match=message):
            placement.choose(name)


@pytest.mark.parametrize(
    ("stored", "fast", "free", "chosen"),
    [
        ({torch.bfloat16: 100}, True, 1000, None),
        ({torch.bfloat16: 100}, False, 1000, torch.float32),
        ({torch.bfloat16: 100, torch.float32: 1}, False, 1000, torch.float32),
        ({torch.bfloat16: 100}, False, 399, None),  # slow, but it fits
        ({torch.float32: 100}, False, 1000, None),
        ({torch.float32: 100, torch.float16: 99}, False, 1000, torch.float32),  # one dtype
        ({torch.bfloat16: 100, torch.float32: 1}, True, 1000, torch.bfloat16),
        ({torch.bfloat16: 100, torch.float32: 1}, False, 399, torch.bfloat16),
    ],
)
def test_a_dtype_that_the_cpu_is_slow_in_becomes_float32(
    monkeypatch: pytest.MonkeyPatch,
    stored: dict[torch.dtype, int],
    fast: bool,
    free: int,
    chosen: torch.dtype | None,
) -> None:
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    monkeypatch.setattr(bf16, "needed", lambda: False)
    monkeypatch.setattr(precision, "is_fast", lambda *_: fast)
    assert placement.choose_dtype(stored, CPU, free) == chosen
    assert placement.choose_dtype(stored, CPU, free, quant="int8") == torch.bfloat16


@pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
def test_bfloat16_stays_where_our_kernels_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    monkeypatch.setattr(bf16, "needed", lambda: True)
    monkeypatch.setattr(precision, "is_fast", lambda *_: False)
    assert placement.choose_dtype({torch.bfloat16: 100}, CPU, 1000) is None
    assert placement.choose_dtype({torch.float16: 100}, CPU, 1000) == torch.float32


def test_the_environment_decides_for_16_bit_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda *_: pytest.fail("chosen"))
    for name, chosen in (("fp32", torch.float32), ("bf16", None)):
        monkeypatch.setenv(precision.VARIABLE, name)
        assert placement.choose_dtype({torch.bfloat16: 100}, CPU, 1) == chosen
        assert placement.choose_dtype({torch.float32: 100}, CPU, 1000) is None
    assert placement.choose_dtype({torch.float16: 100}, CPU, 1000) == torch.bfloat16


def test_products_of_a_configuration_are_those_of_the_model(tiny_config: ModelConfig) -> None:
    with torch.device("meta"):
        model = PhiModel(tiny_config)
    weights = [(parameter.shape, True) for parameter in model.parameters()]
    assert matrix_products(tiny_config) == precision.products(weights)


def test_the_published_model_needs_what_the_design_says() -> None:
    """128 KiB of keys and values a token in bfloat16: 16 GiB at 128k tokens."""
    assert token_bytes(DecoderConfig(), torch.bfloat16) == 128 << 10
    assert token_bytes(DecoderConfig(), torch.bfloat16) * 131072 == 16 << 30


def test_weights_that_do_not_fit_are_one_line() -> None:
    placement.check_fits(10, 10, CPU)
    with pytest.raises(ValueError, match=r"11\.2 GB, .*cpu .*8\.0 GB") as refused:
        placement.check_fits(11_200_000_000, 8_000_000_000, CPU)
    assert "\n" not in str(refused.value)
    assert placement.size(Counter({torch.bfloat16: 3, torch.float32: 1}), None) == 10
    assert placement.size(Counter({torch.bfloat16: 3, torch.float32: 1}), torch.float32) == 16
