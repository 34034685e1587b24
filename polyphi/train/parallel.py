"""Training on several processes, with the results of one. Each process has its share of a step's samples; gradients are
summed over all processes.

Replicas (every stage): each process has the whole model; after the backward pass gradients are summed in one
collective. A process without images or audio contributes zeros for the tensors that it didn't use.

Shards (stages of the language model): the decoder's layers are sharded into equal parts (FSDP2) and gathered layer by
layer; the embedding, the last norm and all other parts are replicas. Groups of shards are replicas of each other::

    6 processes, shard = 3     replicate: 0 |  0  1  2        each row holds the layers once, in three parts;
                                          1 |  3  4  5        columns hold the same part

Context (long rows of text): a pack's tokens are divided among a group of processes; in each layer a process gathers the
keys and values of the whole pack, and its queries attend to those up to their own positions::

    tokens   0 1 2 3 | 4 5 6 7        process 0 has queries 0-3 and attends to keys 0-3,
                                      process 1 has queries 4-7 and attends to keys 0-7
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from polyphi.batch import Batch
from polyphi.model.decoder import Decoder
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.attention import ragged_attention
from polyphi.runtime import distributed


def shard(model: PhiModel, precision: str, parts: int) -> None:
    """Shard the decoder's layers into `parts`, in place; parameter objects from before are invalid afterwards. Under
    "bf16" layers are gathered in bfloat16, and gradients are summed in float32. Raises ValueError where adapters are
    trainable."""
    decoder = model.decoder
    if adapters := [n for n, p in decoder.named_parameters() if ".lora." in n and p.requires_grad]:
        # A process whose samples all use another adapter has no gradient for this one; the others would wait for it.
        raise ValueError(
            f"sharding needs a stage that trains the language model alone, found trainable {adapters[0]}; "
            "train with --fsdp 1"
        )
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    mesh = distributed.mesh(next(model.parameters()).device.type, parts)
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    whole = {p for n, p in decoder.named_parameters() if not n.startswith("layers.")}
    fully_shard(decoder, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            # Sums, not means: the loop divides by the global count, and gloo has only plain sums.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one; all processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace the gradient of each replicated tensor by its sum over processes, in one collective. A tensor that no
    process used gets no gradient, so that the optimizer skips it. The gradients of shards are sums already."""
    if distributed.world() == 1:
        return
    replicas = [p for p in parameters if not isinstance(p, DTensor)]
    if not replicas:
        return
    used = torch.tensor(
        [p.grad is not None for p in replicas], dtype=torch.float32, device=replicas[0].device
    )
    parts = [
        torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in replicas
    ]
    flat = distributed.total(torch.cat([used, *parts]))
    used, *parts = flat.split([len(replicas), *(p.numel() for p in replicas)])
    for p, part, used_anywhere in zip(replicas, parts, used.tolist(), strict=True):
        p.grad = part.view_as(p).clone() if used_anywhere else None


