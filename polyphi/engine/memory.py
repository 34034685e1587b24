"""Free memory of the machine, its container or a GPU.

>>> free_memory(torch.device("cpu"))             # bytes
"""

from pathlib import Path

import psutil
import torch

from polyphi.model.multimodal import PhiModel
from polyphi.quantization.quantize import in_memory

CGROUP = Path("/sys/fs/cgroup")


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
    return int(min(psutil.virtual_memory().available, _free_in_cgroup(CGROUP)))


def _free_in_cgroup(folder: Path) -> float:
    """Bytes that a container may still allocate (control groups, version 2). The page cache counts as free, since it is
    reclaimed."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if limit == "max" else float(int(limit) - used + int(stat.get("file", 0)))


def free_beside(model: PhiModel) -> int:
    """Free bytes once all weights of a model are in memory: weights that are mapped from their file take none until
    they are read."""
    device = model.decoder.device
    if device.type != "cpu":
        return free_memory(device)
    process = psutil.Process().memory_info()
    own = process.rss - getattr(process, "shared", 0)
    return max(0, free_memory(device) - max(0, in_memory(model) - own))
