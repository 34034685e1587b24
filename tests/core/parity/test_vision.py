"""The vision tower and its projector against transformers, for masks of every shape and the published geometry."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from polyphi.model.siglip import position_ids
from tests.core.parity import oracle

# Same formulas in float32, sums in another order. Measured 2e-6 on features of spread 1.6; a mask left out moves them
# by 2.
ROUNDING = 2e-5

# Through the decoder and a vision adapter as large as the weights it adapts: measured 6e-5 on logits of spread 1.
LOGITS = 2e-4

SHAPES = {
    "one full crop": ((1, 1), (4, 4)),
    "full crops": ((2, 2), (8, 8)),
    "odd rows": ((2, 3), (7, 12)),
    "odd columns": ((2, 2), (8, 5)),
    "odd rows and columns": ((3, 2), (11, 7)),
    "one row": ((1, 2), (1, 8)),
    "one column": ((3, 1), (12, 1)),
    "one patch": ((1, 1), (1, 1)),
}


@pytest.fixture
def models(tiny_config):
    reference = oracle.multimodal(tiny_config)
    return reference, oracle.ours(reference, tiny_config)


@pytest.mark.parametrize("grid", [4, 8, 32])
def test_positions_equal_the_reference_bucketing(grid):
    """A tower of width 1 whose patches weigh nothing and whose position k holds the number k shows its ids."""
    config = transformers.Phi4MultimodalVisionConfig(
        hidden_size=1, image_size=14 * grid, patch_size=14, num_attention_heads=1
    )
    modeling = transformers.models.phi4_multimodal.modeling_phi4_multimodal
    reference = modeling.Phi4MultimodalVisionEmbeddings(config)
    with torch.no_grad():
        for p in reference.parameters():
            p.zero_()
        reference.position_embedding.weight.copy_(torch.arange(grid**2)[:, None])
        sides = torch.arange(grid)
        counts = [(n, m) for n in range(1, grid + 1) for m in {n, 1 + (5 * n) % grid, grid}]
        masks = torch.stack([(sides < n)[:, None] & (sides < m) for n, m in counts])
        expected = reference(torch.zeros(len(masks), 3, 14 * grid, 14 * grid), masks)[..., 0].long()
    assert torch.equal(position_ids(masks), expected)
    plain = [
        [
            (grid * i // n) * grid + grid * j // m if i < n and j < m else 0
            for i in range(grid)
            for j in range(grid)
        ]
        for n, m in counts
    ]
    assert np.array_equal(position_ids(masks).numpy(), plain)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@torch.no_grad()
def test_patch_features_and_image_tokens(models, tiny_config, shape):
    reference, model = models
    crops, masks, layout = oracle.picture(tiny_config, *shape, seed=3)
    vision = reference.model.embed_tokens_extend.image_embed
    expected = vision.img_processor(crops, patch_attention_mask=masks, output_hidden_states=True)
    features = model.vision.encoder(crops, masks)
    # Padded patches too: half-empty cells of the pooling average them in.
    torch.testing.assert_close(features, expected.hidden_states[-2], atol=ROUNDING, rtol=0)
    torch.testing.assert_close(
        model.vision.encoder.pooled(crops, masks), expected.pooler_output, atol=ROUNDING, rtol=0
    )

    n = layout.tokens(tiny_config.vision.cells)
    size = tiny_config.vision.crop_size
    tokens = vision(
        torch.full((1, n), tiny_config.vision.image_token_id),
        torch.zeros(1, n, tiny_config.decoder.hidden_size),
        crops[None],
        torch.tensor([[layout.crop_rows * size, layout.crop_cols * size]]),
        masks[None].float(),
    )[0]
    torch.testing.assert_close(
        model.vision.projector(features, [layout]), tokens, atol=ROUNDING, rtol=0
    )


@torch.no_grad()
def test_real_geometry(tiny_config):
    """A 900 x 500 picture: 2 x 3 crops of 448 pixels, 54 of 64 patch rows valid, 1,596 tokens."""
    config = replace(
        tiny_config, vision=replace(tiny_config.vision, crop_size=448, num_hidden_layers=2)
    )
    reference = oracle.multimodal(config)
    model = oracle.ours(reference, config)
    cut = oracle.picture(config, (2, 3), (53, 96), seed=3)
    batch = oracle.request(config, pictures=(cut,), adapter="vision")
    assert len(batch.inputs["image"].slots) == 1596
    logits, expected = model.logits(model(batch)), oracle.reference_logits(reference, config, batch)
    torch.testing.assert_close(logits, expected, atol=LOGITS, rtol=0)
