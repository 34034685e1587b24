"""The tokens of context that fit in memory beside a model.

>>> print(load("path/or/hub-id").memory)
cpu with 2 threads, bfloat16: 11.1 GB of weights leave 5.1 GB of 16.2 GB free, up to 38,536 of 131,072 tokens of context
"""

from dataclasses import dataclass

import torch

import polyphi.kernels as kernels
from polyphi.engine.cache import token_bytes
from polyphi.kernels import bf16
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.memory import model_bytes
from polyphi.runtime.files import size_text


@dataclass(frozen=True)
class MemoryReport:
    """A loaded model's memory: bytes of its `weights`, bytes `free` before it was loaded, bytes of keys and values
    `per_token`, the model's longest `context`, and the engine's `capacity` for keys and values in tokens."""

    device: str
    dtype: str
    weights: int
    free: int
    per_token: int
    context: int
    capacity: int

    @property
    def tokens(self) -> int:
        """Tokens of context that fit in memory; activations of a forward are not counted."""
        fitting = (self.free - self.weights) // self.per_token
        return max(0, min(self.context, self.capacity, fitting))

    def __str__(self) -> str:
        left = max(0, self.free - self.weights)
        return (
            f"{self.device}, {self.dtype}: {size_text(self.weights)} of weights leave {size_text(left)} of "
            f"{size_text(self.free)} free, up to {self.tokens:,} of {self.context:,} tokens of context"
        )


def memory_report(
    model: PhiModel, free: int, device: torch.device, capacity: int, kv: str | None = None
) -> MemoryReport:
    """The report of a loaded model; `free`: bytes before it was loaded; `capacity` and `kv` are the engine's."""
    dtype, config = model.decoder.dtype, model.config.decoder
    count = torch.get_num_threads()
    threads = f" with {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    return MemoryReport(
        device=f"{device}{threads}",
        dtype=str(dtype).removeprefix("torch.") + _arithmetic(dtype, model.quant, device),
        weights=model_bytes(model),
        free=free,
        per_token=token_bytes(config, dtype, kv),
        context=config.max_position_embeddings,
        capacity=capacity,
    )


def _arithmetic(dtype: torch.dtype, quant: str | None, device: torch.device) -> str:
    """A model's quantization, and on a CPU the kernels that run it, or the reason why ours don't."""
    label = f" and {quant}" if quant else ""
    why = kernels.missing()
    if device.type != "cpu":
        return label
    if quant in (None, "bf16"):
        ours = dtype == torch.bfloat16 and bf16.needed() and why is None
        return f"{label}, multiplied in float32 by {kernels.path()}" if ours else label
    return f"{label} by {kernels.path()}" if why is None else f"{label} by torch ({why})"
