"""Prepared linears and adapters equal the plain ones."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polyphi.model import decoder
from polyphi.model.lora import LoraLinear, Route, routes
from polyphi.model.projector import Projector
from polyphi.prepared import linear as prepared_linear
from polyphi.prepared.linear import (
    PreparedLoraLinear,
    autocast_weight,
    dropout,
    frozen_copies,
    product,
    swiglu,
)
from polyphi.prepared.prepare import prepare
from polyphi.types.batch import pack, row
from tests.core.model.test_lora import ADAPTERS, CPU, random_linear


@pytest.fixture
def plain() -> LoraLinear:
    return random_linear()


@pytest.fixture
def linear(plain: LoraLinear) -> PreparedLoraLinear:
    return prepare(copy.deepcopy(plain))


BATCHES = {
    "none": row([1] * 7),
    "one": row([1] * 7, adapter="vision"),
    "mixed": pack([row([1] * n, adapter=a) for n, a in ((2, "speech"), (3, None), (2, "vision"))]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("grad", [False, True])
def test_a_linear_with_adapters_equals_the_plain_one(plain, linear, dtype, name, grad):
    """To the dtype's rounding: an adapter's product may be added before it is rounded."""
    x, all_routes = torch.randn(7, 8).to(dtype), routes(BATCHES[name], ADAPTERS, CPU)
    y = torch.randn(7, 6).to(dtype)
    before = x.clone(), y.clone()
    plain, linear = plain.to(dtype), linear.to(dtype)
    with torch.set_grad_enabled(grad):
        expected = plain(x, all_routes)
        torch.testing.assert_close(linear(x, all_routes), expected)
        torch.testing.assert_close(linear.add_to(y, x, all_routes), y + expected)
        gated = linear.gated(x, all_routes)
        # silu of a rounded difference: one more rounding
        torch.testing.assert_close(gated, decoder.swiglu(expected), rtol=0.05, atol=0.05)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_torchs(dtype, rows, bias):
    x, weight = torch.randn(rows, 33).to(dtype), torch.randn(17, 33).to(dtype)
    b = torch.randn(17).to(dtype) if bias else None
    with torch.no_grad():
        result = product(x, weight, b)
    torch.testing.assert_close(result, F.linear(x, weight, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_is_the_models(dtype):
    x = torch.randn(9, 32).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(swiglu(x), decoder.swiglu(x))


def test_many_features_are_projected_in_parts(monkeypatch):
    monkeypatch.setattr(prepared_linear, "PROJECTED", 10)
    projector, x = Projector(8, 6), torch.randn(25, 8)
    expected = projector(x)
    with torch.no_grad():
        torch.testing.assert_close(prepare(projector)(x), expected)


def test_the_result_under_autocast_is_the_same_without_gradients(linear):
    """As in the pass that computes the reference of DPO."""
    x, route = torch.randn(7, 8), routes(row([1] * 7, adapter="vision"), ADAPTERS, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        expected = linear(x, route)
        with torch.no_grad():
            assert torch.equal(linear(x, route), expected)


def test_dropout_only_in_training_and_only_where_configured(linear):
    x = torch.randn(50, 8)
    for name, drops in (("vision", False), ("speech", True)):
        all_routes = [Route(name, None)]
        expected = linear.eval()(x, all_routes)
        assert torch.equal(expected, linear(x, all_routes))
        assert torch.equal(expected, linear.train()(x, all_routes)) is not drops


@pytest.mark.parametrize("p", [0.01, 0.05])
def test_dropout_of_few_values_has_the_statistics_of_torchs(p: float) -> None:
    """Independent values at the right rate: counts over many draws have a binomial's mean and deviation, gradients are
    those of the kept values, and nothing else changes."""
    torch.manual_seed(0)
    x = torch.rand(40, 50, requires_grad=True)
    counts = torch.tensor([float((dropout(x, p) == 0).sum()) for _ in range(400)])
    deviation = (2000 * p * (1 - p)) ** 0.5
    assert abs(counts.mean() - 2000 * p) < 4 * deviation / 400**0.5
    assert counts.std() == pytest.approx(deviation, rel=0.15)
    hits = sum((dropout(x, p) == 0).float() for _ in range(400))
    assert hits.mean(0).std() < 3 * (400 * p / 40) ** 0.5, "no place is preferred"
    y = dropout(x, p)
    y.sum().backward()
    nonzero = y != 0
    torch.testing.assert_close(y[nonzero], x[nonzero] / (1 - p))
    torch.testing.assert_close(x.grad, nonzero / (1 - p))


def test_a_frozen_weight_is_cast_once_until_it_changes() -> None:
    weight = nn.Parameter(torch.randn(3, 4), requires_grad=False)
    with frozen_copies(), torch.autocast("cpu", torch.bfloat16):
        first = autocast_weight(weight)
        assert first.dtype == torch.bfloat16 and autocast_weight(weight) is first
        weight.add_(1)
        assert torch.equal(autocast_weight(weight), weight.bfloat16())
        trained = nn.Parameter(torch.randn(3, 4))
        assert autocast_weight(trained) is trained
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_weight(weight) is weight
    with frozen_copies():
        assert autocast_weight(weight) is weight
