"""Rows to calibrate a quantised model with: conversations and documents like those that it will answer.

>>> rows(processor, [Shards("data/instructions/train"), Shards("data/asr/train")])
"""

from collections.abc import Sequence

from polyphi.batch import Batch
from polyphi.data.shards import Shards
from polyphi.processing.processor import Processor, TooLong

ROWS = 64
"""[ours] Some ten thousand tokens (docs/quantisation.md has what they are good for)."""
CONTEXT = 1024
"""Tokens of a row at most."""


def rows(
    processor: Processor, sources: Sequence[Shards], number: int = ROWS, context: int = CONTEXT
) -> list[Batch]:
    """`number` rows in all, evenly spaced over each source; text is cut off at `context` tokens, rows with pictures or
    clips that don't fit are left out. Raises ValueError where none is left."""
    found: list[Batch] = []
    for source in sources:
        wanted = min(len(source), -(-number // len(sources)))
        for i in range(wanted):
            messages = source[i * len(source) // wanted].messages
            try:
                found.append(processor.row(messages, context=context, truncate=True))
            except TooLong:
                continue
    if not found:
        raise ValueError(
            f"expected rows to calibrate with, found none of at most {context} tokens; name other shards"
        )
    return found
