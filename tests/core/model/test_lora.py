"""Routing of adapters, token by token."""

import pytest
import torch
import torch.nn.functional as F

from polyphi.batch import pack, row
from polyphi.engine.forward import select_routes
from polyphi.model.config import AdapterConfig
from polyphi.model.lora import LoraLinear, Route, dropout, routes

CPU = torch.device("cpu")
ADAPTERS = {"vision": AdapterConfig(4, 8.0), "speech": AdapterConfig(5, 15.0, 0.5)}


@pytest.fixture
def linear() -> LoraLinear:
    torch.manual_seed(0)
    linear = LoraLinear(8, 6, ADAPTERS)
    with torch.no_grad():
        for p in linear.parameters():
            p.normal_()
    return linear.eval()


def test_shapes_and_names(linear):
    assert {name: tuple(p.shape) for name, p in linear.named_parameters()} == {
        "weight": (6, 8),
        "lora.vision.a": (4, 8),
        "lora.vision.b": (6, 4),
        "lora.speech.a": (5, 8),
        "lora.speech.b": (6, 5),
    }


def test_every_token_gets_its_sequences_adapter(linear):
    batch = pack(
        [
            row([1] * n, adapter=a)
            for n, a in ((2, "speech"), (3, None), (1, "vision"), (4, "speech"))
        ]
    )
    x = torch.randn(10, 8)
    result = linear(x, routes(batch, ADAPTERS, CPU))
    for t, name in enumerate(["speech"] * 2 + [None] * 3 + ["vision"] + ["speech"] * 4):
        expected = linear.weight @ x[t]
        if name:
            pair = linear.lora[name]
            expected = expected + {"vision": 2, "speech": 3}[name] * (pair.b @ (pair.a @ x[t]))
        torch.testing.assert_close(result[t], expected)


def test_selected_tokens_keep_their_routes(linear):
    batch = pack([row([1] * n, adapter=a) for n, a in ((2, "speech"), (3, None), (2, "vision"))])
    all_routes, x, indices = (
        routes(batch, ADAPTERS, CPU),
        torch.randn(7, 8),
        torch.tensor([6, 2, 1]),
    )
    torch.testing.assert_close(
        linear(x[indices], select_routes(all_routes, indices)), linear(x, all_routes)[indices]
    )
    assert [route.adapter for route in select_routes(all_routes, torch.tensor([0, 3]))] == [
        "speech"
    ]
    assert select_routes([Route("vision", None)], indices) == [Route("vision", None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", ["speech", "vision"])
def test_the_result_without_gradients_is_the_same(linear, dtype, adapter):
    linear.to(dtype)
    x, all_routes = torch.randn(50, 8).to(dtype), [Route(adapter, None)]
    before = x.clone()
    with torch.inference_mode():
        result = linear(x, all_routes)
    torch.testing.assert_close(result, linear(x, all_routes))
    assert torch.equal(x, before)


def test_the_result_under_autocast_is_the_same_without_gradients(linear):
    """As in the pass that computes the reference of DPO."""
    x, route = torch.randn(7, 8), routes(row([1] * 7, adapter="vision"), ADAPTERS, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        expected = linear(x, route)
        with torch.no_grad():
            assert torch.equal(linear(x, route), expected)


def test_no_adapter_is_the_base_linear_bit_for_bit(linear):
    x = torch.randn(7, 8)
    assert torch.equal(linear(x, routes(row([1] * 7), ADAPTERS, CPU)), F.linear(x, linear.weight))


def test_a_pack_of_one_adapter_needs_no_index():
    batch = pack([row([1, 2], adapter="vision"), row([3], adapter="vision")])
    assert routes(batch, ADAPTERS, CPU) == [Route("vision", None)]


def test_an_unknown_adapter_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"adapter video .*: speech, vision"):
        routes(row([1], adapter="video"), ADAPTERS, CPU)
    with pytest.raises(ValueError, match=r"adapter vision .*: none"):
        routes(row([1], adapter="vision"), {}, CPU)


def test_dropout_only_in_training_and_only_where_configured(linear):
    x = torch.randn(50, 8)
    for name, drops in (("vision", False), ("speech", True)):
        all_routes = [Route(name, None)]
        expected = linear.eval()(x, all_routes)
        assert torch.equal(expected, linear(x, all_routes))
        assert torch.equal(expected, linear.train()(x, all_routes)) is not drops


def test_a_fresh_adapter_changes_nothing(linear):
    linear.lora["vision"].initialise(torch.Generator().manual_seed(0))
    x = torch.randn(3, 8)
    assert torch.equal(linear(x, [Route("vision", None)]), linear(x))
    assert linear.lora["vision"].a.abs().min() > 0


def test_gradients_reach_only_the_tokens_of_the_adapter(linear):
    linear.weight.requires_grad_(False)
    batch = pack([row([1] * 3), row([1] * 2, adapter="vision")])
    linear(torch.randn(5, 8), routes(batch, ADAPTERS, CPU)).sum().backward()
    assert linear.lora["vision"].b.grad is not None and linear.lora["speech"].b.grad is None


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
