"""Next-token loss over supervised positions only.

Hidden states of supervised positions are gathered first; the head runs over a chunk of them at a time, so that
200,064 scores per position never pile up. Two ways, by what is asked for:

- `token_loss_sum`: one sum to learn from. A chunk's gradient is worked out right beside its loss, while its scores are
  at hand, and only gradients of the hidden states (and of the head, if it learns) are kept: the head runs once.
- `token_losses`: a loss per position. A chunk's scores are made again in the backward pass.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyphi.batch import Batch
from polyphi.data.draws import Unfit
from polyphi.data.shards import Sample
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.train.alignment import Alignment, with_words
from polyphi.train.objective import HasTokenizer

CHUNK_SCORES = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits of a chunk, in numbers. On a CPU 4 MiB in float32 (256 positions of a vocabulary of 4,096), which its cache
holds; on a GPU 256 MiB (335 positions of the public vocabulary), enough to keep it busy."""

MODALITIES = ("text", "image", "audio", "image and audio")
CHUNK_ROWS = 64
"""Positions of a chunk at least: with fewer, a product with a large head is spent on reading it (speech 2 of a decoder
768 wide with 200,064 scores, one core: 5.9 s a step in chunks of 5 positions, 3.6 s of 41, 3.4 s of 83)."""


def _rows(head: Tensor) -> int:
    return max(CHUNK_ROWS, CHUNK_SCORES.get(head.device.type, 1 << 22) // head.shape[0])


def token_losses(
    hidden: Float[Tensor, "Q D"], head: Float[Tensor, "V D"], labels: Int[Tensor, " Q"]
) -> Float[Tensor, " Q"]:
    """Cross-entropy of each position in float32, the logits never kept."""
    rows = _rows(head)
    again = torch.is_grad_enabled() and len(hidden) > rows

    def chunk(h: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, head).float(), y, reduction="none")

    parts = [
        checkpoint(chunk, h, y, use_reentrant=False) if again else chunk(h, y)
        for h, y in zip(hidden.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts)


def token_loss_sum(
    hidden: Float[Tensor, "Q D"], head: Float[Tensor, "V D"], labels: Int[Tensor, " Q"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " Q"]]:
    """Sum of the cross-entropies of all positions, in float32, and beside it each of them without gradient; under
    autocast the head multiplies in its precision."""
    device = hidden.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    found: tuple[Tensor, Tensor] = _LossSum.apply(hidden, head, labels, narrow)
    return found


class _LossSum(torch.autograd.Function):
    """For a position with scores s and label y: loss = logsumexp(s) - s[y], gradient of s = softmax(s) - onehot(y)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, narrow: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_head, *_ = ctx.needs_input_grad
        weight = head.detach().to(narrow)
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_head = torch.zeros_like(head, dtype=torch.float32) if wants_head else None
        rows = _rows(head)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                h = hidden[start : start + rows].detach().to(narrow)
                y = labels[start : start + rows, None]
                scores = (h @ weight.t()).float()
                norms = scores.logsumexp(-1, keepdim=True)
                losses[start : start + rows] = (norms - scores.gather(1, y))[:, 0]
                if not (wants_hidden or wants_head):
                    continue
                slope = scores.sub_(norms).exp_()
                slope.scatter_add_(1, y, slope.new_full((len(y), 1), -1.0))
                slope = slope.to(narrow)
                if to_hidden is not None:
                    to_hidden[start : start + rows] = slope @ weight
                if to_head is not None:
                    # In float32 the sum over chunks is a single accumulation; narrower, each chunk is rounded once.
                    to_head.addmm_(slope.t(), h) if narrow == torch.float32 else to_head.add_(
                        slope.t() @ h
                    )
        ctx.save_for_backward(to_hidden, to_head)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(
        ctx: Any, scale: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        to_hidden, to_head = ctx.saved_tensors
        return (
            None if to_hidden is None else to_hidden * scale.to(to_hidden.dtype),
            None if to_head is None else (to_head * scale).to(ctx.head_dtype),
            None,
            None,
        )


@dataclass(frozen=True)
class NextToken:
    """Predict the next token of the answers (or of `all` text). `max_crops` bounds a picture's crops (report
    2.2.1). `align` weighs the alignment of image and audio tokens with words (alignment.py) [ours]."""

    supervise: Literal["answers", "all"] = "answers"
    max_crops: int | None = None
    align: float = 0.0
    whole_step: ClassVar[bool] = False

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        """The sample as one row; documents are cut at `context`, conversations must fit. Raises `Unfit` where
        nothing would be learned."""
        document = sample.messages[0].role == "document"
        row = processor.row(
            sample.messages,
            adapter=adapter,
            supervise=self.supervise,
            context=context,
            max_crops=self.max_crops,
            truncate=document,
        )
        if row.supervised is None or not len(row.supervised):
            raise Unfit(
                f"sample {sample.id}: no token of it is supervised; expected an answer or a document"
            )
        if self.align:
            row = with_words(row, sample, processor)
        return [row]

    def build(self, model: PhiModel, processor: HasTokenizer, seed: int = 0) -> nn.Module | None:
        """The alignment, which has no parameters, where it has a weight; else no auxiliary head."""
        return Alignment(processor.tokenizer) if self.align else None

    def begin(self, model: PhiModel) -> Any:
        """No reference."""
        return None

    def loss(
        self, model: PhiModel, module: nn.Module | None, state: Any, batch: Batch
    ) -> tuple[Tensor, int, dict[str, tuple[Tensor, Tensor]]]:
        """(sum of token losses, number of supervised tokens, for each kind of row its own sum and number)."""
        assert batch.supervised is not None and batch.labels is not None, (
            "a training batch without labels"
        )
        embeddings = model.decoder.embed_tokens.weight
        metrics: dict[str, Any] = {}
        if module is None:
            hidden = model(batch)
        else:
            x = model.embed(batch)
            hidden = model.decoder(x, batch, None)
            alignment, metrics = module(x, batch, embeddings)
        labels = batch.labels.index_select(0, batch.supervised)
        hidden = hidden.index_select(0, batch.supervised)
        total, losses = token_loss_sum(hidden, embeddings, labels)
        if module is not None:
            total = total + self.align * alignment
        return total, len(labels), by_modality(batch, losses) | metrics


def by_modality(batch: Batch, losses: Float[Tensor, " Q"]) -> dict[str, tuple[Tensor, Tensor]]:
    """Losses of the supervised positions by what their row shows: sum and number, "loss text", "loss image" and so
    on."""
    assert batch.supervised is not None
    kind = torch.zeros(batch.sequences, dtype=torch.long, device=losses.device)
    for bit, slots in ((1, batch.image_slots), (2, batch.audio_slots)):
        if slots is not None:
            shown = torch.zeros_like(kind).index_fill(0, owners(batch, slots), bit)
            kind += shown
    kinds = kind.index_select(0, owners(batch, batch.supervised))
    sums = losses.new_zeros(len(MODALITIES)).index_add(0, kinds, losses)
    counts = torch.bincount(kinds, minlength=len(MODALITIES))
    return {f"loss {name}": (sums[i], counts[i]) for i, name in enumerate(MODALITIES)}


def owners(batch: Batch, positions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Number of the sequence that each position of a pack belongs to."""
    ends = torch.tensor(batch.bounds[1:]).to(positions.device, non_blocking=True)
    return torch.searchsorted(ends, positions, right=True)
