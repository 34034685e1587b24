"""An engine whose tokenizer knows the sayings of its tests."""

from engine.conftest import engine

__all__ = ["engine"]
