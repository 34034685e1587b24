"""Measurements on little memory: every form has a rate, with and without kernels."""

import pytest
import torch

from polyphi import kernels
from polyphi.doctor import rates


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.005)
    monkeypatch.setattr(rates, "WIDTH", 128)
    monkeypatch.setattr(rates, "working_set", lambda: 1 << 21)
    monkeypatch.setattr(rates, "layer_shapes", lambda: [(256, 128), (128, 256)])


def test_every_form_is_measured() -> None:
    result = rates.measure(torch.bfloat16)
    assert result.decoding.keys() == {"bf16", "int8", "int4"}
    assert result.products.keys() == {"fp32", "bf16", "int8", "int4"}
    every = (result.memory, *result.decoding.values(), *result.products.values())
    assert min(every) > 0 and result.cpu_share > 0


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "missing", lambda: "they weren't built")
    assert rates.measure(torch.float32).decoding.keys() == {"fp32", "int8", "int4"}


def test_weights_are_numbers_in_every_format() -> None:
    memory = rates.random_bytes(1 << 12)
    for dtype in (torch.bfloat16, torch.float32):
        values = memory.view(dtype).float()
        assert values.min() > 0.005 and values.max() < 1
