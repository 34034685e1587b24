"""How much memory there is, on the machine, in its container or on a GPU.

>>> free_memory(torch.device("cpu"))             # bytes
"""

from pathlib import Path

import psutil
import torch

from polyphi.model.multimodal import PhiModel
from polyphi.quantization.quantize import in_memory

CGROUP = Path("/sys/fs/cgroup")


class OutOfMemory(RuntimeError):
    """A request needed more memory than there was; others go on."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory couldn't be had (torch has no type of its own for it on a CPU)."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def free_memory(place: torch.device) -> int:
    """Bytes that can be had on a device now."""
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    if place.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return int(min(psutil.virtual_memory().available, _left_to_the_group(CGROUP)))


def _left_to_the_group(folder: Path) -> float:
    """Bytes that a container may still take (control groups, version 2), pages of files not counted: they make way."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        said = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if limit == "max" else float(int(limit) - used + int(said.get("file", 0)))


def beside(model: PhiModel) -> int:
    """Bytes that can be had beside a model. Weights that are mapped from their file take none until they are read, and
    then they do."""
    place = model.decoder.device
    if place.type != "cpu":
        return free_memory(place)
    process = psutil.Process().memory_info()
    own = process.rss - getattr(process, "shared", 0)
    return max(0, free_memory(place) - max(0, in_memory(model) - own))
