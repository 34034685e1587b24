"""Phi-4-Mini and Phi-4-Multimodal, end to end: one frozen language model, a mixture of LoRAs, every modality.

>>> import polyphi
>>> phi = polyphi.load("path/or/hub-id")
>>> phi.generate("Hello").text
>>> phi.generate("What is this?", images=["cat.png"], max_tokens=40).text
>>> phi.transcribe("talk.wav").text

`help(polyphi.load)` and `help(polyphi.Phi)` document the options; docs/chat.md and docs/api.md have them as pages.
"""

from typing import TYPE_CHECKING, Any

from polyphi.processing.placeholders import TokensPrompt, parts
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.modality import Cost, Modality
from polyphi.types.parts import Audio, Document, Image, Item, Text, Video
from polyphi.types.sampling import SamplingParams
from polyphi.types.transcript import Transcript

if TYPE_CHECKING:
    from polyphi.api import Phi, load

__all__ = [
    "Audio",
    "Completion",
    "Cost",
    "Document",
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
    if name == "__version__":
        from importlib.metadata import version

        return version("polyphi")
    raise AttributeError(f"module 'polyphi' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__version__"]
