"""Where a model runs, in which type, and what fits there.

>>> place = choose("auto")                       # CUDA where there is one, else Apple's MPS, else the CPU
>>> print(load("path/or/hub-id").room)
cpu with 2 threads, bfloat16: 11.1 GB of weights leave 5.1 GB of 16.2 GB free, up to 38,536 of 131,072 tokens of context

Nothing here knows a processor by its name: whether a CPU is any good at bfloat16 is measured, once.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

from polyphi import kernels
from polyphi.engine.cache import token_bytes
from polyphi.model import quantize
from polyphi.model.multimodal import PhiModel

SLOWER = 1.5
"""A 16-bit type this many times slower than float32 is given up for it [ours]. With the instructions it takes about
half of float32's time."""


def choose(device: str | torch.device) -> torch.device:
    """A device by its name. Raises ValueError for one that isn't there."""
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
        return torch.device(found)
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or mps, found {device!r}") from None
    for kind, there in (("cuda", torch.cuda.is_available), ("mps", _has_mps)):
        if place.type == kind and not there():
            raise ValueError(f"this torch sees no {kind} device; expected one for {device!r}")
    return place


def choose_dtype(
    stored: Mapping[torch.dtype, int], place: torch.device, free: int
) -> torch.dtype | None:
    """The type to cast weights to where none was asked for: None, as they are stored (numbers of parameters by type),
    or float32 where most are of a 16-bit type that the device hasn't, or is slower with and has `free` bytes for
    float32."""
    main = max(stored, key=lambda kind: stored[kind], default=torch.float32)
    if main.itemsize >= 4 or _good_at(main, place):
        return None
    slow_but_small = place.type == "cpu" and size(stored, torch.float32) > free
    return None if slow_but_small else torch.float32


def size(stored: Mapping[torch.dtype, int], dtype: torch.dtype | None) -> int:
    """Bytes of weights when they are cast to `dtype`, or not at all."""
    return sum(count * (dtype or kind).itemsize for kind, count in stored.items())


def check_fits(weights: int, free: int, place: torch.device) -> None:
    """Raises ValueError if `weights` bytes don't fit into `free` ones."""
    if weights > free:
        raise ValueError(
            f"the weights take {_bytes(weights)}, and {place} has {_bytes(free)} free; free some memory, or choose "
            "another device or a smaller dtype"
        )


@dataclass(frozen=True)
class Room:
    """What a model takes and leaves: bytes of its `weights`, bytes `free` before they came, bytes of keys and values
    `per_token`, the longest `context` of the model, and the `capacity` in tokens that the engine set aside."""

    place: str
    kind: str
    weights: int
    free: int
    per_token: int
    context: int
    capacity: int

    @property
    def tokens(self) -> int:
        """Tokens of context for which there is memory; what a forward needs beside them comes off it."""
        room = (self.free - self.weights) // self.per_token
        return max(0, min(self.context, self.capacity, room))

    def __str__(self) -> str:
        left = max(0, self.free - self.weights)
        return (
            f"{self.place}, {self.kind}: {_bytes(self.weights)} of weights leave {_bytes(left)} of "
            f"{_bytes(self.free)} free, up to {self.tokens:,} of {self.context:,} tokens of context"
        )


def room(model: PhiModel, free: int, place: torch.device, capacity: int) -> Room:
    """What a loaded model takes of the bytes that were free before; `capacity` is the engine's."""
    kind, config = model.decoder.dtype, model.config.decoder
    count = torch.get_num_threads()
    threads = f" with {count} thread{'s' if count > 1 else ''}" if place.type == "cpu" else ""
    return Room(
        place=f"{place}{threads}",
        kind=str(kind).removeprefix("torch.") + _quantised(model.quant, place),
        weights=quantize.in_memory(model),
        free=free,
        per_token=token_bytes(config, kind),
        context=config.max_position_embeddings,
        capacity=capacity,
    )


def _quantised(quant: str | None, place: torch.device) -> str:
    """How a model is quantised, and on a CPU what multiplies it, or why nothing of ours does."""
    if quant in (None, "bf16") or place.type != "cpu":
        return f" and {quant}" if quant else ""
    why = kernels.missing()
    return f" and {quant} by {kernels.path()}" if why is None else f" and {quant} by torch ({why})"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _good_at(dtype: torch.dtype, place: torch.device) -> bool:
    """Whether a device has a type of 16 bits, and loses nothing by it."""
    if place.type == "cpu":
        return slowness(dtype) < SLOWER
    if place.type == "cuda" and dtype == torch.bfloat16:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        one = torch.ones(8, 8, dtype=dtype, device=place)
        return bool((one @ one)[0, 0] == 8)
    except (RuntimeError, TypeError):
        return False


@cache
def slowness(dtype: torch.dtype, width: int = 1024, rows: int = 32, turns: int = 12) -> float:
    """The time of a matrix product in a type over float32's on this CPU: the least of `turns` turns, both sides in
    each, so that a machine that is busy otherwise can't tip it. Some milliseconds, once."""
    pairs = {
        kind: (torch.zeros(rows, width, dtype=kind), torch.zeros(width, width, dtype=kind))
        for kind in (torch.float32, dtype)
    }
    times: dict[torch.dtype, list[float]] = {kind: [] for kind in pairs}
    for _ in range(turns):
        for kind, (rows_of, matrix) in pairs.items():
            start = time.perf_counter()
            rows_of @ matrix.T
            times[kind].append(time.perf_counter() - start)
    return min(times[dtype]) / min(times[torch.float32])
