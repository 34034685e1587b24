"""The device and dtype of a model.

>>> device = choose("auto")                      # CUDA if available, else Apple's MPS, else the CPU

No decision depends on a processor's name: devices/precision.py says whether a device is fast in a 16-bit dtype.
"""

from collections.abc import Mapping

import torch

import polyphi.kernels as kernels
from polyphi.devices import precision
from polyphi.kernels import bf16
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


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
