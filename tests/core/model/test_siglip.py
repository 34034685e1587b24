"""Rules of the vision tower; its numbers are compared with transformers in tests/core/parity."""

from dataclasses import replace

import pytest
import torch

from polyphi import kernels
from polyphi.model.config import VisionConfig
from polyphi.model.multimodal import PhiModel
from polyphi.model.siglip import PackedPatches, SiglipEncoder


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


def test_unused_patches_are_skipped():
    """Of three crops of 4 x 4 patches, the second has three valid columns, the third one valid patch."""
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0], masks[1, :, :3], masks[2, 0, 0] = True, True, True
    packed = PackedPatches.of(masks)
    assert packed.keys == (16, 12, 1)
    assert packed.queries == (16, 16, 4)  # whole cells of 2 x 2, as the projector averages them
    assert packed.rows[-4:].tolist() == [32, 33, 36, 37]
    second = packed.rows[16:32].sub(16).tolist()
    assert sorted(second) == list(range(16)) and second[12:] == [3, 7, 11, 15]
    assert PackedPatches.of(masks[:1]).rows is None


@pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
def test_our_attention_equals_torchs(encoder):
    """With gradients torch's kernel is used, for every patch; without them ours, for the used ones."""
    encoder = encoder.bfloat16()
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0], masks[1, :, :3], masks[2, :2, :2] = True, True, True
    crops = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0)).bfloat16()
    plain = encoder(crops, masks).detach().float()
    with torch.no_grad():
        result = encoder(crops, masks).float()
    used = torch.ones(3, 4, 4, dtype=torch.bool)
    used[2] = masks[2]
    used = used.flatten(1)
    assert (result[used] - plain[used]).norm() < 0.01 * plain[used].norm()
    assert not result[~used].any()


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
        match=r"42 pixels .* even number of patches of 14 pixels .* found 3",
    ):
        SiglipEncoder(replace(VisionConfig(), crop_size=42, hidden_size=16, num_hidden_layers=1))
