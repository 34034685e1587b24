"""Rows to calibrate quantization with, and to measure it on: conversations and documents similar to the model's later
input.

>>> rows(processor, [Shards("data/instructions/train"), Shards("data/asr/train")])
"""

from collections.abc import Collection, Sequence

from polyphi.data.shards import Shards
from polyphi.processing.processor import Processor, Supervise, TooLong
from polyphi.types.batch import Batch
from polyphi.types.routing import modalities_of

ROWS = 64
"""[ours] Number of calibration rows, some ten thousand tokens (docs/quantization.md has their effect)."""
CONTEXT = 1024
"""Maximum number of tokens of a row."""


def rows(
    processor: Processor,
    sources: Sequence[Shards],
    number: int = ROWS,
    context: int = CONTEXT,
    *,
    supervise: Supervise | None = None,
    modalities: Collection[str] | None = None,
) -> list[Batch]:
    """Return `number` rows in all, evenly spaced over each source. Text is truncated to `context` tokens; rows with
    images or audio that don't fit are left out, and with `modalities` those with inputs of others. `supervise` as in
    `Processor.row`: by default the rows have no labels. Raises ValueError if no row remains."""
    batches: list[Batch] = []
    for source in sources:
        count = min(len(source), -(-number // len(sources)))
        for i in range(count):
            messages = source[i * len(source) // count].messages
            if modalities is not None and not set(modalities_of(messages)) <= set(modalities):
                continue
            try:
                row = processor.row(messages, supervise=supervise, context=context, truncate=True)
            except TooLong:
                continue
            batches.append(row)
    if not batches:
        raise ValueError(
            f"expected rows of at most {context} tokens that the model can read, found none; name other shards"
        )
    return batches
