"""Random adapters for all linears of a decoder, and their folders as PEFT writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from polyphi.model.lora import Factors, LoraLinear
from polyphi.model.multimodal import PhiModel


def random_factors(model: PhiModel, seed: int, rank: int = 4) -> dict[str, Factors]:
    """Factors that change answers, for the linears that have the adapter `vision`; another `seed` gives others."""
    draw = torch.Generator().manual_seed(seed)
    return {
        path: Factors(
            torch.randn(rank, module.pair("vision").a.shape[1], generator=draw),
            torch.randn(len(module.pair("vision").b), rank, generator=draw),
            0.25,
        )
        for path, module in model.named_modules()
        if isinstance(module, LoraLinear)
    }


def write_folder(folder: Path, factors: Mapping[str, Factors], **entries: Any) -> Path:
    """The folder of factors that all have the same rank and scale; `entries`: more of adapter_config.json."""
    tensors = {}
    for path, one in factors.items():
        name = f"base_model.model.{path.replace('decoder.', 'model.')}"
        tensors |= {f"{name}.lora_A.weight": one.a, f"{name}.lora_B.weight": one.b}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": one.rank, "lora_alpha": one.scale * one.rank, **entries}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder
