"""Rules of the vision tower; its numbers are compared with transformers in tests/core/parity."""

from dataclasses import replace

import pytest
import torch

from polyphi.model.config import VisionConfig
from polyphi.model.multimodal import PhiModel
from polyphi.model.siglip import SiglipEncoder


@pytest.fixture
def encoder(tiny_config) -> SiglipEncoder:
    model = PhiModel(tiny_config)
    model.initialise(seed=0)
    return model.vision.encoder


@torch.no_grad()
def test_padding_is_not_seen_by_valid_patches(encoder):
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0], masks[1, :3, :2] = True, True
    crops = torch.randn(2, 3, 56, 56)
    features, pooled = encoder(crops, masks), encoder.pooled(crops, masks)
    spoilt = crops.clone()
    spoilt[1, :, 42:, :] = 9
    spoilt[1, :, :, 28:] = -9
    valid = masks.flatten(1)
    assert torch.equal(encoder(spoilt, masks)[valid], features[valid])
    assert torch.equal(encoder.pooled(spoilt, masks), pooled)
    # Padded patches themselves do attend: their features depend on the picture.
    assert not torch.equal(encoder(crops.flip(1), masks)[~valid], features[~valid])


def test_features_come_from_the_second_last_layer(encoder):
    crops, masks = torch.randn(1, 3, 56, 56), torch.ones(1, 4, 4, dtype=torch.bool)
    encoder(crops, masks).square().sum().backward()
    silent = {name for name, p in encoder.named_parameters() if p.grad is None}
    assert silent == encoder.unused()
    assert len(silent) == 29  # as many as the published tower leaves unused
    encoder.zero_grad()
    encoder.pooled(crops, masks).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_a_crop_must_pool_evenly():
    with pytest.raises(
        ValueError,
        match=r"42 pixels .*14 pixels .*3",
    ):
        SiglipEncoder(replace(VisionConfig(), crop_size=42, hidden_size=16, num_hidden_layers=1))
