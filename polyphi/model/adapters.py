"""Adding and removing the adapters of a model: LoRAs on all linears of the decoder (lora.py)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from polyphi.model.config import AdapterConfig
from polyphi.model.initialise import generator
from polyphi.model.lora import Factors, LoraLinear, LowRank, is_adapter_name
from polyphi.model.multimodal import PhiModel


@torch.no_grad()
def add_adapter(model: PhiModel, name: str, like: AdapterConfig | str, seed: int = 0) -> None:
    """Add an adapter: a fresh one with the rank and alpha of `like`, which doesn't change outputs until it is trained,
    or a copy of the adapter that `like` names. Raises ValueError for a name that is in use or invalid, and for a copy
    of an unknown adapter."""
    check_unquantized(model)
    _check_name(model, name)
    existing = model.config.adapters
    if isinstance(like, str) and like not in existing:
        raise ValueError(
            f"{name} can't be a copy of {like!r}; this model has: {', '.join(existing) or 'no adapters'}"
        )
    config = existing[like] if isinstance(like, str) else like
    for path, linear in lora_linears(model):
        pair = LowRank(linear.weight.shape[1], linear.weight.shape[0], config)
        if isinstance(like, str):
            pair.load_state_dict(linear.pair(like).state_dict())
        else:
            pair.initialise(generator(seed, f"{path}.lora.{name}"))
        linear.lora[name] = pair.to(linear.weight).train(model.training)
    use_adapters(model, {**existing, name: config})


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
    linears = dict(lora_linears(model))
    for path, pair in pairs.items():
        linears[path].lora[name] = pair
    use_adapters(model, {**model.config.adapters, name: config})


@torch.no_grad()
def remove_adapter(model: PhiModel, name: str) -> None:
    """Remove an adapter. Raises ValueError for an unknown one."""
    adapters = dict(model.config.adapters)
    if adapters.pop(name, None) is None:
        raise ValueError(
            f"there is no adapter {name!r} to remove; this model has: "
            f"{', '.join(model.config.adapters) or 'none'}"
        )
    for _, linear in lora_linears(model):
        if name in linear.lora:
            del linear.lora[name]
    use_adapters(model, adapters)


def adapter_pairs(model: PhiModel, name: str) -> Iterator[tuple[str, LowRank]]:
    """The modules of an adapter by the paths of their linears."""
    return (
        (path, linear.pair(name)) for path, linear in lora_linears(model) if name in linear.lora
    )


def lora_linears(model: PhiModel) -> Iterator[tuple[str, LoraLinear]]:
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


def check_unquantized(model: PhiModel) -> None:
    """Raise ValueError for a quantized model."""
    if model.quant is not None:
        raise ValueError(
            "a quantized model can't get untrained adapters, and its adapters can't be merged; load it without quant, "
            "change them, save it, and quantize the saved model"
        )


def use_adapters(model: PhiModel, adapters: Mapping[str, AdapterConfig]) -> None:
    """Record the adapters that a model has now in its configuration."""
    model.config = replace(model.config, adapters=dict(adapters))
    model.decoder.adapters = dict(adapters)
