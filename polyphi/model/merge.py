"""Merging an adapter into the base weights of a model."""

from dataclasses import replace

import torch

from polyphi.model.adapters import check_unquantized, lora_linears, use_adapters
from polyphi.model.config import ModelConfig
from polyphi.model.lora import Factors, LowRank
from polyphi.model.multimodal import PhiModel


def check_mergeable(config: ModelConfig, name: str) -> None:
    """Raise ValueError if a model has no adapter of this name."""
    if name not in config.adapters:
        raise ValueError(
            f"there is no adapter {name!r} to merge; this model has: {', '.join(config.adapters) or 'none'}"
        )


@torch.no_grad()
def merge_adapter(model: PhiModel, name: str) -> None:
    """Merge an adapter into the base weights, W + alpha / rank * B A, and remove it: the base model then gives its
    outputs. The inverse is added to every other adapter (whose rank grows by the merged one's), so that their outputs
    stay the same. Sums are in float32; weights in bfloat16 are rounded once, so cast the model first where that
    matters. Raises ValueError for an unknown adapter."""
    check_unquantized(model)
    check_mergeable(model.config, name)
    others = dict(model.config.adapters)
    merged = others.pop(name)
    for _, linear in lora_linears(model):
        if name not in linear.lora:
            continue
        pair = linear.pair(name)
        inverse = Factors(pair.a.float(), -pair.b.float(), pair.scale)
        del linear.lora[name]
        weight = linear.weight
        weight.copy_(weight.float() - inverse.scale * (inverse.b @ inverse.a))
        for key, config in others.items():
            factors = inverse
            if key in linear.lora:
                pair = linear.pair(key)
                a = torch.cat([pair.a.float(), inverse.a])
                b = torch.cat([pair.b.float(), inverse.scale / pair.scale * inverse.b], dim=1)
                factors = Factors(a, b, pair.scale)
            wider = LowRank.of(factors, pair.a, config.dropout)
            linear.lora[key] = wider.train(model.training)
    ranks = {key: config.rank + merged.rank for key, config in others.items()}
    wider_configs = {
        key: replace(config, rank=ranks[key], alpha=config.alpha / config.rank * ranks[key])
        for key, config in others.items()
    }
    use_adapters(model, wider_configs)
