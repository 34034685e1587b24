"""Decode steps on a GPU as CUDA graphs: one token for every sequence, recorded once and replayed without Python.

A graph's shapes are fixed, so a step is padded to a power of two of sequences and of cached tokens: padding attends to
one row and writes to a memory row that no sequence reads. Graphs are cached by shape and adapters (LRU).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyphi.engine.cache import BLOCK, Memory
from polyphi.engine.scheduler import StepPart
from polyphi.model.attention import working_dtype
from polyphi.model.decoder import ForwardContext
from polyphi.model.lora import routes
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.decoder import PreparedDecoder
from polyphi.prepared.prepare import prepare
from polyphi.types.batch import Batch

MAX_GRAPHS = 24
"""Most cached graphs."""


@dataclass
class GraphInputs:
    """The inputs of a recorded step, at fixed addresses: S sequences of at most N cached tokens, `pairs` of rotated
    channels. `rows`: memory rows of the new tokens; `cached_rows`: of all tokens; `mask`: which of these exist."""

    ids: Int[Tensor, " S"]
    cos: Float[Tensor, "S 1 pairs"]
    sin: Float[Tensor, "S 1 pairs"]
    rows: Int[Tensor, " S"]
    cached_rows: Int[Tensor, "S N"]
    mask: Bool[Tensor, "S N"]


class StepMemory:
    """The `model.attention.KVCache` of a recorded step: all shapes are fixed, and no operation syncs with the host."""

    def __init__(self, memory: Memory, step: GraphInputs) -> None:
        self._memory, self._step = memory, step

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H d"],
        k: Float[Tensor, "T K d"],
        v: Float[Tensor, "T K d"],
        cu_seqlens: Sequence[int],
    ) -> Float[Tensor, "T H d"]:
        step, (keys, values, *_) = self._step, self._memory.layers[layer]
        keys.index_copy_(0, step.rows, k.to(keys.dtype))
        values.index_copy_(0, step.rows, v.to(values.dtype))
        shape = (*step.cached_rows.shape, *keys.shape[1:])
        cached = [
            x.index_select(0, step.cached_rows.flatten()).view(shape).transpose(1, 2).to(q.dtype)
            for x in (keys, values)
        ]
        mask = step.mask[:, None, None, :]
        out = F.scaled_dot_product_attention(
            q[:, :, None], cached[0], cached[1], attn_mask=mask, enable_gqa=True
        )
        return out[:, :, 0]


class DecodeGraphs:
    """Recorded steps over one `memory`, whose last block is reserved for the writes of padding."""

    def __init__(self, model: PhiModel, memory: Memory) -> None:
        self._model, self.memory = prepare(model), memory
        self._device = model.decoder.device
        self._padding_row = len(memory.layers[0][0]) - 1
        # Masked positions are multiplied by zero, and memory that was never written may have NaN.
        with torch.inference_mode():
            for layer in memory.layers:
                for tensor in layer:
                    if tensor is not None:
                        tensor[self._padding_row] = 0
        self._graphs: OrderedDict[tuple, tuple[GraphInputs, Callable[[], Tensor]]] = OrderedDict()

    def forget_adapter(self, adapter: str) -> None:
        """Drop the graphs with an adapter: they would read its freed weights."""
        for key in [key for key in self._graphs if adapter in key[2]]:
            del self._graphs[key]

    @torch.inference_mode()
    def run(self, parts: Sequence[StepPart], seq_lens: Sequence[int]) -> Float[Tensor, "S V"]:
        """Float32 logits after each part's single token. `seq_lens` choose LongRoPE tables (batch.py)."""
        order = sorted(range(len(parts)), key=lambda i: str(parts[i].request.adapter))
        sequences = 1 << (len(parts) - 1).bit_length()
        longest = max(part.start + 1 for part in parts)
        width = max(BLOCK, 1 << (longest - 1).bit_length())
        padding = sequences - len(parts)
        adapters = (*(parts[i].request.adapter for i in order), *[None] * padding)
        batch = Batch(
            ids=torch.tensor(
                [*(parts[i].request.ids[parts[i].start] for i in order), *[0] * padding]
            ),
            positions=torch.tensor([*(parts[i].start for i in order), *[0] * padding]),
            cu_seqlens=tuple(range(sequences + 1)),
            seq_lens=(*(seq_lens[i] for i in order), *[1] * padding),
            adapters=adapters,
        )
        key = (sequences, width, adapters)
        if key not in self._graphs:
            self._graphs[key] = self._record(batch, width)
            while len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        step, replay = self._graphs[key]
        self._fill(step, batch, [parts[i] for i in order])
        logits = replay()
        inverse = torch.tensor(order, device=self._device).argsort()
        return logits[: len(parts)].index_select(0, inverse)

    def _fill(self, step: GraphInputs, batch: Batch, parts: Sequence[StepPart]) -> None:
        """Copies a step's inputs into the graph's tensors. A padding sequence attends to one row, so that its softmax
        doesn't divide by zero."""
        rows = torch.full(step.rows.shape, self._padding_row)
        cached_rows = torch.full(step.cached_rows.shape, self._padding_row)
        mask = torch.zeros(step.mask.shape, dtype=torch.bool)
        mask[:, 0] = True
        for number, part in enumerate(parts):
            every = torch.tensor(part.request.table.rows(0, part.start + 1))
            rows[number] = every[-1]
            cached_rows[number, : len(every)] = every
            mask[number, : len(every)] = True
        cos, sin = self._model.decoder.rope(batch.to(self._device), step.cos.dtype)
        for buffer, value in zip(
            (step.ids, step.cos, step.sin, step.rows, step.cached_rows, step.mask),
            (batch.ids, cos, sin, rows, cached_rows, mask),
            strict=True,
        ):
            buffer.copy_(value, non_blocking=True)

    def _record(self, batch: Batch, width: int) -> tuple[GraphInputs, Callable[[], Tensor]]:
        decoder, sequences = self._model.decoder, len(batch.ids)
        assert isinstance(decoder, PreparedDecoder)
        device = self._device
        x = decoder.embed(batch.ids.to(device))
        cos, sin = decoder.rope(batch.to(device), working_dtype(x))
        step = GraphInputs(
            ids=batch.ids.to(device),
            cos=cos.clone(),
            sin=sin.clone(),
            rows=torch.full((sequences,), self._padding_row, device=device),
            cached_rows=torch.full((sequences, width), self._padding_row, device=device),
            mask=torch.ones(sequences, width, dtype=torch.bool, device=device),
        )
        context = ForwardContext(
            step.cos,
            step.sin,
            routes(batch, decoder.adapters.keys(), device),
            batch.cu_seqlens,
            StepMemory(self.memory, step),
        )

        def forward() -> Tensor:
            return decoder.logits(decoder.run(decoder.embed(step.ids), context)).float()

        if device.type != "cuda":
            return step, forward
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # warm-up: kernels are selected before the recording
            for _ in range(2):
                forward()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = forward()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return step, replay
