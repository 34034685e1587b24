"""Whole-model logits against transformers with PEFT's LoRAs, in every mode of the report: text, image, audio, both."""

import pytest
import torch

from tests.core.parity import oracle

# Same formulas in float32, sums in another order, through encoder, projector, decoder and adapters as large as the
# weights they adapt: measured 6e-5 on logits of spread 1. The wrong adapter moves them by 5.
ROUNDING = 2e-4


@pytest.fixture
def models(tiny_config):
    reference = oracle.multimodal(tiny_config)
    return reference, oracle.ours(reference, tiny_config)


def agree(models, config, batch) -> float:
    reference, model = models
    with torch.no_grad():
        logits = model.logits(model(batch))
    return (logits - oracle.reference_logits(reference, config, batch)).abs().max().item()


@pytest.mark.parametrize("adapter", [None, "vision", "speech"])
@pytest.mark.parametrize("length", [40, 100])
def test_text(models, tiny_config, adapter, length):
    text = tuple(
        torch.randint(20, 1000, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    )
    assert (
        agree(models, tiny_config, oracle.request(tiny_config, adapter=adapter, text=text))
        < ROUNDING
    )


@pytest.mark.parametrize("adapter", ["vision", None])
def test_one_picture(models, tiny_config, adapter):
    cut = oracle.picture(tiny_config, (2, 3), (7, 11), seed=1)
    assert (
        agree(models, tiny_config, oracle.request(tiny_config, pictures=(cut,), adapter=adapter))
        < ROUNDING
    )


def test_several_pictures(models, tiny_config):
    shapes = [((1, 1), (4, 4)), ((2, 1), (8, 3)), ((1, 2), (4, 7))]
    cuts = tuple(oracle.picture(tiny_config, *shape, seed=i) for i, shape in enumerate(shapes))
    assert (
        agree(models, tiny_config, oracle.request(tiny_config, pictures=cuts, adapter="vision"))
        < ROUNDING
    )


@pytest.mark.parametrize("frames", [3, 300, 4500])
def test_one_clip(models, tiny_config, frames):
    mels = oracle.mels(frames, seed=4)
    assert (
        agree(models, tiny_config, oracle.request(tiny_config, clips=(mels,), adapter="speech"))
        < ROUNDING
    )


def test_picture_and_clip(models, tiny_config):
    """The vision adapter, and the audio projector of that name."""
    cut, mels = oracle.picture(tiny_config, (2, 3), (7, 12), seed=3), oracle.mels(300, seed=4)
    batch = oracle.request(tiny_config, pictures=(cut,), clips=(mels,), adapter="vision")
    assert batch.inputs["audio"].layouts[0].branch == "vision"
    assert agree(models, tiny_config, batch) < ROUNDING


def test_the_wrong_adapter_is_noticed(models, tiny_config):
    batch = oracle.request(tiny_config, clips=(oracle.mels(300, seed=4),), adapter="speech")
    reference, model = models
    expected = oracle.reference_logits(reference, tiny_config, batch)
    object.__setattr__(batch, "adapters", ("vision",))
    with torch.no_grad():
        assert (model.logits(model(batch)) - expected).abs().max() > 1000 * ROUNDING
