"""Phi-4-Mini and Phi-4-Multimodal, end to end: one frozen language model, a mixture of LoRAs, every modality.

>>> import polyphi
>>> phi = polyphi.load("path/or/hub-id")
>>> phi.generate([polyphi.Message.user(polyphi.Image("cat.png"), "What is this?")]).text
"""

from typing import TYPE_CHECKING, Any

from polyphi.messages import (
    Audio,
    Completion,
    Image,
    Item,
    Message,
    SamplingParams,
    Text,
    Transcript,
    Video,
)
from polyphi.modality import Cost, Modality
from polyphi.processing.placeholders import TokensPrompt, parts

if TYPE_CHECKING:
    from polyphi.api import Phi, load

__all__ = [
    "Audio",
    "Completion",
    "Cost",
    "Image",
    "Item",
    "Message",
    "Modality",
    "Phi",
    "SamplingParams",
    "Text",
    "TokensPrompt",
    "Transcript",
    "Video",
    "load",
    "parts",
]


def __getattr__(name: str) -> Any:
    """`load` and `Phi` bring torch and the whole model; they are imported at the first access."""
    if name in {"load", "Phi"}:
        from polyphi import api

        return getattr(api, name)
    raise AttributeError(f"module 'polyphi' has no attribute {name!r}")
