"""Adapter configurations: PEFT's adapter_config.json, and the blocks nested in an original config.json."""

from collections.abc import Mapping
from typing import Any

from polyphi.model.config import AdapterConfig


def parse_peft(entries: Mapping[str, Any], source: str) -> AdapterConfig:
    """The configuration in an adapter_config.json; `source` names the file in errors. Raises ValueError for anything
    but a plain LoRA."""
    if "r" not in entries or "lora_alpha" not in entries:
        raise ValueError(
            f"{source}: expected r and lora_alpha, as PEFT writes it, found {sorted(entries)}"
        )
    for key in (
        "use_rslora",
        "use_dora",
        "lora_bias",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
    ):
        if entries.get(key):
            raise ValueError(f"{source} sets {key}, which is not supported; expected a plain LoRA")
    return AdapterConfig(
        entries["r"], float(entries["lora_alpha"]), float(entries.get("lora_dropout", 0.0))
    )


def parse_nested_adapters(raw_config: Mapping[str, Any]) -> dict[str, AdapterConfig]:
    """The adapters in a config.json of the original layout: blocks such as `vision_lora`."""
    return {
        key.removesuffix("_lora"): AdapterConfig(
            block["r"], float(block["lora_alpha"]), block.get("dp", 0.0)
        )
        for key, block in raw_config.items()
        if key.endswith("_lora") and isinstance(block, dict)
    }


def whole_number(value: float) -> float | int:
    """512.0 as 512, because public readers expect an integer alpha."""
    return int(value) if float(value).is_integer() else value


def write_peft(adapter: AdapterConfig) -> dict[str, Any]:
    """The adapter_config.json of an adapter."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "r": adapter.rank,
        "lora_alpha": whole_number(adapter.alpha),
        "lora_dropout": adapter.dropout,
        # an anchored pattern, so that the towers' projections don't match
        "target_modules": r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)",
        "use_rslora": False,
        "use_dora": False,
    }
