"""Which process am I, and sums over all of them. Without torchrun everything is the only process, and sums are what
they were.

`torchrun --nproc-per-node 2 -m polyphi.cli train ...` sets the variables that `start` reads.
"""

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


def start() -> None:
    """Join the process group that torchrun announces, if any: NCCL where there are GPUs, gloo elsewhere. Calling it
    again changes nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if world() > 1:
        distributed.all_reduce(value)
    return value


def anyone(*flags: bool, device: torch.device | str = "cpu") -> list[bool]:
    """For each flag, whether it is up in any process: what must be decided by all is decided alike."""
    if world() == 1:
        return list(flags)
    return [
        count > 0
        for count in total(torch.tensor(flags, dtype=torch.float32, device=device)).tolist()
    ]


def gathered(value: Any) -> list[Any]:
    """What every process says, in order of their numbers. Any picklable value; it goes by the hosts' network."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    distributed.all_gather_object(found, value, group=_hosts())
    return found


@cache
def _hosts() -> distributed.ProcessGroup | None:
    """A group for values that lie on no GPU; None: the one there is."""
    return None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


def wait() -> None:
    """Until every process is here."""
    if world() > 1:
        distributed.barrier()


def mesh(device: str) -> DeviceMesh:
    """All processes in a row. Raises ValueError where there is no process group."""
    if not distributed.is_initialized():
        raise ValueError(
            "sharding needs a process group; start with torchrun, even for one process"
        )
    return init_device_mesh(device, (world(),))
