"""The prepared decoder equals the plain one, at all positions and at requested ones."""

from collections.abc import Callable

import pytest
import torch

from polyphi.model import rope
from polyphi.model.decoder import RMSNorm
from polyphi.model.lora import Route, routes
from polyphi.prepared.decoder import rotate, select_routes
from polyphi.prepared.prepare import prepare
from polyphi.types.batch import pack, row
from tests.core.model.test_lora import ADAPTERS, CPU, random_linear
from tests.core.prepared.conftest import Pair


def test_requested_positions_equal_those_of_the_whole_forward(pair: Callable[..., Pair]):
    plain, prepared = pair(torch.float32)
    names = (None, *plain.config.adapters)
    batch = pack([row(range(5, 5 + n), adapter=a) for n, a in zip((4, 3, 6), names, strict=True)])
    with torch.inference_mode():
        x = plain.embed(batch)
        whole = plain.decoder(x, batch)
        for indices in ([12], [3, 6, 12], [0, 9]):
            some = prepared.decoder(x, batch, None, torch.tensor(indices))
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
    linear, x, indices = random_linear(), torch.randn(7, 8), torch.tensor([6, 2, 1])
    batch = pack([row([1] * n, adapter=a) for n, a in ((2, "speech"), (3, None), (2, "vision"))])
    every = routes(batch, ADAPTERS, CPU)
    torch.testing.assert_close(
        linear(x[indices], select_routes(every, indices)), linear(x, every)[indices]
    )
    (route,) = select_routes(every, torch.tensor([0, 3]))
    assert route.adapter == "speech"
    assert select_routes([Route("vision", None)], indices) == [Route("vision", None)]
