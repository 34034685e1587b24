"""Training on several processes, with the results of one. Each process has its share of a step's samples; gradients are
summed over all processes.

Replicas (every stage): each process has the whole model; after the backward pass gradients are summed in one
collective. A process without images or audio contributes zeros for the tensors that it didn't use.

Shards: the decoder's layers are sharded into equal parts (FSDP2), trained or frozen, and gathered layer by layer; the
adapters, the embedding, the last norm and the encoders are replicas. Groups of shards are replicas of each other::

    6 processes, shard = 3     replicate: 0 |  0  1  2        each row holds the layers once, in three parts;
                                          1 |  3  4  5        columns hold the same part

Context (long rows): a pack's tokens are divided among a group of processes; in each layer a process gathers the keys
and values of the whole pack, and its queries attend to those up to their own positions. The items of the encoders are
divided, too: a process encodes its own, and gathers the tokens of all::

    tokens   0 1 2 3 | 4 5 6 7        process 0 has queries 0-3 and attends to keys 0-3,
                                      process 1 has queries 4-7 and attends to keys 0-7
    images      A         B           process 0 encodes A, process 1 encodes B
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from polyphi.model.decoder import Decoder
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.attention import ragged_attention
from polyphi.runtime import distributed
from polyphi.types.batch import Batch
from polyphi.types.inputs.encoder import Inputs


def shard(model: PhiModel, precision: str, parts: int) -> None:
    """Shard the decoder's layers into `parts`, in place; parameter objects from before are invalid afterwards. Under
    "bf16" layers are gathered in bfloat16, and gradients are summed in float32. Adapters stay whole: a process whose
    samples all use another one has no gradient for it, and the others would wait."""
    decoder = model.decoder
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    mesh = distributed.mesh(next(model.parameters()).device.type, parts)
    whole = {
        p for n, p in decoder.named_parameters() if ".lora." in n or not n.startswith("layers.")
    }
    for layer in decoder.layers:
        adapters = whole.intersection(layer.parameters())
        fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=adapters)
    fully_shard(decoder, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            # Sums, not means: the loop divides by the global count, and gloo has only plain sums.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor in this process."""
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
    """A model whose packs are divided among the processes of `mesh`. It is called like the model, with a batch that
    `part` returned, and returns the hidden states of that part."""

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
        """The tokens and items of a pack that this process has. Raises ValueError where the pack has fewer tokens than
        there are processes."""
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
            inputs={
                name: self._shared(inputs, spans, overlapping, start, end)
                for name, inputs in batch.inputs.items()
            },
        )

    def _shared(
        self,
        inputs: Inputs,
        spans: Sequence[tuple[int, int]],
        overlapping: Sequence[int],
        start: int,
        end: int,
    ) -> "Shared":
        """A modality's inputs of a pack as this process has them, whose tokens are `start` to `end` of the pack."""
        assert inputs.slots is not None
        items, parts = list(inputs.split()), self.mesh.size()
        # Neighbouring items of about equal size: an item belongs to the process in whose share its middle lies.
        ends = list(accumulate(item.size for item in items))
        owners = [
            min(parts - 1, int(parts * (at - item.size / 2) / ends[-1]))
            for at, item in zip(ends, items, strict=True)
        ]
        own = [
            item
            for item, owner in zip(items, owners, strict=True)
            if owner == self.mesh.get_local_rank()
        ]
        counts = [0] * parts
        for owner, tokens in zip(owners, inputs.tokens, strict=True):
            counts[owner] += tokens
        here = (inputs.slots >= start) & (inputs.slots < end)
        # One position of each sequence of this part that has inputs, here or elsewhere.
        firsts = [spans[s][0] for s in overlapping]
        owned = torch.bucketize(inputs.slots.cpu(), torch.tensor([a for a, _ in spans]), right=True)
        with_inputs = set((owned - 1).tolist())
        marks = [
            max(a, start) - start
            for s, a in zip(overlapping, firsts, strict=True)
            if s in with_inputs
        ]
        return Shared(
            layouts=inputs.layouts,
            slots=torch.tensor(marks, dtype=torch.long, device=inputs.slots.device),
            own=type(inputs).join(own) if own else None,
            counts=tuple(counts),
            here=here.nonzero().flatten(),
            places=inputs.slots[here] - start,
        )

    def embed(self, batch: Batch) -> Float[Tensor, "T D"]:
        """Embeddings of this part's tokens, with those of the inputs, which are gathered from all processes.

        In all processes the same tensors require gradients, since the backward pass of a gathered one waits for all:
        the tokens of inputs wherever their tower is trained, and the embeddings."""
        x = self.model.decoder.embed(batch.ids)
        for name, inputs in batch.inputs.items():
            assert isinstance(inputs, Shared)
            if inputs.own is not None:
                tokens = self.model.encode(name, inputs.own).to(x.dtype)
            else:
                trained = any(p.requires_grad for p in self.model.tower(name).parameters())
                tokens = x.new_zeros(0, x.shape[1]).requires_grad_(
                    trained and torch.is_grad_enabled()
                )
            every = self._gather(tokens, inputs.counts)
            x = x.index_copy(0, inputs.places, every.index_select(0, inputs.here))
        if torch.is_grad_enabled() and not x.requires_grad:
            x = x.detach().requires_grad_()
        return x

    def __call__(self, batch: Batch) -> Float[Tensor, "T D"]:
        hidden: Tensor = self.model.decoder(self.embed(batch), batch, self)
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
        sizes = [b - a for a, b in pairwise(self._edges)]
        whole = self._gather(torch.stack([k, v], dim=1), sizes)
        lengths = [end - start for start, end in pairwise(cu_seqlens)]
        keys, values, end = [], [], self._edges[self.mesh.get_local_rank()]
        for start, length in zip(self._starts, lengths, strict=True):
            end += length
            keys.append(whole[start:end, 0])
            values.append(whole[start:end, 1])
        return ragged_attention(q, keys, values, lengths)

    def _gather(self, part: Float[Tensor, "n ..."], sizes: Sequence[int]) -> Float[Tensor, "W ..."]:
        """The rows of all processes, in order, of which each has as many as `sizes` says; the gradient of a row is
        summed over the processes that used it."""
        longest = max(sizes)
        padded = F.pad(part, (0, 0) * (part.ndim - 1) + (0, longest - len(part)))
        spread = DTensor.from_local(padded, self.mesh, [Shard(0)], run_check=False)
        every = spread.redistribute(self.mesh, [Replicate()])
        local = every.to_local(grad_placements=[Partial()])
        parts = zip(local.split(longest), sizes, strict=True)
        return torch.cat([rows[:size] for rows, size in parts])


@dataclass(frozen=True, kw_only=True)
class Shared(Inputs):
    """A modality's inputs of a pack in one process of a group. `own` are the items that it encodes (None: none),
    `counts` the tokens that each process gets from its own. Of all tokens those numbered `here` belong at `places` of
    this process's part. `slots` has a position of each sequence of the part that has inputs, here or elsewhere."""

    own: Inputs | None
    counts: tuple[int, ...]
    here: Int[Tensor, " n"]
    places: Int[Tensor, " n"]

    @property
    def size(self) -> int:
        """The size of the items that this process encodes."""
        return 0 if self.own is None else self.own.size

    def to(self, device: torch.device | str) -> "Shared":
        """A copy of the inputs on a device."""
        own = None if self.own is None else self.own.to(device)
        return replace(super().to(device), own=own)
