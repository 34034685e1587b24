"""Adapter configurations: PEFT's adapter_config.json, and the blocks nested in an original config.json."""

from collections.abc import Callable, Mapping
from typing import Any

from polyphi.model.config import AdapterConfig

REFUSED = {
    "use_dora": "DoRA rescales the base weights",
    "lora_bias": "biases aren't supported",
    "modules_to_save": "whole modules beside the adapter aren't supported",
    "trainable_token_indices": "changed embeddings aren't supported",
    "target_parameters": "adapters of single parameters aren't supported",
    "layer_replication": "replicated layers aren't supported",
    "alora_invocation_tokens": "an adapter that begins within a prompt isn't supported",
    "arrow_config": "routed adapters aren't supported",
}
"""Entries of adapter_config.json that change answers, with the reason why they are refused."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` whose training starts from changed base weights."""


MAX_ALPHA = 1e6
"""Largest alpha; products with a larger one exceed 16-bit numbers."""


def is_alpha(value: Any) -> bool:
    """Whether a value of JSON is an alpha: a number, and no NaN."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_ALPHA
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_share(value: Any) -> bool:
    return is_alpha(value) and 0 <= value <= 1


_BOOLEAN: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, bool), "a boolean")
_OBJECT: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, dict), "an object")
TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (lambda value: type(value) is int and 0 < value < 2**31, "a positive integer"),
    "lora_alpha": (is_alpha, f"a number of at most {MAX_ALPHA:,.0f}"),
    "lora_dropout": (_is_share, "a number from 0 to 1"),
    "alpha_pattern": _OBJECT,
    "rank_pattern": _OBJECT,
    "use_rslora": _BOOLEAN,
    "fan_in_fan_out": _BOOLEAN,
    "target_modules": (lambda v: isinstance(v, str) or _is_names(v), "a text or a list of texts"),
    "init_lora_weights": (lambda value: isinstance(value, bool | str), "a boolean or a text"),
}
"""The types of the entries of adapter_config.json that are read. A null is an entry that isn't there."""


def describe(value: Any) -> str:
    """A value of JSON in an error message, without the contents of lists and objects."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return f"{value!r:.80}"


def object_at(values: Mapping[str, Any], key: str, path: str = "") -> dict[str, Any]:
    """The object at a key of an object of JSON; an empty one for null and where it is missing. Raises ValueError for
    another value; `path` is that of the outer object in its file."""
    value = values.get(key)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"expected {path}{key} to be an object, found {describe(value)}")
    return value or {}


def check_lora(entries: Mapping[str, Any], source: str) -> None:
    """Raise ValueError for an adapter_config.json of anything but a LoRA or rsLoRA; `source` names the file."""
    if not isinstance(entries, Mapping):
        raise ValueError(f"{source}: expected an object, found {describe(entries)}")
    if (peft_type := entries.get("peft_type", "LORA")) != "LORA":
        raise ValueError(f"{source}: expected peft_type LORA, found {describe(peft_type)}")
    if "r" not in entries or "lora_alpha" not in entries:
        raise ValueError(
            f"{source}: expected r and lora_alpha, as PEFT writes it, found {sorted(entries)}"
        )
    for key, (is_valid, expected) in TYPES.items():
        value = entries.get(key)
        if not is_valid(value) and (value is not None or key in ("r", "lora_alpha")):
            raise ValueError(f"{source}: expected {key} to be {expected}, found {describe(value)}")
    for key, reason in REFUSED.items():
        if entries.get(key):
            raise ValueError(
                f"{source} sets {key}: {reason}; merge the adapter into its base with PEFT (merge_and_unload), or "
                "train a plain LoRA"
            )
    if (bias := entries.get("bias", "none")) != "none":
        raise ValueError(
            f"{source} sets bias to {describe(bias)}: biases aren't supported; expected 'none'"
        )
    start = str(entries.get("init_lora_weights"))
    if start.lower().startswith(CHANGES_BASE):
        raise ValueError(
            f"{source}: the adapter was trained from {start} on changed base weights; save it with PEFT's "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )


def parse_peft(entries: Mapping[str, Any], source: str) -> AdapterConfig:
    """The configuration in an adapter_config.json of a checkpoint; `source` names the file in errors. Raises ValueError
    for anything but a LoRA with one rank and alpha."""
    check_lora(entries, source)
    for key in ("use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern"):
        if entries.get(key):
            raise ValueError(f"{source} sets {key}, which is not supported; expected a plain LoRA")
    return AdapterConfig(
        entries["r"], float(entries["lora_alpha"]), float(entries.get("lora_dropout") or 0.0)
    )


def parse_nested_adapters(raw_config: Mapping[str, Any]) -> dict[str, AdapterConfig]:
    """The adapters in a config.json of the original layout: blocks such as `vision_lora`. Raises ValueError for a
    value of another type."""
    adapters = {}
    for key in (key for key in raw_config if key.endswith("_lora")):
        if block := object_at(raw_config, key):
            named = {"r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "dp"}
            for peft_key, entry in named.items():
                is_valid, expected = TYPES[peft_key]
                if not is_valid(block.get(entry, 0.0 if entry == "dp" else None)):
                    raise ValueError(
                        f"expected {key}.{entry} to be {expected}, found {describe(block.get(entry))}"
                    )
            config = AdapterConfig(block["r"], float(block["lora_alpha"]), block.get("dp", 0.0))
            adapters[key.removesuffix("_lora")] = config
    return adapters


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
        # an anchored pattern, so that the towers' projections don't match; the layout llama has single linears
        "target_modules": r"model\.layers\.\d+\.(self_attn\.(qkv|[qkvo])_proj|mlp\.(gate_up|gate|up|down)_proj)",
        "use_rslora": False,
        "use_dora": False,
    }
