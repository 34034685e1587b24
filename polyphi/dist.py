"""Which process am I, and sums over all of them. Without torchrun everything is the only process, and sums are what they were.

`torchrun --nproc-per-node 2 -m polyphi.cli train ...` sets the variables that `start` reads.
"""

import os

import torch
import torch.distributed as distributed
from torch import Tensor


def start() -> None:
    """Join the process group that torchrun announces, if any: NCCL where there are GPUs, gloo elsewhere."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not distributed.is_initialized():
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
