"""The matrix products of a model, by which a training's precision is chosen (devices/precision.py)."""

from itertools import repeat

import torch

from polyphi.devices import precision
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel


def matrix_products(config: ModelConfig) -> tuple[precision.MatrixProducts, ...]:
    """The matrix products of a model with all weights trainable; builds one layer of each part only."""
    one_layer, layers = config.in_one_layer()
    with torch.device("meta"):
        model = PhiModel(one_layer)
    weights: list[tuple[torch.Size, bool]] = []
    for name, parameter in model.named_parameters():
        times = next((n for prefix, n in layers.items() if name.startswith(prefix)), 1)
        weights += repeat((parameter.shape, True), times)
    return precision.products(weights)
