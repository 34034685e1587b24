"""Encoded images and audio clips."""

from processing.conftest import clip, png  # noqa: F401
