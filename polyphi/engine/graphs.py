"""One token for every sequence on a GPU, without Python between the kernels: recorded once as a CUDA graph, then
replayed.

A graph's shapes are fixed, so a step is rounded up, to a power of two of sequences and of held tokens: what is added
attends to nothing and writes to a row of memory that nobody reads. Graphs are kept by shape and adapters, the least
used ones dropped.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyphi.batch import Batch
from polyphi.engine.cache import BLOCK, Memory
from polyphi.engine.forward import run_layers
from polyphi.engine.scheduler import Part
from polyphi.model.attention import working_dtype
from polyphi.model.decoder import Shared
from polyphi.model.lora import routes
from polyphi.model.multimodal import PhiModel

KEPT = 24
"""Graphs kept."""


@dataclass
class Step:
    """What a recorded step reads, in places of memory that stay: S sequences of at most N held tokens, `pairs` of
    rotated channels."""

    ids: Int[Tensor, " S"]
    cos: Float[Tensor, "S 1 pairs"]
    sin: Float[Tensor, "S 1 pairs"]
    rows: Int[Tensor, " S"]
    held: Int[Tensor, "S N"]
    seen: Bool[Tensor, "S N"]


class StepMemory:
    """A step's caches as `model.attention.KVCache`: every shape is fixed, nothing waits for the host."""

    def __init__(self, memory: Memory, step: Step) -> None:
        self._memory, self._step = memory, step

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H d"],
        k: Float[Tensor, "T K d"],
        v: Float[Tensor, "T K d"],
        bounds: Sequence[int],
    ) -> Float[Tensor, "T H d"]:
        step, (keys, values, *_) = self._step, self._memory.layers[layer]
        keys.index_copy_(0, step.rows, k.to(keys.dtype))
        values.index_copy_(0, step.rows, v.to(values.dtype))
        shape = (*step.held.shape, *keys.shape[1:])
        held = [
            x.index_select(0, step.held.flatten()).view(shape).transpose(1, 2).to(q.dtype)
            for x in (keys, values)
        ]
        mask = step.seen[:, None, None, :]
        out = F.scaled_dot_product_attention(
            q[:, :, None], held[0], held[1], attn_mask=mask, enable_gqa=True
        )
        return out[:, :, 0]


class DecodeGraphs:
    """Recorded steps over one `memory`, whose last block is theirs to write what nobody reads."""

    def __init__(self, model: PhiModel, memory: Memory) -> None:
        self._model, self.memory = model, memory
        self._device = model.decoder.device
        self._nowhere = len(memory.layers[0][0]) - 1
        self._graphs: OrderedDict[tuple, tuple[Step, Callable[[], Tensor]]] = OrderedDict()

    @torch.inference_mode()
    def run(self, parts: Sequence[Part], totals: Sequence[int]) -> Float[Tensor, "S V"]:
        """Float32 logits after each part's single token. `totals` choose LongRoPE tables (batch.py)."""
        order = sorted(range(len(parts)), key=lambda i: str(parts[i].request.adapter))
        sequences = 1 << (len(parts) - 1).bit_length()
        longest = max(part.start + 1 for part in parts)
        held = max(BLOCK, 1 << (longest - 1).bit_length())
        padding = sequences - len(parts)
        adapters = (*(parts[i].request.adapter for i in order), *[None] * padding)
        batch = Batch(
            ids=torch.tensor(
                [*(parts[i].request.ids[parts[i].start] for i in order), *[0] * padding]
            ),
            positions=torch.tensor([*(parts[i].start for i in order), *[0] * padding]),
            bounds=tuple(range(sequences + 1)),
            totals=(*(totals[i] for i in order), *[1] * padding),
            adapters=adapters,
        )
        key = (sequences, held, adapters)
        if key not in self._graphs:
            self._graphs[key] = self._record(batch, held)
            while len(self._graphs) > KEPT:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        step, replay = self._graphs[key]
        self._fill(step, batch, [parts[i] for i in order])
        logits = replay()
        places = torch.tensor(order, device=self._device).argsort()
        return logits[: len(parts)].index_select(0, places)

    def _fill(self, step: Step, batch: Batch, parts: Sequence[Part]) -> None:
        """Writes a step's inputs where the graph reads them. Who was added sees one row, or its softmax would have
        nothing to divide by."""
        rows = torch.full(step.rows.shape, self._nowhere)
        held = torch.full(step.held.shape, self._nowhere)
        seen = torch.zeros(step.seen.shape, dtype=torch.bool)
        seen[:, 0] = True
        for number, part in enumerate(parts):
            every = torch.tensor(part.request.table.rows(0, part.start + 1))
            rows[number] = every[-1]
            held[number, : len(every)] = every
            seen[number, : len(every)] = True
        cos, sin = self._model.decoder.rope(batch.to(self._device), step.cos.dtype)
        for place, value in zip(
            (step.ids, step.cos, step.sin, step.rows, step.held, step.seen),
            (batch.ids, cos, sin, rows, held, seen),
            strict=True,
        ):
            place.copy_(value, non_blocking=True)

    def _record(self, batch: Batch, held: int) -> tuple[Step, Callable[[], Tensor]]:
        decoder, sequences = self._model.decoder, len(batch.ids)
        device = self._device
        x = decoder.embed(batch.ids.to(device))
        cos, sin = decoder.rope(batch.to(device), working_dtype(x))
        step = Step(
            ids=batch.ids.to(device),
            cos=cos.clone(),
            sin=sin.clone(),
            rows=torch.full((sequences,), self._nowhere, device=device),
            held=torch.full((sequences, held), self._nowhere, device=device),
            seen=torch.ones(sequences, held, dtype=torch.bool, device=device),
        )
        shared = Shared(
            step.cos,
            step.sin,
            routes(batch, decoder.adapters.keys(), device),
            batch.bounds,
            StepMemory(self.memory, step),
        )

        def once() -> Tensor:
            return self._model.logits(run_layers(decoder, decoder.embed(step.ids), shared)).float()

        if device.type != "cuda":
            return step, once
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # kernels choose their ways before they are recorded
            for _ in range(2):
                once()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = once()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return step, replay
