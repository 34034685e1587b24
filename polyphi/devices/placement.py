"""The device and dtype of a model, and the tokens of context that fit in memory.

>>> device = choose("auto")                      # CUDA if available, else Apple's MPS, else the CPU
>>> print(load("path/or/hub-id").memory)
cpu with 2 threads, bfloat16: 11.1 GB of weights leave 5.1 GB of 16.2 GB free, up to 38,536 of 131,072 tokens of context

No decision depends on a processor's name: devices/precision.py says whether a device is fast in a 16-bit dtype.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat

import torch

from polyphi import kernels
from polyphi.devices import precision
from polyphi.devices.memory import free_memory
from polyphi.engine.cache import token_bytes
from polyphi.kernels import bf16
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.memory import model_bytes
from polyphi.runtime.files import size_text


def choose(device: str | torch.device) -> torch.device:
    """The device of a name. Raises ValueError for one that isn't available."""
    if device == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
        return torch.device(best)
    try:
        result = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or mps, found {device!r}") from None
    for backend, is_available in (("cuda", torch.cuda.is_available), ("mps", _has_mps)):
        if result.type == backend and not is_available():
            raise ValueError(f"this torch sees no {backend} device; expected one for {device!r}")
    return result


def choose_dtype(
    stored: Mapping[torch.dtype, int],
    device: torch.device,
    free: int,
    quant: str | None = None,
) -> torch.dtype | None:
    """The dtype to cast weights to for inference where none is requested: None, as they are stored (`stored` counts
    parameters by dtype), or float32 where most have a 16-bit dtype that the device is slow in (`precision.is_fast`) and
    `free` bytes hold them in float32. A model computes in one dtype: weights of several dtypes, such as a float32
    adapter of a bfloat16 decoder, get that of most of them.

    On a CPU without bfloat16 instructions our kernels multiply weights stored in bfloat16 as fast as float32 ones
    (kernels/bf16.py), so they stay in bfloat16. The unquantized weights of a quantized model (`quant`) are bfloat16.
    POLYPHI_PRECISION replaces this rule; weights stored in float32 stay in float32.
    """
    if quant:
        return torch.bfloat16
    main = max(stored, key=lambda dtype: stored[dtype], default=torch.float32)
    unchanged = None if len(stored) <= 1 else main
    if main.itemsize >= 4:
        return unchanged
    if (pinned := precision.pinned()) is not None:
        dtype = precision.DTYPES[pinned]
        return unchanged if dtype == main else dtype
    if (
        main == torch.bfloat16
        and device.type == "cpu"
        and kernels.missing() is None
        and bf16.needed()
    ):
        return unchanged
    if precision.is_fast(main, device):
        return unchanged
    slow_but_small = device.type == "cpu" and size(stored, torch.float32) > free
    return unchanged if slow_but_small else torch.float32


def dtype_for(model: PhiModel, quant: str | None) -> torch.dtype | None:
    """`choose_dtype` for a model in memory."""
    stored: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        stored[parameter.dtype] += parameter.numel()
    device = model.decoder.device
    return choose_dtype(stored, device, free_memory(device), quant=quant)


def products(config: ModelConfig) -> tuple[precision.MatrixProducts, ...]:
    """The matrix products of a model with all weights trainable; builds one layer of each part only."""
    one_layer, layers = config.in_one_layer()
    with torch.device("meta"):
        model = PhiModel(one_layer)
    weights: list[tuple[torch.Size, bool]] = []
    for name, parameter in model.named_parameters():
        times = next((n for prefix, n in layers.items() if name.startswith(prefix)), 1)
        weights += repeat((parameter.shape, True), times)
    return precision.products(weights)


def size(stored: Mapping[torch.dtype, int], dtype: torch.dtype | None) -> int:
    """Bytes of weights, cast to `dtype` unless it is None."""
    return sum(count * (dtype or own).itemsize for own, count in stored.items())


def check_fits(weights: int, free: int, device: torch.device) -> None:
    """Raises ValueError if `weights` bytes don't fit into `free` ones."""
    if weights > free:
        raise ValueError(
            f"the weights take {size_text(weights)}, and {device} has {size_text(free)} free; free some memory, or "
            "choose another device or a smaller dtype"
        )


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


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
