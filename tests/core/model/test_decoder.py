"""Rules of the decoder; its numbers are compared with transformers in tests/core/parity."""

from dataclasses import replace

import pytest
import torch

from polyphi.model.decoder import Decoder, RMSNorm


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


def test_a_window_that_binds_is_refused(tiny_config):
    with pytest.raises(ValueError, match=r"sliding_window 100 .*max_position_embeddings 512"):
        Decoder(replace(tiny_config.decoder, sliding_window=100))
    Decoder(replace(tiny_config.decoder, sliding_window=None))
