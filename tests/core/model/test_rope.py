"""LongRoPE's own rules; the numbers are compared with transformers in tests/core/parity."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from polyphi.model.rope import LongRope, rotate
from polyphi.types.batch import pack, row


def test_each_sequence_of_a_pack_has_its_table(tiny_config):
    config = tiny_config.decoder
    cos, sin = LongRope(config)(pack([row([1] * n) for n in (64, 65, 3)]), torch.float32)
    exponents = np.arange(0, config.rotary_dim, 2) / config.rotary_dim
    start = 0
    for length, factors in (
        (64, config.short_factor),
        (65, config.long_factor),
        (3, config.short_factor),
    ):
        angles = np.arange(length)[:, None] / (np.array(factors) * config.rope_theta**exponents)
        for table, curve in ((cos, np.cos), (sin, np.sin)):
            expected = curve(angles) * np.sqrt(1 + np.log(512 / 64) / np.log(64))
            # An angle of 64 radians in float32 is off by 4e-6.
            np.testing.assert_allclose(table[start : start + length, 0], expected, atol=1e-5)
        start += length


def test_the_switch_counts_cached_tokens(tiny_config):
    """One new token at position 64 after 64 cached ones: 65 in all, so the long table."""
    rope = LongRope(tiny_config.decoder)
    step = replace(row([1]), positions=torch.tensor([64]), seq_lens=(65,))
    whole = rope(row([1] * 65), torch.float32)
    for one, all_ in zip(rope(step, torch.float32), whole, strict=True):
        assert torch.equal(one[0], all_[64])


def test_channels_beyond_the_rotated_pass_through():
    x = torch.randn(3, 2, 16)
    angle = torch.tensor([0.0, 0.5, 1.0])[:, None, None].expand(3, 1, 6)
    turned = rotate(x, 2 * angle.cos(), 2 * angle.sin())
    assert torch.equal(turned[..., 12:], x[..., 12:])
    assert torch.equal(turned[0, :, :12], 2 * x[0, :, :12])
    # Channel 1 pairs with channel 1 + 6, and a turn keeps the pair's length (here times the scale of 2).
    torch.testing.assert_close(turned[..., [1, 7]].norm(dim=-1), 2 * x[..., [1, 7]].norm(dim=-1))
    expected = 2 * (x[2, 0, 1] * np.cos(1) - x[2, 0, 7] * np.sin(1))
    torch.testing.assert_close(turned[2, 0, 1], expected)


def test_factors_that_do_not_fit_the_head(tiny_config):
    with pytest.raises(ValueError, match=r"long_factor .*5 .*12 .*6"):
        LongRope(replace(tiny_config.decoder, long_factor=(1.0,) * 5))
