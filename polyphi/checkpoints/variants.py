"""Fine-tunes in Microsoft's layout, as people publish them: what differs from the published checkpoint and is safe.

>>> raw_config, stored = variants.accept(raw_config, stored, notes)

Microsoft's sample for images deletes the audio encoder and the speech adapter but leaves them in config.json; others
delete the image tower, merge the adapters, add tokens, or save the names of a wrapped model. Such checkpoints are
read, and `notes` gets one line for each difference. What can't be read without a guess is refused.
"""

import re
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from polyphi.checkpoints.adapter_config import describe, object_at, parse_nested_adapters
from polyphi.checkpoints.names import AUDIO, IMAGE
from polyphi.text.quantity import quantity

WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
"""Prefixes of the names in a model that DDP, torch.compile or PEFT wrapped."""
EMBEDDING = "model.embed_tokens.weight"
_BASE = re.compile(
    r"(model\.layers\.\d+\.(?:self_attn\.(?:qkv|o)_proj|mlp\.(?:gate_up|down)_proj))\.weight"
)
_LORA = re.compile(r".*\.lora_[AB]\.([^.]+)\.weight")


class Shaped(Protocol):
    """A stored tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...


T = TypeVar("T", bound=Shaped)


def accept(
    raw_config: Mapping[str, Any], stored: Mapping[str, T], notes: list[str]
) -> tuple[dict[str, Any], dict[str, T]]:
    """The config.json and the tensors by name, as the published checkpoint would have them. Raises ValueError for
    adapters on top of Microsoft's own and for a folder without the language model."""
    config, tensors = dict(raw_config), _unwrapped(stored, notes)
    if buffers := [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        tensors = {name: t for name, t in tensors.items() if name not in buffers}
        notes.append(f"{len(buffers)} tensors rotary_emb.inv_freq are ignored: they are computed")
    _check_adapters(config, tensors)
    _drop_adapters(config, tensors, notes)
    _drop_towers(config, tensors, notes)
    tensors = _with_base_layers(tensors, bool(parse_nested_adapters(config)), notes)
    rows, vocab_size = next(iter(tensors[EMBEDDING].shape), 0), config.get("vocab_size")
    if isinstance(vocab_size, int) and vocab_size != rows:
        notes.append(
            f"config.json has vocab_size {describe(vocab_size)}, the embedding {rows} rows, which are used"
        )
        config["vocab_size"] = rows
    return config, tensors


def _unwrapped(stored: Mapping[str, T], notes: list[str]) -> dict[str, T]:
    """The tensors without the prefix of a wrapper that all their names have."""
    tensors = dict(stored)
    while prefix := next((p for p in WRAPPERS if all(n.startswith(p) for n in tensors)), None):
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
        notes.append(f"the names of all tensors begin with {prefix}, which is ignored")
    return tensors


def _check_adapters(config: Mapping[str, Any], tensors: Mapping[str, T]) -> None:
    stacked = next((name for name in tensors if ".base_layer.base_layer." in name), None)
    if stacked is not None:
        raise ValueError(
            f"{stacked}: an adapter was put on linears that have Microsoft's adapters already; merge it "
            "(merge_and_unload) and save the model again, or give its PEFT folder to --lora"
        )
    if EMBEDDING not in tensors:
        raise ValueError(
            f"expected the language model, found {quantity(len(tensors), 'tensor')} without {EMBEDDING}; "
            f"copy those that were "
            "saved into the published checkpoint, or give a PEFT folder to --lora"
        )
    names = {match[1] for name in tensors if (match := _LORA.fullmatch(name))}
    if unknown := sorted(names - parse_nested_adapters(config).keys()):
        raise ValueError(
            f"there are tensors of the adapter {unknown[0]!r}, but config.json has no {unknown[0]}_lora with its "
            "rank and alpha; add it as in the published config.json"
        )


def _drop_adapters(config: dict[str, Any], tensors: Mapping[str, T], notes: list[str]) -> None:
    """Remove adapters of config.json without any tensor."""
    for name in parse_nested_adapters(config):
        if not any((match := _LORA.fullmatch(n)) and match[1] == name for n in tensors):
            del config[f"{name}_lora"]
            notes.append(f"the adapter {name} isn't in the weights: it was merged or removed")


def _drop_towers(config: dict[str, Any], tensors: Mapping[str, T], notes: list[str]) -> None:
    """Remove encoders of config.json without any tensor."""
    layers, own = dict(object_at(config, "embd_layer")), dict(object_at(config, "polyphi"))
    for modality, tower, prefix in (("image", "vision", IMAGE), ("audio", "audio", AUDIO)):
        in_config = layers.get(f"{modality}_embd_layer") or (
            modality == "audio" and config.get("audio_processor")
        )
        if not in_config or any(name.startswith(f"{prefix}.") for name in tensors):
            continue
        layers.pop(f"{modality}_embd_layer", None)
        own.pop(tower, None)
        if modality == "audio":
            config.pop("audio_processor", None)
        notes.append(f"the {modality} encoder isn't in the weights: the model reads no {modality}")
    config["embd_layer"], config["polyphi"] = layers, own


def _with_base_layers(tensors: dict[str, T], adapted: bool, notes: list[str]) -> dict[str, T]:
    """The tensors with `.base_layer` in the names of the language model's linears if the model has adapters, without it
    otherwise."""
    if adapted:
        if not any(_BASE.fullmatch(name) for name in tensors):
            return tensors
        notes.append("linears with adapters lack .base_layer in their names")
        return {_BASE.sub(r"\1.base_layer.weight", name): t for name, t in tensors.items()}
    if not any(name.endswith(".base_layer.weight") for name in tensors):
        return tensors
    notes.append("linears without adapters have .base_layer in their names")
    return {name.replace(".base_layer.weight", ".weight"): t for name, t in tensors.items()}
