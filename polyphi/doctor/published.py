"""The published models on a device: bytes of weights, and the context that fits.

>>> for fit in fits(torch.device("cpu"), free=20 * 10**9): print(fit.model, fit.quant, fit.weights, fit.context)

All numbers are computed from the models, built on the meta device:

    weights   parameters * 2 bytes, or 4 where `load` casts to float32; with `quant` minus what quantization saves.
              On a CPU the table of embeddings of a quantized model stays in its file and counts as none.
    left      free - weights; `free` is measured as `load` does, after the imports, within the container's limit
    cache     min(131,072 tokens or 32 sequences of 2,048, left / 2 / bytes of a token's keys and values)
    context   min(cache, longest context of the model)

`load` and the engine apply the same rules (api.py, devices/placement.py, engine/engine.py). Not counted are the
activations of a forward.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from polyphi.devices import placement
from polyphi.engine.cache import BLOCK, default_blocks, token_bytes
from polyphi.engine.capacity import MemoryReport
from polyphi.engine.engine import MAX_NUM_SEQS
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.quantization import quantize

STORED = torch.bfloat16
"""The dtype of the published weights."""
MINI = ModelConfig(vision=None, audio=None, adapters={})
MODELS: Mapping[str, ModelConfig] = {
    "microsoft/Phi-4-mini-instruct": MINI,
    "microsoft/Phi-4-multimodal-instruct": ModelConfig(),
}
"""Hub ids and configurations."""
SCHEMES = (None, "int8", "int8-all", "int4", "int4-all")
"""Values of `--quant`; bf16 has the sizes of None."""


@dataclass(frozen=True)
class Fit:
    """A model on a device with a `--quant`: the `dtype` of what isn't quantized, bytes of `weights`, bytes `free` for
    them, and the tokens of `context` that fit beside them (0: the weights don't fit) with `token_bytes` each."""

    model: str
    device: str
    quant: str | None
    dtype: str
    parameters: int
    weights: int
    free: int
    context: int
    token_bytes: int


def fits(
    device: torch.device, free: int, models: Mapping[str, ModelConfig] = MODELS
) -> Iterator[Fit]:
    """Yield a row for every published model on a device with every `--quant` that differs there."""
    for name, config in models.items():
        with torch.device("meta"):
            model = PhiModel(config)
        for scheme in SCHEMES:
            if config.adapters or not (scheme or "").endswith("-all"):
                yield fit(name, model, scheme, device, free)


def fit(name: str, model: PhiModel, scheme: str | None, device: torch.device, free: int) -> Fit:
    """The row of `fits` for an unquantized model on the meta device."""
    parameters = sum(p.numel() for p in model.parameters())
    dtype = placement.choose_dtype({STORED: parameters}, device, free, scheme) or STORED
    weights = parameters * dtype.itemsize
    if scheme is not None:
        weights -= sum(quantize.saving(part) for part in quantize.parts(model, scheme))
        if device.type != "cpu":
            weights += model.decoder.embed_tokens.weight.numel() * dtype.itemsize
    config = model.config.decoder
    each = token_bytes(config, dtype)
    capacity = BLOCK * default_blocks(config, each, max(0, free - weights), MAX_NUM_SEQS)
    report = MemoryReport(
        str(device), str(dtype), weights, free, each, config.max_position_embeddings, capacity
    )
    return Fit(
        model=name,
        device=str(device),
        quant=scheme,
        dtype=str(dtype).removeprefix("torch."),
        parameters=parameters,
        weights=weights,
        free=free,
        context=report.tokens,
        token_bytes=each,
    )
