"""Encoders in slices: a generator pauses after each layer, so that the caller can do other work in between.

>>> slices = model.image_slices(batch.image_input)
>>> for _ in slices: ...                         # other work between two layers; the generator returns the embeddings
>>> complete(slices)                             # or all that is left at once
"""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Slices = Generator[None, None, T]
"""What pauses after each slice of its work and returns a T."""


def complete(slices: Slices[T]) -> T:
    """Runs all slices that are left, and gives the result."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: T = end.value
            return result
