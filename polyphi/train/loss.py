"""Next-token loss over supervised positions only.

Hidden states of supervised positions are gathered first; the head runs over a chunk of them at a time, so that the
200,064 logits per position are never all in memory. There are two functions:

- `token_loss_sum` returns one sum. It computes a chunk's gradient together with its loss, while the logits exist, and
  keeps only gradients of the hidden states (and of the head, if it is trained): the head runs once.
- `token_losses` returns a loss per position. The backward pass computes a chunk's logits again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyphi.data.sample import Sample, Unfit
from polyphi.kernels import cross_entropy
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.decoder import Head, PreparedDecoder
from polyphi.prepared.linear import autocast_weight
from polyphi.processing.processor import Processor
from polyphi.train.alignment import Alignment, with_words
from polyphi.train.stage import HasTokenizer
from polyphi.types.batch import Batch

CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Number of logits of a chunk. On a CPU 4 MiB in float32 (256 positions of a vocabulary of 4,096), which fit into its
cache; on a GPU 256 MiB (335 positions of the public vocabulary), enough to use it fully."""

CHUNK_ROWS = 256
"""Fewest positions of a chunk: with fewer, a product with a large head is bound by reading the head, or by unpacking a
quantized one. 256 positions of a head of 200,064 x 3,072 with two layers, two cores with bf16, forward and gradient of
the loss: 3.2 s in chunks of 64, 2.6 s of 128, 2.5 s of 256; in int8 3.7, 2.8 and 2.2 s. Logits of 256 positions take
102 MB in bfloat16, 205 MB in float32."""


def head_of(model: PhiModel) -> Tensor | Head:
    """The weight of a model's head, or its quantized head."""
    decoder = model.decoder
    if isinstance(decoder, PreparedDecoder) and decoder.head is not None:
        return decoder.head
    return decoder.head_weight


