"""LoRA folders as PEFT and other tools write them, for a model that is loaded already.

>>> adapter = read_peft("my-adapter", model.config)
>>> put_adapter(model, "mine", adapter.config, adapter.factors)

A folder has adapter_config.json and adapter_model.safetensors. Read are plain LoRA and rsLoRA on the linears of the
language model: any subset of them, ranks and alphas by patterns, and factors of separate projections (q_proj, k_proj,
v_proj; gate_proj, up_proj), which are joined to those of the fused ones. Whatever else would change answers is refused.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyphi.checkpoints.adapter_config import MAX_ALPHA, check_lora, describe, is_alpha
from polyphi.checkpoints.files import check_headers
from polyphi.checkpoints.names import FUSED, linear_shape
from polyphi.model.config import AdapterConfig, DecoderConfig, ModelConfig
from polyphi.model.lora import Factors, is_adapter_name
from polyphi.runtime.files import read_object
from polyphi.runtime.rust import panics_are_errors

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CONFIG_BYTES = 1 << 20
LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_NAME = re.compile(
    r"(?:.*\.)?(?P<module>layers\.(?P<layer>0|[1-9]\d{0,5})\.(?P<linear>(?:self_attn|mlp)\.\w+_proj))"
    r"\.lora_(?P<factor>[AB])\.(?:\w+\.)?weight",
    re.ASCII,
)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that the factors of an adapter may have."""


class PeftError(ValueError):
    """A folder has no adapter for this model. `reason`: the message without the folder."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter: its nominal configuration, and the factors of each linear by its path in our model."""

    config: AdapterConfig
    factors: Mapping[str, Factors]


def read_peft(folder: str | Path, config: ModelConfig) -> PeftAdapter:
    """The adapter in a folder for a model with this configuration. Raises PeftError that names the file and the entry
    or tensor at fault: for another kind of adapter, tensors of other modules or shapes, NaN and infinity."""
    folder = Path(folder).expanduser()
    try:
        return _read(folder, config)
    except ValueError as error:
        raise PeftError(folder, str(error)) from error
    except OSError as error:
        raise PeftError(folder, f"its files can't be read: {error.strerror}") from error


def adapter_folder(folder: str | Path) -> Path:
    """The PEFT folder of an adapter: `folder` itself, or, where it is a fine-tune's run or the model of one, that of
    the adapter that was trained. Raises PeftError for a run that trained more than one adapter, or no adapter alone."""
    folder = Path(folder).expanduser()
    model = folder / "model" if (folder / "model").is_dir() else folder
    manifest = model.parent / "manifest.json"
    if (folder / CONFIG).is_file() or not manifest.is_file():
        return folder
    globs = list(read_object(manifest).get("learning_rates", ()))
    names = {part.partition(".lora.")[2].partition(".")[0] for part in globs}
    if len(names) != 1 or not all(map(is_adapter_name, names)):
        raise PeftError(
            folder,
            "expected a run that trained one adapter of the language model and no other weights, found "
            f"{', '.join(globs) or 'no trained weights'}; use its whole model: {model}",
        )
    (name,) = names
    if not (model / f"{name}-lora").is_dir():
        raise PeftError(
            folder,
            f"expected a folder {name}-lora in {model}, found none; `polyphi export {model} --layout native` writes it",
        )
    return model / f"{name}-lora"


