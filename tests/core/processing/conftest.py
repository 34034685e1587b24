"""A small tokenizer and small media, made once."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
from PIL import Image

from polyphi.processing.tokenizer import Tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, 12 times in 1984.",
    "敏捷的棕色狐狸跳过了懒狗。",
    "Le renard brun saute par-dessus le chien paresseux; c'est l'été.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "La volpe marrone salta sopra il cane pigro: perché no?",
    "素早い茶色の狐がのろまな犬を飛び越える。",
    "A rápida raposa marrom pula sobre o cão preguiçoso.",
    "El zorro marrón salta sobre el perro perezoso, ¿verdad?",
]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """One sentence in each of the eight languages."""
    return SENTENCES


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(SENTENCES * 4, 512)


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """Return a function that encodes a noise image of a width and height."""

    def make(width: int, height: int, seed: int = 0, format: str = "PNG") -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(
            out, format, **({"lossless": True} if format == "WEBP" else {})
        )
        return out.getvalue()

    return make


@pytest.fixture(scope="session")
def clip() -> Callable[..., bytes]:
    """Return a function that encodes noise audio."""

    def make(
        samples: int,
        rate: int = 16000,
        channels: int = 1,
        format: str = "WAV",
        subtype: str | None = None,
    ) -> bytes:
        wave = 0.1 * np.random.default_rng(0).standard_normal((samples, channels))
        out = io.BytesIO()
        soundfile.write(out, wave, rate, format=format, subtype=subtype)
        return out.getvalue()

    return make
