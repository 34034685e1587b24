"""How far a model's next tokens are from a reference's: what quantization costs, in the figures that are published.

>>> accuracy = compare(reference, model, rows)
>>> accuracy.whole.kl, accuracy.modalities["text"].same_token
(0.0033, 0.973)

Each supervised position of the rows is a prediction of the next token. Of it the Kullback-Leibler divergence of the
model's distribution from the reference's is measured, in nats, whether both have the same most likely token, and the
probability of the token in the row. Hidden states of one row at a time are in memory, and logits of CHUNK positions:
those of the published vocabulary take 0.8 MB a position.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polyphi.model.multimodal import PhiModel
from polyphi.types.accuracy import Accuracy, Difference
from polyphi.types.batch import Batch

CHUNK = 64
"""Positions whose logits are in memory. From 128 on the head of an int4 model is multiplied in another way, which
prompts need and decode steps don't (docs/quantization.md)."""
TAIL = 0.999
"""Quantile of the divergence that is reported beside its mean."""
TEXT, NO_ADAPTER = "text", "none"


@torch.inference_mode()
def compare(
    reference: PhiModel,
    model: PhiModel,
    rows: Sequence[Batch],
    *,
    parts: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Accuracy:
    """The difference of a model from a reference over the supervised positions of rows of one sequence each, as
    `polyphi.data.calibration.rows` makes them with `supervise`. Each model runs in its own dtype and on its own device;
    log-probabilities are in float32. An adapter that one of the models lacks is left out there, as at inference. With
    `parts` also of the reference with one layer of the model, and with its head. `progress` is called with the number
    of rows that are measured.

    Raises ValueError for models of different vocabularies, for `parts` of models with different numbers of layers, for
    rows without supervised positions, and for logits that aren't finite.
    """
    a, b = reference.config.decoder, model.config.decoder
    if a.vocab_size != b.vocab_size:
        raise ValueError(
            f"expected two models with one vocabulary, found {a.vocab_size:,} and {b.vocab_size:,} tokens"
        )
    sizes = [(config.num_hidden_layers, config.hidden_size) for config in (a, b)]
    if parts and sizes[0] != sizes[1]:
        raise ValueError(
            f"the layers of a model replace those of the reference; expected {sizes[0][0]} layers of width "
            f"{sizes[0][1]}, found {sizes[1][0]} of width {sizes[1][1]}"
        )
    measured: list[tuple[str, str, dict[str, Tensor]]] = []
    """Modality and adapter of a row, and values [4 Q] of the whole ("") and of each part."""
    for number, row in enumerate(rows, 1):
        assert row.sequences == 1, "a row has one sequence"
        if row.labels is not None and row.supervised is not None and len(row.supervised):
            values = _values(reference, model, row, parts)
            if not all(torch.isfinite(one).all() for one in values.values()):
                raise ValueError(
                    f"expected finite logits, found others in row {number} of {len(rows)}; load the models in another "
                    "dtype, or check the checkpoint"
                )
            measured.append(("+".join(row.inputs) or TEXT, row.adapters[0] or NO_ADAPTER, values))
        progress(number)
    if not measured:
        raise ValueError(
            "expected rows with supervised positions, found none; name documents, or conversations with answers"
        )

    def over(part: str = "", modality: str | None = None, adapter: str | None = None) -> Difference:
        selected = [
            values[part]
            for name, own, values in measured
            if modality in (None, name) and adapter in (None, own)
        ]
        return summary(torch.cat(selected, 1))

    return Accuracy(
        over(),
        {name: over(modality=name) for name in dict.fromkeys(one for one, _, _ in measured)},
        {name: over(adapter=name) for name in dict.fromkeys(one for _, one, _ in measured)},
        {name: over(name) for name in measured[0][2] if name},
    )


def _values(
    reference: PhiModel, model: PhiModel, row: Batch, parts: bool
) -> dict[str, Float[Tensor, "4 Q"]]:
    """`distances` of a row's supervised positions, of the whole model ("") and of its parts."""
    first, second = _own_row(reference, row), _own_row(model, row)
    assert first.supervised is not None and second.supervised is not None
    assert first.labels is not None
    expected = reference(first)[first.supervised]
    states = {"": (model(second)[second.supervised], model)}
    if parts:
        layers = _with_one_layer(reference, model, first, second)
        states |= {f"layer {i}": (hidden, reference) for i, hidden in enumerate(layers)}
        # The norm before the head isn't quantized: its output is the reference's.
        states["head"] = (expected.to(model.decoder.device, model.decoder.dtype), model)
    labels = first.labels[first.supervised]
    values: dict[str, list[Tensor]] = {name: [] for name in states}
    for start in range(0, len(labels), CHUNK):
        chunk = slice(start, start + CHUNK)
        p = reference.logits(expected[chunk]).float().log_softmax(-1)
        for name, (hidden, head) in states.items():
            logits = head.logits(hidden[chunk]).to(p.device)
            q = logits.float().log_softmax(-1)
            values[name].append(distances(p, q, labels[chunk]).cpu())
    return {name: torch.cat(chunks, 1) for name, chunks in values.items()}


def _own_row(model: PhiModel, row: Batch) -> Batch:
    """A row on a model's device, without an adapter that the model lacks."""
    adapters = tuple(name if name in model.config.adapters else None for name in row.adapters)
    return replace(row.to(model.decoder.device), adapters=adapters)


def _with_one_layer(
    reference: PhiModel, model: PhiModel, first: Batch, second: Batch
) -> list[Float[Tensor, "Q D"]]:
    """Hidden states of the reference at the supervised positions with each layer of the model in turn. `first` and
    `second` are the row of the two models."""
    own, other = reference.decoder, model.decoder
    assert first.supervised is not None
    x = reference.embed(first)
    context = own.context(x, first)
    other_context = other.context(x.to(other.device, other.dtype), second)
    states = []
    for number, layer in enumerate(own.layers):
        y = other.layers[number](x.to(other.device, other.dtype), other_context, number).to(x)
        for later in range(number + 1, len(own.layers)):
            y = own.layers[later](y, context, later)
        states.append(own.norm(y)[first.supervised])
        x = layer(x, context, number)
    return states


def distances(
    p: Float[Tensor, "n V"], q: Float[Tensor, "n V"], labels: Int[Tensor, " n"]
) -> Float[Tensor, "4 n"]:
    """Of the log-probabilities `p` of the reference and `q` of a model: the divergence, 1 for the same most likely
    token or else 0, and the negative log-probabilities of the labels under both."""
    kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)  # rounding can give -1e-8
    same = (p.argmax(-1) == q.argmax(-1)).float()
    losses = [-one.gather(1, labels[:, None]).squeeze(1) for one in (p, q)]
    return torch.stack([kl, same, *losses])


def summary(values: Float[Tensor, "4 n"]) -> Difference:
    """The difference over positions with the values of `distances`."""
    kl, same, reference_loss, loss = values.double()
    return Difference(
        positions=len(kl),
        kl=float(kl.mean()),
        kl_tail=float(kl.quantile(TAIL)),
        same_token=float(same.mean()),
        perplexity=float(loss.mean().exp()),
        perplexity_ratio=float((loss.mean() - reference_loss.mean()).exp()),
    )
