"""Routing of adapters, token by token."""

import pytest
import torch
import torch.nn.functional as F

from polyphi.model.config import AdapterConfig
from polyphi.model.lora import LoraLinear, Route, routes
from polyphi.types.batch import pack, row

CPU = torch.device("cpu")
ADAPTERS = {"vision": AdapterConfig(4, 8.0), "speech": AdapterConfig(5, 15.0, 0.5)}


def random_linear() -> LoraLinear:
    torch.manual_seed(0)
    linear = LoraLinear(8, 6, ADAPTERS)
    for p in linear.parameters():
        torch.nn.init.normal_(p)
    return linear.eval()


@pytest.fixture
def linear() -> LoraLinear:
    return random_linear()


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
