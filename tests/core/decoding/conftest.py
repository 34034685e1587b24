"""An engine whose tokenizer knows the sayings of its tests."""

from tests.core.engine.conftest import engine

__all__ = ["engine"]
