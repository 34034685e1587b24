"""Next-token loss over supervised positions only.

Hidden states of supervised positions are gathered first, the head runs over a chunk of them at a time, and the chunk's logits
are made again in the backward pass instead of kept: 200,064 scores per position never pile up. A frozen head gets no gradient.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyphi.batch import Batch
from polyphi.data.shards import Sample
from polyphi.model.multimodal import PhiModel

CHUNK_SCORES = 1 << 24
"""Logits of a chunk, in numbers: 64 MiB in float32, 83 positions of the public vocabulary, 4,096 of a small one."""


def token_losses(
    hidden: Float[Tensor, "Q D"], head: Float[Tensor, "V D"], labels: Int[Tensor, " Q"]
) -> Float[Tensor, " Q"]:
    """Cross-entropy of each position in float32, the logits never kept."""
    rows = max(1, CHUNK_SCORES // head.shape[0])
    keep = torch.is_grad_enabled() and len(hidden) > rows

    def chunk(h: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, head).float(), y, reduction="none")

    parts = [
        checkpoint(chunk, h, y, use_reentrant=False) if keep else chunk(h, y)
        for h, y in zip(hidden.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts)


@dataclass(frozen=True)
class NextToken:
    """Predict the next token of the answers (or of `all` text). `max_crops` bounds a picture's crops (report 2.2.1)."""

    supervise: Literal["answers", "all"] = "answers"
    max_crops: int | None = None

    def rows(self, sample: Sample, processor: Any, context: int, adapter: str | None = "auto") -> list[Batch]:
        """The sample as one row; documents are cut at `context`, conversations must fit."""
        document = sample.messages[0].role == "document"
        return [
            processor.row(
                sample.messages,
                adapter=adapter,
                supervise=self.supervise,
                context=context,
                max_crops=self.max_crops,
                truncate=document,
            )
        ]

    def build(self, model: PhiModel, processor: Any, seed: int = 0) -> nn.Module | None:
        """No throw-away module."""
        return None

    def begin(self, model: PhiModel) -> Any:
        """No reference."""
        return None

    def loss(
        self, model: PhiModel, module: nn.Module | None, state: Any, batch: Batch
    ) -> tuple[Tensor, int, dict[str, float]]:
        """(sum of token losses, number of supervised tokens, metrics)."""
        assert batch.supervised is not None and batch.labels is not None, "a training batch without labels"
        hidden = model(batch).index_select(0, batch.supervised)
        losses = token_losses(hidden, model.decoder.embed_tokens.weight, batch.labels.index_select(0, batch.supervised))
        return losses.sum(), len(batch.supervised), {}
