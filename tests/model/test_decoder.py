"""Rules of the decoder; its numbers are compared with transformers in tests/parity."""

from dataclasses import replace

import pytest
import torch

from polyphi.batch import pack, row
from polyphi.model.decoder import Decoder, RMSNorm
from polyphi.model.multimodal import PhiModel


def test_rms_norm_rounds_before_its_weight():
    norm = RMSNorm(64, 1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(64) + 0.5)
    x = torch.randn(30, 64).bfloat16()
    wide = x.float()
    rounded = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).bfloat16()
    norm.to(torch.bfloat16)
    assert torch.equal(norm(x), norm.weight * rounded)
    # The other order, which the fused function with a weight takes, differs in the last bit of some.
    assert not torch.equal(norm(x), torch.nn.functional.rms_norm(x, (64,), norm.weight, 1e-5))


def test_wanted_rows_are_those_of_the_whole(tiny_config):
    model = PhiModel(tiny_config).eval()
    model.initialise(seed=0)
    for name in tiny_config.adapters:
        for factor in model.adapter_tensors(name):
            torch.nn.init.normal_(factor, std=0.1)
    names = (None, *tiny_config.adapters)
    batch = pack([row(range(5, 5 + n), adapter=a) for n, a in zip((4, 3, 6), names, strict=True)])
    with torch.inference_mode():
        x = model.embed(batch)
        whole = model.decoder(x, batch)
        for wanted in ([12], [3, 6, 12], [0, 9]):
            some = model.decoder(x, batch, wanted=torch.tensor(wanted))
            torch.testing.assert_close(some, whole[wanted])


def test_a_window_that_binds_is_refused(tiny_config):
    with pytest.raises(
        ValueError, match="sliding_window 100 is shorter than max_position_embeddings 512"
    ):
        Decoder(replace(tiny_config.decoder, sliding_window=100))
    Decoder(replace(tiny_config.decoder, sliding_window=None))
