"""Many processes, the numbers of one. Each has its share of a step's samples; gradients are summed over all.

Replicas (every stage): each process has the whole model; after the backward pass gradients are summed in one
collective. Ranks never wait for each other's modality: one without pictures or clips contributes zeros for the
tensors it didn't touch.

Shards (stages of the language model): the decoder's layers are cut into equal parts (FSDP2) and gathered layer by
layer; the embedding, the last norm and all other parts stay replicas. Groups of shards are replicas of each other::

    6 processes, shard = 3     replicate: 0 |  0  1  2        each row holds the layers once, in three parts;
                                          1 |  3  4  5        columns hold the same part

Context (long rows of text): a pack's tokens are cut over a group of processes; in each layer a process gathers the keys
and values of the whole pack, and its own queries see those up to themselves::

    tokens   0 1 2 3 | 4 5 6 7        process 0 has queries 0-3 and sees keys 0-3,
                                      process 1 has queries 4-7 and sees keys 0-7
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
from polyphi.model.attention import ragged_attention
from polyphi.model.decoder import Decoder
from polyphi.model.multimodal import PhiModel
from polyphi.runtime import distributed


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
    mesh = distributed.mesh(next(model.parameters()).device.type, parts)
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


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each replica's gradient by its sum over processes, in one collective; a tensor that no process touched
    stays without one, so that the optimiser leaves it alone. Shards have their sums already."""
    if distributed.world() == 1:
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
    flat = distributed.total(torch.cat([touched, *parts]))
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
        square = square + distributed.total((squares / sharded)[sharded > 0].sum())
    norm = square.sqrt()
    torch._foreach_mul_(tensors, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


def has_gradient(tensor: nn.Parameter | Tensor) -> bool:
    """Whether this process holds a gradient of it that isn't zero."""
    return tensor.grad is not None and bool(local(tensor.grad).any())


def spread(model: PhiModel, processes: int) -> "PhiModel | Context":
    """The model, or its view of packs that are cut over groups of so many neighbouring processes."""
    if processes == 1:
        return model
    return Context(model, distributed.groups(next(model.parameters()).device.type, processes))


class Context:
    """A language model whose packs are cut over the processes of `mesh`: called as the model is, with the part that
    `part` gave, it returns that part's hidden states."""

    def __init__(self, model: PhiModel, mesh: DeviceMesh) -> None:
        self.model, self.mesh = model, mesh
        self._starts: list[int] = []
        self._edges: list[int] = []

    @property
    def decoder(self) -> Decoder:
        return self.model.decoder

    def part(self, batch: Batch) -> Batch:
        """This process's tokens of a pack. Raises ValueError where the pack shows media (their tokens come from
        encoders that see all of them) or has fewer tokens than there are processes."""
        if batch.images or batch.clips:
            raise ValueError(
                "context parallelism is for rows of text; this pack has pictures or clips: leave --context at 1"
            )
        mine, parts = self.mesh.get_local_rank(), self.mesh.size()
        if len(batch) < parts:
            raise ValueError(f"a pack of {len(batch)} tokens can't be cut over {parts} processes")
        self._edges = [len(batch) * i // parts for i in range(parts + 1)]
        start, end = self._edges[mine : mine + 2]
        spans = list(pairwise(batch.bounds))
        inside = [s for s, (a, b) in enumerate(spans) if a < end and b > start]
        self._starts = [spans[s][0] for s in inside]
        supervised = batch.supervised
        if supervised is not None:
            supervised = supervised[(supervised >= start) & (supervised < end)] - start
        return replace(
            batch,
            ids=batch.ids[start:end],
            positions=batch.positions[start:end],
            bounds=(0, *(min(spans[s][1], end) - start for s in inside)),
            totals=tuple(batch.totals[s] for s in inside),
            adapters=tuple(batch.adapters[s] for s in inside),
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
        bounds: Sequence[int],
    ) -> Float[Tensor, "T H d"]:
        """The cache protocol of `model/attention.py`: what came before a sequence's own tokens lies in other
        processes."""
        whole = self._gathered(torch.stack([k, v], dim=1))
        lengths = [end - start for start, end in pairwise(bounds)]
        keys, values, end = [], [], self._edges[self.mesh.get_local_rank()]
        for start, length in zip(self._starts, lengths, strict=True):
            end += length
            keys.append(whole[start:end, 0])
            values.append(whole[start:end, 1])
        return ragged_attention(q, keys, values, lengths)

    def _gathered(self, part: Float[Tensor, "T 2 K d"]) -> Float[Tensor, "W 2 K d"]:
        """Every process's rows, in order; the gradient of each row is summed over those who used it."""
        sizes = [b - a for a, b in pairwise(self._edges)]
        longest = max(sizes)
        padded = F.pad(part, (0, 0, 0, 0, 0, 0, 0, longest - len(part)))
        spread = DTensor.from_local(padded, self.mesh, [Shard(0)], run_check=False)
        every = spread.redistribute(self.mesh, [Replicate()])
        local = every.to_local(grad_placements=[Partial()])
        parts = zip(local.split(longest), sizes, strict=True)
        return torch.cat([rows[:size] for rows, size in parts])
