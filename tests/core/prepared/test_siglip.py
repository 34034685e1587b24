"""The prepared vision tower equals the plain one, packed and in slices."""

import copy

import pytest
import torch

from polyphi import kernels
from polyphi.model.multimodal import PhiModel
from polyphi.model.siglip import SiglipEncoder
from polyphi.prepared import siglip
from polyphi.prepared.multimodal import equal_crops
from polyphi.prepared.prepare import prepare
from polyphi.prepared.siglip import PackedPatches
from polyphi.runtime.steps import result_of
from polyphi.types.inputs.image import ImageInput, ImageLayout


@pytest.fixture
def model(tiny_config) -> PhiModel:
    model = PhiModel(tiny_config)
    model.initialise(seed=0)
    return model


@pytest.fixture
def encoder(model) -> SiglipEncoder:
    return model.vision.encoder


def inputs(crops: int) -> tuple[torch.Tensor, torch.Tensor]:
    masks = torch.ones(crops, 4, 4, dtype=torch.bool)
    masks[-1, :, 2:] = False
    return torch.randn(crops, 3, 56, 56, generator=torch.Generator().manual_seed(0)), masks


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("grad", [False, True])
def test_a_few_crops_at_a_time_equal_all_at_once(encoder, monkeypatch, dtype, bound, grad):
    """Of the crop with padding only the used cells, whose gradients are equal, too. bfloat16: measured 0.0042 in the
    2-norm (AVX-512; 0.0043 with AVX2), another rounding of the softmax."""
    monkeypatch.setattr(siglip, "BATCH_PATCHES", 32)  # two crops
    encoder = encoder.to(dtype)
    crops, masks = inputs(5)
    used = masks.flatten(1)
    results = []
    for tower in (encoder, prepare(copy.deepcopy(encoder))):
        with torch.set_grad_enabled(grad):
            result = tower(crops, masks)[used].float()
        if grad:
            result.square().sum().backward()
        results.append(
            [result, *(p.grad.float() for p in tower.parameters() if p.grad is not None)]
        )
    # Relative to the largest gradient: those of keys' biases are 0 but for rounding.
    largest = max(gradient.norm() for gradient in results[0][1:]) if grad else 0.0
    for expected, result in zip(*results, strict=True):
        assert (result - expected).norm() < bound * max(expected.norm(), largest)


@pytest.mark.parametrize("grad", [False, True])
def test_the_pooled_vector_is_that_of_all_patches(encoder, grad):
    """The last layer is packed, too."""
    crops, masks = inputs(3)
    towers = (encoder, prepare(copy.deepcopy(encoder)))
    with torch.set_grad_enabled(grad):
        expected, result = (tower.pooled(crops, masks) for tower in towers)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_a_server_may_pause_after_every_layer(encoder, monkeypatch):
    monkeypatch.setattr(siglip, "BATCH_PATCHES", 32)
    with torch.no_grad():
        assert len(list(prepare(encoder).slices(*inputs(5)))) == 3 * (len(encoder.layers) - 1)


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
    encoder = prepare(encoder.bfloat16())
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


def test_equal_crops_are_encoded_once(model, monkeypatch):
    """An image of one crop equals its global view; the gradient is that of both."""
    crops, masks = inputs(4)
    crops[1], masks[:] = crops[0], True
    images = ImageInput(layouts=(ImageLayout(1, 1, 2, 2),) * 2, crops=crops, masks=masks)
    assert equal_crops(images).tolist() == [0, 0, 2, 3]
    prepared = prepare(copy.deepcopy(model.vision))
    sizes, embed = [], prepared.encoder.embed
    monkeypatch.setattr(
        prepared.encoder,
        "embed",
        lambda crops, masks: sizes.append(len(crops)) or embed(crops, masks),
    )
    results, gradients = [], []
    for vision in (model.vision, prepared):
        results.append(vision(images))
        results[-1].square().sum().backward()
        gradients.append(vision.encoder.patch_embedding.weight.grad)
    assert sizes == [3]
    # float32 sums of other lengths
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(result_of(prepared.slices(images)), results[0])
