"""Runs a step: the new tokens of many sequences in one packed forward, each with its own adapter.

>>> runner.run(parts, memory)                    # for each part the logits [n V] of its next tokens

Images and audio were encoded before (encoders.py); embeddings that fall into a chunk replace their placeholders here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.engine.cache import Memory, StepCache
from polyphi.engine.graphs import DecodeGraphs
from polyphi.engine.longrope import LongRope
from polyphi.engine.scheduler import StepPart
from polyphi.model.multimodal import PhiModel, splice
from polyphi.prepared.prepare import prepare
from polyphi.types.batch import Batch
from polyphi.types.completion import TokenLogprob

SCORED = 128
"""Positions whose logits are computed at once when scoring, to bound memory."""


@dataclass(frozen=True)
class PartOutput:
    """The output of a part of a step: float32 `logits` after its last token and each draft token (None where nothing is
    sampled), the requested log-probabilities of prompt tokens, and for an embedding the sum of the last hidden states
    of its `pooled` tokens."""

    logits: Float[Tensor, "n V"] | None
    prompt_logprobs: list[TokenLogprob]
    hidden_sum: Float[Tensor, " D"] | None = None
    pooled: int = 0


def extend(prompt: Batch, tokens: Sequence[int]) -> Batch:
    """The row with `tokens` appended, media unchanged."""
    if not tokens:
        return prompt
    length = len(prompt) + len(tokens)
    return replace(
        prompt,
        ids=torch.cat(
            [prompt.ids, torch.tensor(tokens, dtype=prompt.ids.dtype, device=prompt.ids.device)]
        ),
        positions=torch.arange(length, device=prompt.positions.device),
        cu_seqlens=(0, length),
        seq_lens=(length,),
    )


class Runner:
    """Runs a model."""

    def __init__(self, model: PhiModel) -> None:
        self.model = prepare(model)
        self.rope = LongRope(model.config.decoder)
        self._graphs: DecodeGraphs | None = None

    @torch.inference_mode()
    def run(self, parts: Sequence[StepPart], memory: Memory) -> list[PartOutput]:
        """Run the parts and advance the `length` of their block tables."""
        if self.model.decoder.device.type == "cuda" and all(_is_decode(part) for part in parts):
            return self._replayed(parts, memory)
        return self.packed(parts, memory)

    @torch.inference_mode()
    def packed(self, parts: Sequence[StepPart], memory: Memory) -> list[PartOutput]:
        """`run` as one packed forward, without recorded graphs."""
        batch, cu_seqlens = self._batch(parts)
        x = self._embedded(batch, parts, cu_seqlens)
        cache = StepCache(memory, [p.request.table for p in parts], [p.size for p in parts])
        sampled = [
            list(range(end - len(p.draft_tokens) - 1, end)) if p.samples else []
            for p, end in zip(parts, cu_seqlens[1:], strict=True)
        ]
        # The position before a token predicts it.
        scored = [
            [first + number - 1 - p.start for number in p.scored_tokens]
            for p, first in zip(parts, cu_seqlens, strict=False)
        ]
        pooled = [
            [first + number - p.start for number in p.pooled_tokens]
            for p, first in zip(parts, cu_seqlens, strict=False)
        ]
        rows = [row for some in (*sampled, *scored, *pooled) for row in some]
        indices = None
        if rows != list(range(len(x))):  # at least one position must run
            indices = torch.tensor(rows or [len(x) - 1], device=x.device)
        hidden = self.model.decoder(x, batch, cache, indices)
        for part in parts:
            part.request.table.length += part.new
        counts = [len(some) for some in (*sampled, *scored, *pooled)]
        states = hidden[: len(rows)].split(counts)
        scores = [
            self._scores(part, some) if len(some) else []
            for part, some in zip(parts, states[len(parts) :], strict=False)
        ]
        sums = [s.float().sum(0) if len(s) else None for s in states[2 * len(parts) :]]
        logits: Sequence[Tensor | None] = [None] * len(parts)
        if any(sampled):
            counts = counts[: len(parts)]
            all_logits = self.model.logits(hidden[: sum(counts)]).float().split(counts)
            logits = [some if len(some) else None for some in all_logits]
        return [
            PartOutput(own_logits, own_scores, hidden_sum, len(positions))
            for own_logits, own_scores, hidden_sum, positions in zip(
                logits, scores, sums, pooled, strict=True
            )
        ]

    def _scores(self, part: StepPart, hidden: Float[Tensor, "n D"]) -> list[TokenLogprob]:
        ids = [part.request.ids[number] for number in part.scored_tokens]
        return logprobs(self.model, hidden, ids, part.request.sampling.prompt_logprobs or 0)

    def _replayed(self, parts: Sequence[StepPart], memory: Memory) -> list[PartOutput]:
        """`run` by a recorded graph, where every part has one token."""
        if self._graphs is None or self._graphs.memory is not memory:
            self._graphs = DecodeGraphs(self.model, memory)
        logits = self._graphs.run(parts, [self.rope.length(p.request) for p in parts])
        for part in parts:
            part.request.table.length += 1
        return [
            PartOutput(row[None] if p.samples else None, [])
            for p, row in zip(parts, logits, strict=True)
        ]

    def forget_adapter(self, adapter: str) -> None:
        """Drop what was recorded with an adapter."""
        if self._graphs is not None:
            self._graphs.forget_adapter(adapter)

    @torch.inference_mode()
    def hidden(
        self, batch: Batch, logit_indices: Sequence[int] | None = None
    ) -> Float[Tensor, "n D"]:
        """One forward without a cache: the hidden states of all tokens, or of those at `logit_indices`."""
        batch = batch.to(self.model.decoder.device)
        indices = None
        if logit_indices is not None:
            indices = torch.tensor(logit_indices, device=batch.ids.device)
        return self.model.decoder(self.model.embed(batch), batch, None, indices)

    def _batch(self, parts: Sequence[StepPart]) -> tuple[Batch, list[int]]:
        ids: list[int] = []
        positions: list[int] = []
        cu_seqlens = [0]
        for part in parts:
            ids += part.request.ids[part.start : part.start + part.new]
            ids += part.draft_tokens
            positions += range(part.start, part.start + part.size)
            cu_seqlens.append(len(ids))
        device = self.model.decoder.device
        batch = Batch(
            ids=torch.tensor(ids, device=device),
            positions=torch.tensor(positions, device=device),
            cu_seqlens=tuple(cu_seqlens),
            seq_lens=tuple(self.rope.length(p.request) for p in parts),
            adapters=tuple(p.request.adapter for p in parts),
        )
        return batch, cu_seqlens

    def _embedded(
        self, batch: Batch, parts: Sequence[StepPart], cu_seqlens: Sequence[int]
    ) -> Float[Tensor, "T D"]:
        x = self.model.decoder.embed(batch.ids)
        slots: list[int] = []
        features: list[Tensor] = []
        for part, first in zip(parts, cu_seqlens, strict=False):
            end = part.start + part.new
            for item in part.request.items:
                low, high = max(item.start, part.start), min(item.end, end)
                if low < high:
                    encoded = part.request.features[item.key]
                    features.append(encoded[low - item.start : high - item.start].to(x.device))
                    slots += range(first + low - part.start, first + high - part.start)
        if not slots:
            return x
        return splice(x, torch.tensor(slots, device=x.device), torch.cat(features), "media")


@torch.inference_mode()
def logprobs(
    model: PhiModel, hidden: Float[Tensor, "n D"], ids: Sequence[int], top: int = 0
) -> list[TokenLogprob]:
    """Natural log-probabilities of the tokens `ids`, one after each position, with the `top` likeliest alternatives.
    NaN where logits are not finite."""
    result: list[TokenLogprob] = []
    for some in hidden.split(SCORED):
        logs = model.logits(some).float().log_softmax(-1)
        chosen = ids[len(result) : len(result) + len(some)]
        own = logs.gather(1, torch.tensor(chosen, device=logs.device)[:, None])[:, 0].tolist()
        values, tokens = (t.tolist() for t in logs.topk(min(top, logs.shape[1])))
        for token, logprob, v, t in zip(chosen, own, values, tokens, strict=True):
            result.append(TokenLogprob(token, logprob, tuple(zip(t, v, strict=True))))
    return result


def _is_decode(part: StepPart) -> bool:
    """Whether a part is a single token that is no placeholder of an image or audio, without prompt scores."""
    at = part.start
    return (
        part.size == 1
        and not part.scored_tokens
        and not part.pooled_tokens
        and not any(i.start <= at < i.end for i in part.request.items)
    )
