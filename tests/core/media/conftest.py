"""Encoded images and audio clips, and a small tokenizer."""

from processing.conftest import clip, png, tokenizer  # noqa: F401
