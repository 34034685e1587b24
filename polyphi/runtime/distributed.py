"""Which process am I, and sums over all of them. Without torchrun everything is the only process, and sums are what
they were.

`torchrun --nproc-per-node 2 -m polyphi.cli train ...` sets the variables that `start` reads.
"""

import atexit
import os
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")


def start() -> None:
    """Join the process group that torchrun announces, if any: NCCL where there are GPUs, gloo elsewhere. Calling it
    again changes nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        )
        # Threads of gloo that let go of a tensor while Python is ending abort the process, whatever it had to say.
        atexit.register(_leave)


def _leave() -> None:
    """End the process group and all that was made of it."""
    for made in (_gloo, groups, cpu_mesh):
        made.cache_clear()
    if distributed.is_initialized():
        distributed.destroy_process_group()


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


def wait(group: ProcessGroup | None = None) -> None:
    """Until every process is here. A `group` of its own doesn't meet the collectives of other threads."""
    if world() > 1:
        distributed.barrier(group)


def everyones(value: T) -> list[T]:
    """A small value (anything that pickles) of each process, in their order."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    # Not the checkpoints' group, whose thread may be talking meanwhile.
    distributed.all_gather_object(found, value, group=_gloo("values"))
    return found


def cpu_group() -> ProcessGroup | None:
    """A group of all processes that talks through the CPU's memory; the first call must be made by all together."""
    return _gloo("files") if world() > 1 else None


@cache
def _gloo(purpose: str) -> ProcessGroup:
    return distributed.new_group(backend="gloo")


def mesh(device: str, shard: int) -> DeviceMesh:
    """All processes as replicas of `shard` shards. Raises ValueError where there is no process group, or the processes
    don't divide."""
    if not distributed.is_initialized():
        raise ValueError(
            "sharding needs a process group; start with torchrun, even for one process"
        )
    if world() % shard:
        raise ValueError(f"{world()} processes can't be cut into groups of {shard} shards")
    return init_device_mesh(
        device, (world() // shard, shard), mesh_dim_names=("replicate", "shard")
    )


@cache
def groups(device: str, size: int) -> DeviceMesh:
    """This process's group of `size` neighbours, as a mesh of one axis."""
    shape = (world() // size, size)
    return init_device_mesh(device, shape, mesh_dim_names=("group", "member"))["member"]


@cache
def cpu_mesh(like: DeviceMesh) -> DeviceMesh:
    """The same mesh over the CPU's memory."""
    if like.device_type == "cpu":
        return like
    return init_device_mesh("cpu", tuple(like.shape), mesh_dim_names=like.mesh_dim_names)
