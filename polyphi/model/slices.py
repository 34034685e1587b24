"""Encoders in slices: a generator that yields after each layer, so that the caller can do other work in between.

>>> slices = model.image_slices(batch.image_input)
>>> for _ in slices: ...                         # other work between two layers; the generator returns the embeddings
>>> complete(slices)                             # or run all remaining slices at once
"""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Slices = Generator[None, None, T]
"""A generator that yields after each slice of its work and returns a T."""


def complete(slices: Slices[T]) -> T:
    """Run all remaining slices and return the result."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: T = end.value
            return result
