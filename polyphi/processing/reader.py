"""A reader makes the inputs of one modality's encoder from the parts of messages; the processor has one for each.

Counting reads headers where the format has them; what a row needs is decoded when the row is known to fit.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, tensor

from polyphi.media.media import Caps, MediaError
from polyphi.runtime.fork_server import ForkServer
from polyphi.runtime.steps import Steps
from polyphi.types.inputs.encoder import Inputs
from polyphi.types.parts import Media


@dataclass
class Decoding:
    """The settings of decoding media: its limits, and the separate processes (isolated.py) if there are any. Both may
    be changed later, for all readers of a processor."""

    caps: Caps
    decoders: ForkServer | None = None


@dataclass(frozen=True)
class Placeholder:
    """A part of a conversation that is no text, its index `number` among those of its modality, its number of tokens,
    and what its reader has read of it so far."""

    part: Media
    number: int
    tokens: int
    content: Any


class Reader(ABC):
    """Reads the parts of a modality. `max_crops` is the limit on crops that a row may have; only images have crops."""

    modality: str
    reads_whole: ClassVar[bool] = True
    """Whether `placeholder` reads a whole part, and not only its header."""

    @abstractmethod
    def placeholder(self, part: Any, number: int, max_crops: int | None) -> Placeholder:
        """Return the tokens of a part. Raises `MediaError` if it can't be read."""

    @abstractmethod
    def tokens(self, part: Any, max_crops: int | None) -> int:
        """Return the number of tokens of a part, from its header if that is enough."""

    @abstractmethod
    def size(self, part: Any, max_crops: int | None) -> tuple[int, int]:
        """Return (bytes of what the encoder reads, pixels) of a part, from its header if that is enough; the bytes may
        be approximate."""

    def least_tokens(self, part: Any, available: int) -> int:
        """Return the fewest tokens that a part has by its header, so that one with more than `available` is refused
        before `placeholder` reads it whole. 0 where the header doesn't say, or no part has so many."""
        return 0

    @abstractmethod
    def inputs(
        self, items: Sequence[Placeholder], slots: Sequence[int], modalities: Collection[str]
    ) -> Steps[Inputs]:
        """Return the inputs of a row's parts, with a step for each that is decoded. `modalities` are all that the row
        has."""


def positions(slots: Sequence[int]) -> Tensor:
    return tensor(list(slots))


@contextmanager
def number_in_errors(modality: str, number: int) -> Iterator[None]:
    """Add modality and number of a part to errors; messages of libraries are replaced."""
    try:
        yield
    except MediaError as error:
        error.part, error.number = modality, number
        raise
    except ValueError as cause:
        error_ = MediaError(
            f"{modality} {number} of the conversation can't be read; is it damaged?"
        )
        error_.part, error_.number = modality, number
        raise error_ from cause
