"""Runs a step: the new tokens of many sequences in one packed forward, each with its own adapter.

>>> runner.run(parts)                            # {request: logits [n V] of the tokens that may follow}

What stands for pictures and clips was made before (encoders.py); the parts of it that fall into a chunk are written
over their placeholders here.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import Batch
from polyphi.engine.cache import Memory, StepCache
from polyphi.engine.graphs import DecodeGraphs
from polyphi.engine.request import Request
from polyphi.engine.scheduler import Part
from polyphi.model.multimodal import PhiModel


def extend(prompt: Batch, tokens: Sequence[int]) -> Batch:
    """A row with more tokens at its end, media unchanged."""
    if not tokens:
        return prompt
    length = len(prompt) + len(tokens)
    return replace(
        prompt,
        ids=torch.cat(
            [prompt.ids, torch.tensor(tokens, dtype=prompt.ids.dtype, device=prompt.ids.device)]
        ),
        positions=torch.arange(length, device=prompt.positions.device),
        bounds=(0, length),
        totals=(length,),
    )


class Runner:
    """The model, and the rule of its LongRoPE tables: a sequence of more than `original_max_position_embeddings` tokens
    is run with the long table altogether."""

    def __init__(self, model: PhiModel) -> None:
        self.model = model
        self.switch = model.config.decoder.original_max_position_embeddings
        self.has_long = model.config.decoder.max_position_embeddings > self.switch
        self._graphs: DecodeGraphs | None = None

    @property
    def device(self) -> torch.device:
        return self.model.decoder.device

    def total(self, request: Request) -> int:
        """The length by which a request's table is chosen: that of all it knows, or, bound, of all it may become."""
        return request.bound if request.sampling.rope == "bound" else len(request)

    def table(self, request: Request) -> str:
        """The LongRoPE table of a request as it stands (report 2.1)."""
        return "long" if self.has_long and self.total(request) > self.switch else "short"

    @torch.inference_mode()
    def run(self, parts: Sequence[Part], memory: Memory) -> list[Float[Tensor, "n V"] | None]:
        """Runs the parts and moves their tables on. For those that draw, float32 logits after their last known token
        and each guess; None for the others."""
        if self.device.type == "cuda" and all(_is_one_word(part) for part in parts):
            return self._replayed(parts, memory)
        batch, bounds = self._batch(parts)
        x = self._embedded(batch, parts, bounds)
        cache = StepCache(memory, [p.request.table for p in parts], [p.size for p in parts])
        wanted = [
            list(range(end - len(p.guesses) - 1, end)) if p.draws else []
            for p, end in zip(parts, bounds[1:], strict=True)
        ]
        rows = [r for drawn in wanted for r in drawn]
        chosen = None
        if len(rows) < len(x):  # one must run, wanted or not
            chosen = torch.tensor(rows or [len(x) - 1], device=self.device)
        hidden = self.model.decoder(x, batch, cache, chosen)
        for part in parts:
            part.request.table.length += part.new
        if not rows:
            return [None] * len(parts)
        logits = self.model.logits(hidden).float()
        split = iter(logits.split([len(drawn) for drawn in wanted if drawn]))
        return [next(split) if drawn else None for drawn in wanted]

    def _replayed(self, parts: Sequence[Part], memory: Memory) -> list[Tensor | None]:
        """The same where everybody has one token, by a recorded graph."""
        if self._graphs is None or self._graphs.memory is not memory:
            self._graphs = DecodeGraphs(self.model, memory)
        logits = self._graphs.run(parts, [self.total(p.request) for p in parts])
        for part in parts:
            part.request.table.length += 1
        return [row[None] if p.draws else None for p, row in zip(parts, logits, strict=True)]

    @torch.inference_mode()
    def hidden(
        self, batch: Batch, logit_indices: Sequence[int] | None = None
    ) -> Float[Tensor, "n D"]:
        """One forward without a cache: the hidden states of all tokens, or of those at `logit_indices`."""
        batch = batch.to(self.device)
        if logit_indices is None:
            return self.model(batch)
        indices = torch.tensor(logit_indices, device=self.device)
        return self.model.decoder(self.model.embed(batch), batch, None, indices)

    def _batch(self, parts: Sequence[Part]) -> tuple[Batch, list[int]]:
        ids: list[int] = []
        positions: list[int] = []
        bounds = [0]
        for part in parts:
            ids += part.request.ids[part.start : part.start + part.new]
            ids += part.guesses
            positions += range(part.start, part.start + part.size)
            bounds.append(len(ids))
        batch = Batch(
            ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            bounds=tuple(bounds),
            totals=tuple(self.total(p.request) for p in parts),
            adapters=tuple(p.request.adapter for p in parts),
        )
        return batch.to(self.device), bounds

    def _embedded(
        self, batch: Batch, parts: Sequence[Part], bounds: Sequence[int]
    ) -> Float[Tensor, "T D"]:
        x = self.model.decoder.embed(batch.ids)
        for part, first in zip(parts, bounds, strict=False):
            end = part.start + part.new
            for item in part.request.items:
                low, high = max(item.start, part.start), min(item.end, end)
                if low < high:
                    features = part.request.features[item.key]
                    at = first + low - part.start
                    x[at : at + high - low] = features[low - item.start : high - item.start].to(x)
        return x


def _is_one_word(part: Part) -> bool:
    """Whether a part is a single token that stands for itself, not for a piece of a picture or clip."""
    at = part.start
    return part.size == 1 and not any(i.start <= at < i.end for i in part.request.items)
