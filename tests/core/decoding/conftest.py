"""An engine whose tokenizer knows the sayings of its tests."""

from engine.conftest import engine, tokenizer  # noqa: F401
