"""Parameters of each part of a model beside the report's numbers."""

from dataclasses import dataclass

import torch

from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel


@dataclass(frozen=True)
class Part:
    """One part of a model. `report` is the size that the report gives it at full size, None where it gives none."""

    name: str
    parameters: int
    report: float | None


# Name, the report's size (sections 2.1 and 2.2.1), front of the parameters' names. The vision row agrees only with the
# tower's unused last layer and head counted; the audio row lies between one projector and both.
PARTS = (
    ("language model", 3.8e9, "decoder."),
    ("vision encoder and projector", 440e6, "vision."),
    ("vision adapter", 370e6, "lora.vision"),
    ("audio encoder and projectors", 460e6, "audio."),
    ("speech adapter", 460e6, "lora.speech"),
)
TOTAL = 5.6e9
"""The report's size of the whole."""


def parts(config: ModelConfig) -> list[Part]:
    """Parameters of each part, counted on modules without memory; the last row is the sum. Buffers don't count."""
    with torch.device("meta"):
        sizes = {name: parameter.numel() for name, parameter in PhiModel(config).named_parameters()}

    def owner(name: str) -> str:
        if ".lora." in name:
            return "lora." + name.partition(".lora.")[2].partition(".")[0]
        return name.partition(".")[0] + "."

    counted: dict[str, int] = {}
    for name, size in sizes.items():
        counted[owner(name)] = counted.get(owner(name), 0) + size
    rows = [Part(name, counted.pop(prefix, 0), report) for name, report, prefix in PARTS]
    rows += [
        Part(f"{prefix.removeprefix('lora.')} adapter", size, None)
        for prefix, size in counted.items()
    ]
    return [*rows, Part("all", sum(sizes.values()), TOTAL)]
