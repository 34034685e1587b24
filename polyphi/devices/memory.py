"""Free memory of the machine, its container or a GPU, and bytes of tensors.

>>> free_memory(torch.device("cpu"))
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import psutil
import torch
from torch import Tensor, nn

from polyphi.devices import cgroup


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


@runtime_checkable
class HasTensors(Protocol):
    """A quantized weight."""

    def tensors(self) -> Iterable[Tensor]: ...


def other_tensors(model: nn.Module) -> Iterator[Tensor]:
    """The tensors of a model that are neither parameters nor buffers: quantized weights, and weights in the CPU's
    layout."""
    for attributes in map(vars, model.modules()):
        if isinstance(weight := attributes.get("weight"), Tensor):
            yield weight
        for name in ("kernel", "head", "down", "up"):
            if isinstance(weight := attributes.get(name), HasTensors):
                yield from weight.tensors()


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, also in oneDNN's layout."""
    return torch.ops.mkldnn._nbytes(tensor) if tensor.is_mkldnn else tensor.nbytes
