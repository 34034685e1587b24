"""The process group: this process's rank, and collectives over all processes. Without torchrun there is a single
process, and collectives return their inputs.

`torchrun --nproc-per-node 2 -m polyphi.cli train ...` sets the variables that `start` reads.
"""

import atexit
import os
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")


def start() -> None:
    """Join torchrun's process group, if there is one: NCCL for GPUs, gloo for CPUs. Further calls do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        )
        # gloo's threads abort the process if they release a tensor while Python exits, which hides its error.
        atexit.register(_leave)


def device() -> torch.device:
    """The device that this process trains on: its GPU (after `start`), or the CPU where torch sees no GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _leave() -> None:
    """Destroy the process group, and clear the caches of its subgroups and meshes."""
    for cached in (_gloo, groups, cpu_mesh):
        cached.cache_clear()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    """The index of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """The number of processes of a distributed run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if world() > 1:
        distributed.all_reduce(value)
    return value


def rows(value: Tensor) -> tuple[Tensor, int]:
    """The rows of a tensor of all processes, by rank, and the index of this process's first one. Processes may have
    different numbers of rows."""
    if world() == 1:
        return value, 0
    counts = all_gather(len(value))
    padded = value.new_zeros(max(counts), *value.shape[1:])
    padded[: len(value)] = value
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    every = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return every, sum(counts[: rank()])


def any_rank(*flags: bool, device: torch.device | str = "cpu") -> list[bool]:
    """Return whether each flag is set in any process, so that all processes decide alike."""
    if world() == 1:
        return list(flags)
    return [
        count > 0
        for count in total(torch.tensor(flags, dtype=torch.float32, device=device)).tolist()
    ]


def wait(group: ProcessGroup | None = None) -> None:
    """Barrier over all processes. A separate `group` doesn't interfere with the collectives of other threads."""
    if world() > 1:
        distributed.barrier(group)


def all_gather(value: T) -> list[T]:
    """The small, picklable `value` of each process, by rank."""
    if world() == 1:
        return [value]
    if distributed.get_backend() == "fake":  # a dry run: the others are like this one
        return [value] * world()
    values: list[Any] = [None] * world()
    # Not the checkpoints' group, which another thread may use at the same time.
    distributed.all_gather_object(values, value, group=_gloo("values"))
    return values


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, in all of them; only the first one calls it. The value is small and
    picklable."""
    return cast(T, all_gather(make() if rank() == 0 else None)[0])


def cpu_group() -> ProcessGroup | None:
    """A gloo group of all processes; all of them must make the first call together."""
    return _gloo("files") if world() > 1 else None


@cache
def _gloo(purpose: str) -> ProcessGroup:
    return distributed.new_group(backend="gloo")


def mesh(device: str, shard: int) -> DeviceMesh:
    """The mesh of all processes as replicas of `shard` shards. Raises ValueError without a process group, and if the
    number of processes isn't divisible."""
    if not distributed.is_initialized():
        raise ValueError(
            "sharding needs a process group; start with torchrun, even for one process"
        )
    if world() % shard:
        raise ValueError(
            f"the number of processes must be a multiple of {shard} shards, found {world()}"
        )
    return init_device_mesh(
        device, (world() // shard, shard), mesh_dim_names=("replicate", "shard")
    )


@cache
def groups(device: str, size: int) -> DeviceMesh:
    """The group of `size` neighbours that has this process, as a mesh of one axis."""
    shape = (world() // size, size)
    return init_device_mesh(device, shape, mesh_dim_names=("group", "member"))["member"]


@cache
def cpu_mesh(like: DeviceMesh) -> DeviceMesh:
    """The mesh `like` for tensors on the CPU."""
    if like.device_type == "cpu":
        return like
    return init_device_mesh("cpu", tuple(like.shape), mesh_dim_names=like.mesh_dim_names)
