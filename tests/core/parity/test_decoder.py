"""The decoder against transformers' Phi-3, on both sides of the LongRoPE switch."""

import pytest
import torch
import transformers

from polyphi.model.config import DecoderConfig, ModelConfig
from polyphi.model.rope import LongRope
from polyphi.types.batch import pack, row
from tests.core.parity import oracle

# Same formulas in float32, other kernels: sums run in another order. Measured 6e-6 on logits of spread 1; the wrong
# rotary table moves them by 4.
ROUNDING = 2e-5


@pytest.fixture
def models(tiny_config):
    reference = oracle.mini(tiny_config)
    return reference, oracle.ours(reference, tiny_config)


def tokens(n: int) -> list[int]:
    return torch.randint(1, 1000, (n,), generator=torch.Generator().manual_seed(n)).tolist()


@torch.no_grad()
def reference_logits(reference, ids: list[int]) -> torch.Tensor:
    return reference(torch.tensor([ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
@torch.no_grad()
def test_logits_around_the_switch_of_64_tokens(models, length):
    reference, model = models
    ids = tokens(length)
    logits = model.logits(model(row(ids)))
    torch.testing.assert_close(logits, reference_logits(reference, ids), atol=ROUNDING, rtol=0)


@torch.no_grad()
def test_each_sequence_of_a_pack_reads_its_own_table(models):
    # transformers has one table per call; polyphi's rule is that a sequence gives what it gives alone.
    reference, model = models
    rows = [tokens(n) for n in (64, 65, 10, 130)]
    logits = model.logits(model(pack([row(ids) for ids in rows])))
    expected = torch.cat([reference_logits(reference, ids) for ids in rows])
    torch.testing.assert_close(logits, expected, atol=ROUNDING, rtol=0)


@torch.no_grad()
def test_the_wrong_table_is_noticed(models):
    reference, model = models
    ids = tokens(64)
    batch = row(ids)
    object.__setattr__(batch, "seq_lens", (65,))
    assert (
        model.logits(model(batch)) - reference_logits(reference, ids)
    ).abs().max() > 1000 * ROUNDING


@pytest.mark.parametrize("total", [4096, 4097, 131072])
def test_published_rotary_tables(total):
    """All 48 published factors, at the last positions of each table."""
    config = DecoderConfig()
    reference = transformers.models.phi3.modeling_phi3.Phi3RotaryEmbedding(
        transformers.Phi3Config(
            **oracle.language(ModelConfig(vision=None, audio=None, adapters={}))
        )
    )
    positions = torch.tensor([0, 1, 2, 1000, total - 2, total - 1])
    cos, sin = reference(torch.zeros(1), positions[None])
    batch = row([0] * len(positions))
    object.__setattr__(batch, "positions", positions)
    object.__setattr__(batch, "seq_lens", (total,))
    tables = [torch.cat([x, x], dim=-1)[:, 0] for x in LongRope(config)(batch, torch.float32)]
    # Exactly: one bit of an inverse frequency is 8e-3 radians at position 131,071.
    assert torch.equal(tables[0], cos[0]) and torch.equal(tables[1], sin[0])
    assert config.rope_scale == pytest.approx((17 / 12) ** 0.5, abs=1e-12)
