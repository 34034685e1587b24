"""Encoded images and audio clips, and a small tokenizer."""

from tests.core.processing.conftest import clip, png, tokenizer  # noqa: F401
