"""Calibration rows for quantization: conversations and documents similar to the model's later input.

>>> rows(processor, [Shards("data/instructions/train"), Shards("data/asr/train")])
"""

from collections.abc import Sequence

from polyphi.data.shards import Shards
from polyphi.processing.processor import Processor, TooLong
from polyphi.types.batch import Batch

ROWS = 64
"""[ours] Number of calibration rows, some ten thousand tokens (docs/quantization.md has their effect)."""
CONTEXT = 1024
"""Maximum number of tokens of a row."""


def rows(
    processor: Processor, sources: Sequence[Shards], number: int = ROWS, context: int = CONTEXT
) -> list[Batch]:
    """Return `number` rows in all, evenly spaced over each source. Text is truncated to `context` tokens; rows with
    images or audio that don't fit are left out. Raises ValueError if no row remains."""
    batches: list[Batch] = []
    for source in sources:
        count = min(len(source), -(-number // len(sources)))
        for i in range(count):
            messages = source[i * len(source) // count].messages
            try:
                batches.append(processor.row(messages, context=context, truncate=True))
            except TooLong:
                continue
    if not batches:
        raise ValueError(
            f"expected rows to calibrate with, found none of at most {context} tokens; name other shards"
        )
    return batches
