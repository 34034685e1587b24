"""The size of a user's rows in tokens, and the number of steps in which each of them is used a number of times."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyphi.data.sample import Sample
from polyphi.data.shards import Shards
from polyphi.processing.processor import Processor
from polyphi.runtime import progress
from polyphi.train.preference import DPO
from polyphi.train.stage import Stage
from polyphi.types.messages import Message
from polyphi.types.parts import Text

COUNTED_ROWS = 5000
"""Rows of a corpus whose tokens are counted; of a larger one these are spread evenly, and each stands for those beside
it."""


@dataclass(frozen=True)
class RowTokens:
    """The tokens of each counted row of a corpus, in order, and the number of `rows` of the corpus. A row that is
    longer than the context has 0: it is left out."""

    counted: Sequence[int]
    rows: int

    @property
    def total(self) -> float:
        """Tokens of all rows."""
        return sum(self.counted) * self.rows / len(self.counted)

    @property
    def longest(self) -> int:
        """Number of the longest counted row, among the counted ones."""
        return max(range(len(self.counted)), key=self.counted.__getitem__)

    def index(self, number: int) -> int:
        """The index in the corpus of a counted row."""
        return number * self.rows // len(self.counted)

    def __iter__(self) -> Iterator[int]:
        """The tokens of each row, counted or not."""
        for i in range(self.rows):
            yield self.counted[i * len(self.counted) // self.rows]


def row_tokens(stage: Stage, processor: Processor, data: Path) -> dict[str, RowTokens]:
    """The tokens of the rows of each corpus of a stage's mix in the folder `data`. Only the headers of images and audio
    are read."""
    counts = {}
    for corpus in stage.data.weights:
        shards = Shards(data / corpus / "train")
        number = min(len(shards), COUNTED_ROWS)
        indices = (i * len(shards) // number for i in range(number))
        with progress.progress(f"counting tokens of {corpus}", number) as advance:
            tokens = []
            for index in indices:
                tokens.append(_tokens(stage, processor, shards.sample(index)))
                advance(len(tokens), "")
        counts[corpus] = RowTokens(tokens, len(shards))
    return counts


def check_parts(stage: Stage, processor: Processor, sample: Sample) -> None:
    """Raise ValueError for a sample with a part that this model can't read, such as a picture that is too thin for its
    crops. Parts of users' modalities are left out: own.py has read them."""
    max_crops = getattr(stage.objective, "max_crops", None)
    for message in sample.messages:
        for part in message.parts:
            if not isinstance(part, Text) and part.modality in processor.readers:
                processor.readers[part.modality].tokens(part, max_crops)


def _tokens(stage: Stage, processor: Processor, sample: Sample) -> int:
    """Tokens of a sample's rows, 0 if one is longer than the context; a document is cut at the context."""
    conversations = [sample.messages]
    if isinstance(stage.objective, DPO):
        rejected = str(sample.meta.get("rejected", ""))
        conversations.append((*sample.prompt, Message.assistant(rejected)))
    max_crops = getattr(stage.objective, "max_crops", None)
    tokens = [
        processor.count(messages, generation_prompt=False, max_crops=max_crops).total
        for messages in conversations
    ]
    if sample.messages[0].role == "document":
        return min(tokens[0], stage.context)
    return 0 if max(tokens) > stage.context else sum(tokens)


def epoch_steps(rows: Mapping[str, RowTokens], batch_tokens: int) -> float:
    """The steps, with a fraction, in which as many samples are drawn as there are rows. A step takes rows while they
    fit `batch_tokens`, as the loader's do, whose order is another one: a few rows more or less may fit. Raises
    ValueError where no row fits the context."""
    sizes = [size for corpus in rows.values() for size in corpus if size]
    if not sizes:
        raise ValueError(f"{', '.join(rows)}: every row is longer than the stage's context")
    steps, tokens = 0, 0
    for size in sizes:
        if tokens and tokens + size > batch_tokens:
            steps, tokens = steps + 1, 0
        tokens += size
    return steps + min(1.0, tokens / batch_tokens)


def steps_of(epochs: float, rows: Mapping[str, RowTokens], batch_tokens: int) -> int:
    """The steps that draw at least `epochs` times as many samples as there are rows; the last one is filled with rows
    of the next epoch."""
    return max(1, math.ceil(epochs * epoch_steps(rows, batch_tokens) - 1e-6))
