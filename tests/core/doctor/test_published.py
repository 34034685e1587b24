"""What fits, computed without weights: against a quantized model in memory, and the published sizes."""

import pytest
import torch

from polyphi import kernels
from polyphi.devices.memory import other_tensors, tensor_bytes
from polyphi.doctor import published
from polyphi.engine.cache import BLOCK
from polyphi.model.config import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    VisionConfig,
)
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.memory import model_bytes
from polyphi.quantization import quantize

CPU = torch.device("cpu")


@pytest.fixture
def meta() -> PhiModel:
    """A small model of shapes that all schemes quantize."""
    decoder = DecoderConfig(
        vocab_size=512,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        original_max_position_embeddings=128,
        max_position_embeddings=512,
        short_factor=(1.0,) * 6,
        long_factor=(1.0,) * 6,
    )
    vision = VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        crop_size=56,
    )
    audio = AudioConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_blocks=2,
        nemo_conv_channels=8,
        ext_pw_out_channel=32,
        depthwise_separable_out_channel=32,
    )
    adapters = {"vision": AdapterConfig(4, 8.0), "speech": AdapterConfig(5, 10.0, 0.01)}
    with torch.device("meta"):
        return PhiModel(ModelConfig(decoder, vision, audio, adapters))


@pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
@pytest.mark.parametrize("scheme", published.SCHEMES[1:])
def test_weights_are_those_of_a_quantized_model(meta: PhiModel, scheme: str) -> None:
    model = PhiModel(meta.config).to(torch.bfloat16)
    fit = published.fit("tiny", meta, scheme, CPU, 10**9)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    quantize.quantize(model, scheme)
    # Which layout oneDNN chooses depends on the CPU; its blocks pad weights as small as these.
    layouts = [tensor for tensor in other_tensors(model) if tensor.is_mkldnn]
    padding = sum(tensor_bytes(t) - t.numel() * t.element_size() for t in layouts)
    # Buffers are in memory too; the fit counts the padded blocks in which encoders' weights are stored, for these small
    # widths 3 % more than oneDNN's layout.
    assert model_bytes(model) - padding == pytest.approx(fit.weights, rel=0.05)
    assert fit.parameters == sum(p.numel() for p in meta.parameters())


def test_a_gpu_also_has_the_table_of_embeddings(meta: PhiModel) -> None:
    on_cpu, on_gpu = (
        published.fit("tiny", meta, "int8", torch.device(name), 10**9) for name in ("cpu", "cuda")
    )
    table = meta.config.decoder.vocab_size * meta.config.decoder.hidden_size
    assert on_gpu.weights - on_cpu.weights == 2 * table


def test_context_is_half_of_what_the_weights_leave(meta: PhiModel) -> None:
    """With much memory it is the longest one of the model."""
    fit = published.fit("tiny", meta, "int4", CPU, 10**9)
    left = 2 * 320 * fit.token_bytes
    assert published.fit("tiny", meta, "int4", CPU, fit.weights + left).context == 320
    assert published.fit("tiny", meta, "int4", CPU, fit.weights + left - 1).context == 320 - BLOCK
    assert published.fit("tiny", meta, "int4", CPU, fit.weights - 1).context == 0
    longest = meta.config.decoder.max_position_embeddings
    assert published.fit("tiny", meta, "int4", CPU, 10**12).context == longest


@pytest.mark.long
def test_published_sizes() -> None:
    rows = list(published.fits(CPU, 20 * 10**9))
    assert {(r.model.split("-")[2], r.quant) for r in rows} == {
        *(("mini", quant) for quant in (None, "int8", "int4")),
        *(("multimodal", quant) for quant in published.SCHEMES),
    }
    parameters = {r.model.split("-")[2]: r.parameters for r in rows}
    assert parameters["mini"] == pytest.approx(3.8e9, rel=0.01)  # report, 2.1
    assert parameters["multimodal"] == pytest.approx(5.6e9, rel=0.01)  # report, 2.2
