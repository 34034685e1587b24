"""Adding, removing and merging the adapters of a model: LoRAs on all linears of the decoder (lora.py)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from polyphi.model.config import AdapterConfig, ModelConfig
from polyphi.model.initialise import generator
from polyphi.model.lora import Factors, LoraLinear, LowRank, is_adapter_name
from polyphi.model.multimodal import PhiModel


@torch.no_grad()
def add_adapter(model: PhiModel, name: str, like: AdapterConfig | str, seed: int = 0) -> None:
    """Add an adapter: a fresh one with the rank and alpha of `like`, which doesn't change outputs until it is trained,
    or a copy of the adapter that `like` names. Raises ValueError for a name that is in use or invalid, and for a copy
    of an unknown adapter."""
    _check_unquantized(model)
    _check_name(model, name)
    existing = model.config.adapters
    if isinstance(like, str) and like not in existing:
        raise ValueError(
            f"{name} can't be a copy of {like!r}; this model has: {', '.join(existing) or 'no adapters'}"
        )
    config = existing[like] if isinstance(like, str) else like
    for path, linear in _lora_linears(model):
        pair = LowRank(linear.weight.shape[1], linear.weight.shape[0], config)
        if isinstance(like, str):
            pair.load_state_dict(linear.pair(like).state_dict())
        else:
            pair.initialise(generator(seed, f"{path}.lora.{name}"))
        linear.lora[name] = pair.to(linear.weight).train(model.training)
    _use_adapters(model, {**existing, name: config})


@torch.no_grad()
def put_adapter(
    model: PhiModel, name: str, config: AdapterConfig, factors: Mapping[str, Factors]
) -> None:
    """Add an adapter with the given factors of linears by their paths, in the dtype of the weights that aren't
    quantized; linears without factors stay without it. Raises ValueError for a name that is in use or invalid."""
    _check_name(model, name)
    insert_adapter(model, name, config, low_ranks(model, factors))


@torch.no_grad()
def low_ranks(model: PhiModel, factors: Mapping[str, Factors]) -> dict[str, LowRank]:
    """The modules of factors of linears by their paths, for `insert_adapter`."""
    return {
        path: LowRank.of(f, model.decoder.norm.weight).requires_grad_(False).eval()
        for path, f in factors.items()
    }


def insert_adapter(
    model: PhiModel, name: str, config: AdapterConfig, pairs: Mapping[str, LowRank]
) -> None:
    """Add an adapter, made of the modules `pairs`, under a name that isn't in use; takes no time."""
    assert name not in model.config.adapters, name
    linears = dict(_lora_linears(model))
    for path, pair in pairs.items():
        linears[path].lora[name] = pair
    _use_adapters(model, {**model.config.adapters, name: config})


@torch.no_grad()
def remove_adapter(model: PhiModel, name: str) -> None:
    """Remove an adapter. Raises ValueError for an unknown one."""
    adapters = dict(model.config.adapters)
    if adapters.pop(name, None) is None:
        raise ValueError(
            f"there is no adapter {name!r} to remove; this model has: "
            f"{', '.join(model.config.adapters) or 'none'}"
        )
    for _, linear in _lora_linears(model):
        if name in linear.lora:
            del linear.lora[name]
    _use_adapters(model, adapters)


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
    _check_unquantized(model)
    check_mergeable(model.config, name)
    others = dict(model.config.adapters)
    merged = others.pop(name)
    for _, linear in _lora_linears(model):
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
    _use_adapters(model, wider_configs)


def adapter_pairs(model: PhiModel, name: str) -> Iterator[tuple[str, LowRank]]:
    """The modules of an adapter by the paths of their linears."""
    return (
        (path, linear.pair(name)) for path, linear in _lora_linears(model) if name in linear.lora
    )


def _lora_linears(model: PhiModel) -> Iterator[tuple[str, LoraLinear]]:
    """Every linear that has adapters, with its name."""
    return ((n, m) for n, m in model.named_modules() if isinstance(m, LoraLinear))


def _check_name(model: PhiModel, name: str) -> None:
    """Raise ValueError for the name of a new adapter that is in use or invalid."""
    existing = model.config.adapters
    if name in existing or not is_adapter_name(name):
        raise ValueError(
            f"expected a new name for the adapter (letters, digits, _ and -; not auto or none), found {name!r}; "
            f"names in use: {', '.join(existing) or 'none'}"
        )


def _check_unquantized(model: PhiModel) -> None:
    """Raise ValueError for a quantized model."""
    if model.quant is not None:
        raise ValueError(
            "a quantized model can't get untrained adapters, and its adapters can't be merged; load it without quant, "
            "change them, save it, and quantize the saved model"
        )


def _use_adapters(model: PhiModel, adapters: Mapping[str, AdapterConfig]) -> None:
    model.config = replace(model.config, adapters=dict(adapters))
    model.decoder.adapters = dict(adapters)
