"""Data parallelism: every process has the whole model, its share of a step's samples, and the sum of all gradients.

Ranks never wait for each other's modality: a rank without pictures or clips contributes zeros for the tensors it didn't touch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from polyphi import dist


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each gradient by its sum over processes, in one collective."""
    if dist.world() == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = dist.total(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p).clone()