def clip_gradients(parameters: Sequence[Tensor], scale: float, max_norm: float) -> Tensor:
    """Multiply all gradients by `scale`, then clip them to the global norm `max_norm`; returns the norm before
    clipping."""
    with_grad = [p for p in parameters if p.grad is not None]
    tensors = [local(p.grad) for p in with_grad if p.grad is not None]
    torch._foreach_mul_(tensors, scale)
    squares = torch.stack(torch._foreach_norm(tensors)).square()
    # Every process has the full replicated tensors, and a part of each sharded one; of that part there are as many
    # copies as groups of shards.
    copies = [p.device_mesh.size(0) if isinstance(p, DTensor) else 0 for p in with_grad]
    sharded = torch.tensor(copies, device=squares.device)
    square = squares[sharded == 0].sum()
    if any(copies):
        square = square + distributed.total((squares / sharded)[sharded > 0].sum())
    norm = square.sqrt()
    torch._foreach_mul_(tensors, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def has_gradient(tensor: nn.Parameter | Tensor) -> bool:
    """Whether the tensor has a gradient in this process that isn't zero."""
    return tensor.grad is not None and bool(local(tensor.grad).any())


def context_parallel(model: PhiModel, processes: int) -> "PhiModel | Context":
    """The model, or, for more than one process, a `Context` that divides packs among groups of `processes` neighbouring
    processes."""
    if processes == 1:
        return model
    return Context(model, distributed.groups(next(model.parameters()).device.type, processes))


class Context:
    """A language model whose packs are divided among the processes of `mesh`. It is called like the model, with a batch
    that `part` returned, and returns the hidden states of that part."""

    def __init__(self, model: PhiModel, mesh: DeviceMesh) -> None:
        self.model, self.mesh = model, mesh
        self._starts: list[int] = []
        self._edges: list[int] = []

    @property
    def decoder(self) -> Decoder:
        return self.model.decoder

    @property
    def units(self) -> dict[str, str]:
        return self.model.units

    def part(self, batch: Batch) -> Batch:
        """This process's tokens of a pack. Raises ValueError where the pack has media (their encoders need all of their
        tokens) or fewer tokens than there are processes."""
        if batch.inputs:
            items = ", ".join(f"{len(i.layouts)} of {n}" for n, i in batch.inputs.items())
            raise ValueError(
                f"context parallelism needs rows of text, found inputs ({items}) in a pack: leave --context-parallel "
                "at 1"
            )
        rank, parts = self.mesh.get_local_rank(), self.mesh.size()
        if len(batch) < parts:
            raise ValueError(
                f"a pack needs at least one token for each of {parts} processes, found {len(batch)} tokens"
            )
        self._edges = [len(batch) * i // parts for i in range(parts + 1)]
        start, end = self._edges[rank : rank + 2]
        spans = list(pairwise(batch.cu_seqlens))
        overlapping = [s for s, (a, b) in enumerate(spans) if a < end and b > start]
        self._starts = [spans[s][0] for s in overlapping]
        supervised = batch.supervised
        if supervised is not None:
            supervised = supervised[(supervised >= start) & (supervised < end)] - start
        return replace(
            batch,
            ids=batch.ids[start:end],
            positions=batch.positions[start:end],
            cu_seqlens=(0, *(min(spans[s][1], end) - start for s in overlapping)),
            seq_lens=tuple(batch.seq_lens[s] for s in overlapping),
            adapters=tuple(batch.adapters[s] for s in overlapping),
            labels=None if batch.labels is None else batch.labels[start:end],
            supervised=supervised,
        )

    def __call__(self, batch: Batch) -> Float[Tensor, "T D"]:
        hidden: Tensor = self.model(batch, self)
        return hidden

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H d"],
        k: Float[Tensor, "T K d"],
        v: Float[Tensor, "T K d"],
        cu_seqlens: Sequence[int],
    ) -> Float[Tensor, "T H d"]:
        """Attention by the cache protocol of `model/attention.py`; the earlier tokens of a sequence are gathered from
        the other processes."""
        whole = self._gather(torch.stack([k, v], dim=1))
        lengths = [end - start for start, end in pairwise(cu_seqlens)]
        keys, values, end = [], [], self._edges[self.mesh.get_local_rank()]
        for start, length in zip(self._starts, lengths, strict=True):
            end += length
            keys.append(whole[start:end, 0])
            values.append(whole[start:end, 1])
        return ragged_attention(q, keys, values, lengths)

    def _gather(self, part: Float[Tensor, "T 2 K d"]) -> Float[Tensor, "W 2 K d"]:
        """The rows of all processes, in order; the gradient of a row is summed over the processes that used it."""
        sizes = [b - a for a, b in pairwise(self._edges)]
        longest = max(sizes)
        padded = F.pad(part, (0, 0, 0, 0, 0, 0, 0, longest - len(part)))
        spread = DTensor.from_local(padded, self.mesh, [Shard(0)], run_check=False)
        every = spread.redistribute(self.mesh, [Replicate()])
        local = every.to_local(grad_placements=[Partial()])
        parts = zip(local.split(longest), sizes, strict=True)
        return torch.cat([rows[:size] for rows, size in parts])
