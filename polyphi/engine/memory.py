"""Free memory of the machine, its container or a GPU.

>>> free_memory(torch.device("cpu"))             # bytes
"""

import psutil
import torch

from polyphi.model.multimodal import PhiModel
from polyphi.quantization.quantize import in_memory
from polyphi.runtime import cgroup


class OutOfMemory(RuntimeError):
    """A request needed more memory than was free; other requests continue."""


def ran_out(error: BaseException) -> bool:
    """Whether an error reports a failed allocation (on a CPU torch has no dedicated type for it)."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def free_memory(device: torch.device) -> int:
    """Free bytes on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    available, limit = psutil.virtual_memory().available, cgroup.memory()
    return available if limit is None else min(available, limit.free)


def free_beside(model: PhiModel) -> int:
    """Free bytes once all weights of a model are in memory: weights that are mapped from their file take none until
    they are read."""
    device = model.decoder.device
    if device.type != "cpu":
        return free_memory(device)
    process = psutil.Process().memory_info()
    own = process.rss - getattr(process, "shared", 0)
    return max(0, free_memory(device) - max(0, in_memory(model) - own))