def _read(folder: Path, config: ModelConfig) -> PeftAdapter:
    scales = Scales(_entries(folder))
    tensors: dict[str, dict[str, Tensor]] = {}
    known = {*LINEARS, *(part for parts in FUSED.values() for part in parts)}
    for name, tensor in _tensors(folder / FILE):
        match = _NAME.fullmatch(name)
        if match is None or match["linear"] not in known:
            raise ValueError(
                f"{FILE}: {name} belongs to no linear of the language model; expected only tensors of "
                f"{', '.join(x.rpartition('.')[2] for x in LINEARS)}"
            )
        if int(match["layer"]) >= config.decoder.num_hidden_layers:
            raise ValueError(
                f"{FILE}: {name} is of layer {match['layer']}, but this model has "
                f"{config.decoder.num_hidden_layers} layers"
            )
        if tensor.dtype not in DTYPES or tensor.ndim != 2:
            raise ValueError(
                f"{FILE}: {name} is {tensor.dtype} of {tensor.ndim} dimensions; expected floating-point numbers of 2"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{FILE}: {name} has NaN or infinite numbers")
        tensors.setdefault(match["module"], {})[match["factor"]] = tensor
    if not tensors:
        raise ValueError(f"{FILE} has no tensors")
    parts = {m: _checked(m, t, config.decoder, scales) for m, t in tensors.items()}
    pairs = dict(_fused(parts, config.decoder))
    rank = max(factors.rank for factors in pairs.values())
    return PeftAdapter(scales.config(rank), pairs)


class Scales:
    """The factor of each module's product, by alphas, ranks and rsLoRA (PEFT: alpha / rank, or alpha / sqrt(rank))."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self.alpha = float(entries["lora_alpha"])
        self.alphas = dict(entries.get("alpha_pattern") or {})
        _check_patterns(self.alphas)
        self.ranks = [entries["r"], *(entries.get("rank_pattern") or {}).values()]
        self.root = bool(entries.get("use_rslora"))
        self.dropout = float(entries.get("lora_dropout") or 0.0)

    def of(self, module: str, rank: int) -> float:
        """The factor of a module with a factor of this rank. Patterns match the end of its name, as in PEFT."""
        alpha = next(
            (a for pattern, a in self.alphas.items() if self._matches(pattern, module)), self.alpha
        )
        return float(alpha) / (math.sqrt(rank) if self.root else rank)

    def _matches(self, pattern: str, module: str) -> bool:
        try:
            return re.match(rf"(.*\.)?({pattern})$", f"model.{module}") is not None
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{CONFIG}: alpha_pattern has {pattern!r:.80}, which is no regular expression ({error})"
            ) from None

    def config(self, rank: int) -> AdapterConfig:
        """The nominal configuration: the largest rank, and the alpha that gives its factor."""
        root = math.sqrt(rank) if self.root else 1.0
        return AdapterConfig(rank, self.alpha * root, self.dropout)


def _entries(folder: Path) -> dict[str, Any]:
    """The adapter_config.json of a folder, checked."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"expected an adapter as PEFT writes it, found no {CONFIG}")
    if (size := path.stat().st_size) > CONFIG_BYTES:
        raise ValueError(f"{CONFIG} has {size:,} bytes; expected at most {CONFIG_BYTES:,}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{CONFIG} is no JSON") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{CONFIG}: expected an object, found {type(entries).__name__}")
    check_lora(entries, CONFIG)
    return entries


def _check_patterns(patterns: Mapping[Any, Any]) -> None:
    """Raise ValueError for patterns that could take minutes to match, and for alphas that are no numbers."""
    loose = 0
    for pattern, alpha in patterns.items():
        repetitions = len(re.findall(r"[*+?{]", pattern))
        loose += repetitions > 0
        if repetitions > 3 or loose > 64 or re.search(r"\)[*+{]", pattern):
            raise ValueError(
                f"{CONFIG}: alpha_pattern has {pattern!r:.80}; expected at most 64 patterns with repetitions, at most "
                "three in each, and none of a group"
            )
        if not is_alpha(alpha):
            raise ValueError(
                f"{CONFIG}: alpha_pattern of {pattern!r:.80}: expected a number of at most {MAX_ALPHA:,.0f}, found "
                f"{describe(alpha)}"
            )


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    if not path.is_file():
        pickled = path.with_name("adapter_model.bin")
        other = f", only {pickled.name}, a pickle, which isn't read" if pickled.exists() else ""
        raise ValueError(f"expected {FILE}, found none{other}")
    check_headers([path])
    try:
        with panics_are_errors(f"{FILE} is damaged"), safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                yield name, file.get_tensor(name)
    except (SafetensorError, TypeError) as error:  # TypeError: a size above 2^63
        raise ValueError(f"{FILE} is damaged") from error


def _checked(
    module: str,
    factors: Mapping[str, Tensor],
    decoder: DecoderConfig,
    scales: Scales,
) -> Factors:
    if missing := {"A", "B"} - set(factors):
        raise ValueError(f"{FILE}: {module} has no lora_{missing.pop()}")
    a, b = factors["A"], factors["B"]
    outputs, inputs = linear_shape(module, decoder)
    rank = len(a)
    if a.shape != (rank, inputs) or b.shape != (outputs, rank) or not rank:
        raise ValueError(
            f"{FILE}: {module} has factors of {tuple(a.shape)} and {tuple(b.shape)}, expected (R, {inputs}) "
            f"and ({outputs}, R): the adapter is of another model"
        )
    if rank not in scales.ranks:
        raise ValueError(
            f"{FILE}: {module} has factors of rank {rank}, but {CONFIG} has r {scales.ranks[0]} and no rank_pattern "
            f"of {rank}: the files belong to different adapters"
        )
    return Factors(a, b, scales.of(module, rank))


def _fused(parts: Mapping[str, Factors], decoder: DecoderConfig) -> Iterator[tuple[str, Factors]]:
    """The factors by our paths; those of separate projections joined: A is their As below each other, B has their
    scaled Bs on its diagonal."""
    separate = {part: fused for fused, members in FUSED.items() for part in members}
    joined: set[str] = set()
    for module, factors in parts.items():
        layer, linear = module.split(".", 2)[1], module.split(".", 2)[2]
        if linear not in separate:
            yield f"decoder.layers.{layer}.{linear}", factors
            continue
        fused = separate[linear]
        path = f"decoder.layers.{layer}.{fused}"
        if path in joined:
            continue
        joined.add(path)
        members = [f"layers.{layer}.{member}" for member in FUSED[fused]]
        outputs = [linear_shape(member, decoder)[0] for member in members]
        used = [parts.get(member) for member in members]
        a = torch.cat([f.a for f in used if f is not None])
        b = torch.zeros(sum(outputs), len(a), dtype=torch.float32)
        row = column = 0
        for size, part in zip(outputs, used, strict=True):
            if part is not None:
                b[row : row + size, column : column + part.rank] = part.b.float() * part.scale
                column += part.rank
            row += size
        yield path, Factors(a, b, 1.0)