def _products(
    head: Tensor | Head, dtype: torch.dtype
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The products of a head with hidden states, and with gradients of logits."""
    if not isinstance(head, Tensor):
        return head, head.input_grad
    weight = head.detach().to(dtype)
    return (lambda hidden: hidden @ weight.t()), (lambda gradient: gradient @ weight)


def _rows(hidden: Tensor, head: Tensor | Head) -> int:
    """Positions of a chunk: about the same number in all, since a small last one reads the whole head, too."""
    limit = max(CHUNK_ROWS, CHUNK_LOGITS.get(hidden.device.type, 1 << 22) // head.shape[0])
    chunks = max(1, -(-len(hidden) // limit))
    return max(1, -(-len(hidden) // chunks))


def _losses(logits: Tensor, labels: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """(cross-entropy of each position in float32; with `gradient` that of their sum, in the dtype of the logits). The
    logits may be overwritten."""
    if cross_entropy.supports(logits):
        return cross_entropy.cross_entropy_(logits, labels, gradient=gradient), logits
    wide, labels = logits.float(), labels[:, None]
    log_sums = wide.logsumexp(-1, keepdim=True)
    losses = (log_sums - wide.gather(1, labels))[:, 0]
    if not gradient:
        return losses, logits
    shares = wide.sub_(log_sums).exp_()
    shares.scatter_add_(1, labels, shares.new_full((len(labels), 1), -1.0))
    return losses, shares.to(logits.dtype)


def token_losses(
    hidden: Float[Tensor, "Q D"], head: Float[Tensor, "V D"] | Head, labels: Int[Tensor, " Q"]
) -> Float[Tensor, " Q"]:
    """Cross-entropy of each position in float32; the logits are not stored."""
    rows = _rows(hidden, head)
    recompute = torch.is_grad_enabled() and len(hidden) > rows

    def chunk(h: Tensor, y: Tensor) -> Tensor:
        logits = F.linear(h, head) if isinstance(head, Tensor) else head(h)
        return F.cross_entropy(logits.float(), y, reduction="none")

    parts = [
        checkpoint(chunk, h, y, use_reentrant=False) if recompute else chunk(h, y)
        for h, y in zip(hidden.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts)


def token_loss_sum(
    hidden: Float[Tensor, "Q D"], head: Float[Tensor, "V D"] | Head, labels: Int[Tensor, " Q"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " Q"]]:
    """(sum of the cross-entropies of all positions, each of them without gradient), in float32; under autocast the
    product with the head has its dtype."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if isinstance(head, Tensor) and hidden.requires_grad:
        head = autocast_weight(head)
    losses: tuple[Tensor, Tensor] = _LossSum.apply(hidden, head, labels, dtype)
    return losses


class _LossSum(torch.autograd.Function):
    """The sum of losses over positions. A position with logits z and label y has the loss logsumexp(z) - z[y], and the
    gradient of z is softmax(z) - onehot(y)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor | Head, labels: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        hidden_needs_grad, head_needs_grad, *_ = ctx.needs_input_grad
        logits_of, transposed = _products(head, dtype)
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        hidden_grad = torch.empty_like(hidden) if hidden_needs_grad else None
        head_grad = None
        if head_needs_grad:
            assert isinstance(head, Tensor)
            head_grad = torch.zeros_like(head, dtype=torch.float32)
            ctx.head_dtype = head.dtype
        rows = _rows(hidden, head)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                h = hidden[start : start + rows].detach().to(dtype)
                losses[start : start + rows], logits_grad = _losses(
                    logits_of(h), labels[start : start + rows], hidden_needs_grad or head_needs_grad
                )
                if hidden_grad is not None:
                    hidden_grad[start : start + rows] = transposed(logits_grad)
                if head_grad is not None:
                    # In float32 the product accumulates in place; in bfloat16 each chunk's product is rounded once.
                    head_grad.addmm_(
                        logits_grad.t(), h
                    ) if dtype == torch.float32 else head_grad.add_(logits_grad.t() @ h)
        ctx.save_for_backward(hidden_grad, head_grad)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(
        ctx: Any, scale: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_grad, head_grad = ctx.saved_tensors
        return (
            None if hidden_grad is None else hidden_grad * scale.to(hidden_grad.dtype),
            None if head_grad is None else (head_grad * scale).to(ctx.head_dtype),
            None,
            None,
        )


@dataclass(frozen=True)
class NextToken:
    """Predict the next token of the answers (or of `all` text). `max_crops` bounds an image's crops (report 2.2.1).
    `align` is the weight of the alignment loss of image and audio tokens with words (alignment.py) [ours]."""

    supervise: Literal["answers", "all"] = "answers"
    max_crops: int | None = None
    align: float = 0.0

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        """The sample as one row; documents are cut at `context`, conversations must fit. Of answers, those of the
        sample's `meta["supervise"]` are trained. Raises `Unfit` where no token is supervised."""
        document = sample.messages[0].role == "document"
        answers = self.supervise == "answers"
        row = processor.row(
            sample.messages,
            adapter=adapter,
            supervise=sample.meta.get("supervise", "answers") if answers else self.supervise,
            context=context,
            max_crops=self.max_crops,
            truncate=document,
        )
        if row.supervised is None or not len(row.supervised):
            raise Unfit(
                f"sample {sample.id}: expected an answer or a document, found no supervised token"
            )
        if self.align:
            row = with_words(row, sample, processor)
        return [row]

    def build(self, model: PhiModel, processor: HasTokenizer, seed: int = 0) -> nn.Module | None:
        """The alignment loss, which has no parameters, where `align` isn't 0; else None."""
        if not self.align:
            return None
        return Alignment.of(model, processor.tokenizer)

    def begin(self, model: PhiModel) -> Any:
        """Return None: the objective has no reference."""
        return None

    def loss(
        self, model: PhiModel, head: nn.Module | None, reference: Any, batch: Batch
    ) -> tuple[Tensor, int, dict[str, tuple[Tensor, Tensor]]]:
        """(sum of token losses, number of supervised tokens, both numbers for the rows of each modality)."""
        assert batch.supervised is not None and batch.labels is not None, (
            "a training batch without labels"
        )
        embeddings = model.decoder.embed_tokens.weight
        metrics: dict[str, Any] = {}
        if head is None:
            hidden = model(batch)
        else:
            x = model.embed(batch)
            hidden = model.decoder(x, batch, None)
            alignment, metrics = head(x, batch, embeddings)
        labels = batch.labels.index_select(0, batch.supervised)
        hidden = hidden.index_select(0, batch.supervised)
        total, losses = token_loss_sum(hidden, head_of(model), labels)
        if head is not None:
            total = total + self.align * alignment
        return total, len(labels), by_modality(batch, losses, tuple(model.units)) | metrics


def by_modality(
    batch: Batch, losses: Float[Tensor, " Q"], modalities: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum of losses, number) of the supervised positions by the modalities of their row: "loss text", "loss image",
    "loss image and audio" and so on, for all combinations of `modalities`, which are those of the model."""
    assert batch.supervised is not None
    groups = torch.zeros(batch.sequences, dtype=torch.long, device=losses.device)
    for bit, name in enumerate(modalities):
        inputs = batch.inputs.get(name)
        if inputs is not None and inputs.slots is not None:
            sequences = owners(batch, inputs.slots)
            groups += torch.zeros_like(groups).index_fill(0, sequences, 1 << bit)
    number = 1 << len(modalities)
    position_groups = groups.index_select(0, owners(batch, batch.supervised))
    sums = losses.new_zeros(number).index_add(0, position_groups, losses)
    counts = torch.bincount(position_groups, minlength=number)
    names = [
        " and ".join(name for bit, name in enumerate(modalities) if group >> bit & 1) or "text"
        for group in range(number)
    ]
    return {f"loss {name}": (sums[i], counts[i]) for i, name in enumerate(names)}


def owners(batch: Batch, positions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Index of the sequence that each position of a pack belongs to."""
    ends = torch.tensor(batch.cu_seqlens[1:]).to(positions.device, non_blocking=True)
    return torch.searchsorted(ends, positions, right=True)
