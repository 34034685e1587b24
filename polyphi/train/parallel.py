"""Many processes, the numbers of one. Each has its share of a step's samples; gradients are summed over all.

Replicas (every stage): each process has the whole model; after the backward pass gradients are summed in one
collective. Ranks never wait for each other's modality: one without pictures or clips contributes zeros for the
tensors it didn't touch.

Shards (stages of the language model): the decoder's layers are cut into equal parts (FSDP2) and gathered layer by
layer; the embedding, the last norm and all other parts stay replicas. Groups of shards are replicas of each other::

    6 processes, shard = 3     replicate: 0 |  0  1  2        each row holds the layers once, in three parts;
                                          1 |  3  4  5        columns hold the same part
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from polyphi import dist
from polyphi.model.multimodal import PhiModel


def shard(model: PhiModel, precision: str, parts: int) -> None:
    """Cut the decoder's layers into `parts`, in place; parameters made before are void. Under "bf16" layers are
    gathered in bfloat16, and gradients are summed in float32. Raises ValueError where adapters learn."""
    decoder = model.decoder
    if adapters := [n for n, p in decoder.named_parameters() if ".lora." in n and p.requires_grad]:
        # A process whose samples all go by another adapter has no gradient to bring; the others would wait for it.
        raise ValueError(
            f"sharding is for stages of the language model; {adapters[0]} and others learn here: train replicas"
        )
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    mesh = dist.mesh(next(model.parameters()).device.type, parts)
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    whole = {p for n, p in decoder.named_parameters() if not n.startswith("layers.")}
    fully_shard(decoder, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            # Sums, not means: the loop divides by the global count. A plain sum is also what gloo has.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor cut as `model` is; every process must ask."""
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each replica's gradient by its sum over processes, in one collective; a tensor that no process touched
    stays without one, so that the optimiser leaves it alone. Shards have their sums already."""
    if dist.world() == 1:
        return
    replicas = [p for p in parameters if not isinstance(p, DTensor)]
    if not replicas:
        return
    touched = torch.tensor(
        [p.grad is not None for p in replicas], dtype=torch.float32, device=replicas[0].device
    )
    parts = [
        torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in replicas
    ]
    flat = dist.total(torch.cat([touched, *parts]))
    touched, *parts = flat.split([len(replicas), *(p.numel() for p in replicas)])
    for p, part, anyone in zip(replicas, parts, touched.tolist(), strict=True):
        p.grad = part.view_as(p).clone() if anyone else None


def clip_gradients(parameters: Sequence[Tensor], scale: float, largest: float) -> Tensor:
    """Multiply all gradients by `scale`, and then down to the global norm `largest`; returns the norm before the
    second."""
    learning = [p for p in parameters if p.grad is not None]
    tensors = [local(p.grad) for p in learning if p.grad is not None]
    torch._foreach_mul_(tensors, scale)
    squares = torch.stack(torch._foreach_norm(tensors)).square()
    # Every process has all of a replica, and a part of a shard, of which there are as many copies as replicas.
    copies = [p.device_mesh.size(0) if isinstance(p, DTensor) else 0 for p in learning]
    sharded = torch.tensor(copies, device=squares.device)
    square = squares[sharded == 0].sum()
    if any(copies):
        square = square + dist.total((squares / sharded)[sharded > 0].sum())
    norm = square.sqrt()
    torch._foreach_mul_(tensors, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


def has_gradient(tensor: nn.Parameter | Tensor) -> bool:
    """Whether this process holds a gradient of it that isn't zero."""
    return tensor.grad is not None and bool(local(tensor.grad).any())
