"""The matrix products of a model, by which a training's precision is chosen (devices/precision.py)."""

from dataclasses import replace
from itertools import repeat

import torch

from polyphi.devices import precision
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel


def matrix_products(config: ModelConfig) -> tuple[precision.MatrixProducts, ...]:
    """The matrix products of a model with all weights trainable; builds one layer of each part only."""
    one_layer, layers = _in_one_layer(config)
    with torch.device("meta"):
        model = PhiModel(one_layer)
    weights: list[tuple[torch.Size, bool]] = []
    for name, parameter in model.named_parameters():
        times = next((n for prefix, n in layers.items() if name.startswith(prefix)), 1)
        weights += repeat((parameter.shape, True), times)
    return precision.products(weights)


def _in_one_layer(config: ModelConfig) -> tuple[ModelConfig, dict[str, int]]:
    """A copy of a configuration with one of each repeated layer, and the number of layers by the prefix of their
    parameters' names."""
    layers = {"decoder.layers.": config.decoder.num_hidden_layers}
    one = replace(config, decoder=replace(config.decoder, num_hidden_layers=1))
    if config.vision is not None:
        layers["vision.encoder.layers."] = config.vision.num_hidden_layers
        one = replace(one, vision=replace(config.vision, num_hidden_layers=1))
    if config.audio is not None:
        layers["audio.encoder.blocks."] = config.audio.num_blocks
        one = replace(one, audio=replace(config.audio, num_blocks=1))
    return one, layers
