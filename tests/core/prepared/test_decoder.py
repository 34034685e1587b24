"""The prepared decoder equals the plain one, at all positions and at requested ones."""

from collections.abc import Callable

import pytest
import torch
from prepared.conftest import Pair

from polyphi.batch import pack, row
from polyphi.model import rope
from polyphi.model.adapters import adapter_pairs
from polyphi.model.config import AdapterConfig
from polyphi.model.decoder import RMSNorm
from polyphi.model.lora import LoraLinear, Route, routes
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.decoder import rotate, select_routes
from polyphi.prepared.prepare import prepare

CPU = torch.device("cpu")


def test_requested_positions_equal_those_of_the_whole_forward(tiny_config):
    model = PhiModel(tiny_config).eval()
    model.initialise(seed=0)
    for name in tiny_config.adapters:
        for _, pair in adapter_pairs(model, name):
            torch.nn.init.normal_(pair.a, std=0.1)
            torch.nn.init.normal_(pair.b, std=0.1)
    names = (None, *tiny_config.adapters)
    batch = pack([row(range(5, 5 + n), adapter=a) for n, a in zip((4, 3, 6), names, strict=True)])
    with torch.inference_mode():
        x = model.embed(batch)
        whole = model.decoder(x, batch)
        prepare(model)
        for indices in ([12], [3, 6, 12], [0, 9]):
            some = model.decoder(x, batch, None, torch.tensor(indices))
            torch.testing.assert_close(some, whole[indices])


def test_requested_positions_have_gradients(pair: Callable[..., Pair]):
    """Nothing is computed for positions whose logits nobody reads, and their keys still have a gradient."""
    _, model = pair(torch.float32)
    batch, indices = row(range(5, 20), adapter="speech"), torch.tensor([14])
    x = model.embed(batch).detach().requires_grad_()
    gradients = [
        torch.autograd.grad(out.sum(), x)[0]
        for out in (model.decoder(x, batch)[indices], model.decoder(x, batch, None, indices))
    ]
    # The sums of one row have another order than those of many: up to 7e-7 of the largest value, as CPUs differ.
    largest = float(gradients[0].abs().max())
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_and_the_rotation_are_the_models(dtype):
    """To the dtype's rounding: another order of the norm's sum, and products of up to 3 that aren't rounded before
    their sum."""
    norm, x = RMSNorm(64, 1e-5).to(dtype), torch.randn(30, 64).to(dtype)
    heads, angle = torch.randn(5, 3, 16).to(dtype), torch.randn(5, 1, 6)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    expected = norm(x)
    with torch.no_grad():
        torch.testing.assert_close(prepare(norm)(x), expected)
        atol = 1 / 64 if dtype == torch.bfloat16 else 1e-6
        result = rotate(heads, cos, sin)
        torch.testing.assert_close(result, rope.rotate(heads, cos, sin), atol=atol, rtol=0)


def test_selected_tokens_keep_their_routes():
    adapters = {"vision": AdapterConfig(4, 8.0), "speech": AdapterConfig(5, 15.0)}
    linear = LoraLinear(8, 6, adapters)
    for p in linear.parameters():
        torch.nn.init.normal_(p)
    batch = pack([row([1] * n, adapter=a) for n, a in ((2, "speech"), (3, None), (2, "vision"))])
    all_routes, x, indices = (
        routes(batch, adapters, CPU),
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
