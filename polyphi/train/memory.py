"""Activations, the largest part of a step's memory: keep them, recompute them in the backward pass, or offload them to
the CPU's memory. The results are the same."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from polyphi.model.multimodal import PhiModel
from polyphi.train.options import Activations


def blocks(model: PhiModel) -> Iterator[nn.Module]:
    """The repeated blocks of decoder and encoders: the modules in their lists."""
    for part in (model.decoder, *(tower.encoder for tower in model.towers.values())):
        for child in part.children():
            if isinstance(child, nn.ModuleList):
                yield from child


@contextmanager
def activations(model: PhiModel, choice: Activations) -> Iterator[None]:
    """A context in which `model` keeps its activations, or only those between blocks ("recompute", a third more
    arithmetic), or stores all of them in the CPU's memory ("offload", for GPUs)."""
    if choice == "recompute":
        for block in blocks(model):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    offload = torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())
    with offload if choice == "offload" else nullcontext():
        try:
            yield
        finally:
            if choice == "recompute":
                for block in blocks(model):
                    del block.forward  # restores the class's method
