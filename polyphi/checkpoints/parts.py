"""Numbers of parameters of each part of a model, compared with the report's."""

from dataclasses import dataclass

import torch

from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel


@dataclass(frozen=True)
class Component:
    """A part of a model and its number of parameters. `report` is the number in the report at full size, else None."""

    name: str
    parameters: int
    report: float | None


# Name, the report's size (sections 2.1 and 2.2.1), prefix of the parameters' names. The vision row agrees only if the
# tower's unused last layer and head are counted; the audio row is between one projector and both.
PARTS = (
    ("language model", 3.8e9, "decoder."),
    ("vision encoder and projector", 440e6, "vision."),
    ("vision adapter", 370e6, "lora.vision"),
    ("audio encoder and projectors", 460e6, "audio."),
    ("speech adapter", 460e6, "lora.speech"),
)
TOTAL = 5.6e9
"""The report's size of the whole model."""


def parts(config: ModelConfig) -> list[Component]:
    """Parameters of each part, counted on the meta device; the last row is the sum. Buffers aren't counted."""
    with torch.device("meta"):
        sizes = {name: parameter.numel() for name, parameter in PhiModel(config).named_parameters()}

    def prefix_of(name: str) -> str:
        if ".lora." in name:
            return "lora." + name.partition(".lora.")[2].partition(".")[0]
        return name.partition(".")[0] + "."

    counts: dict[str, int] = {}
    for name, size in sizes.items():
        counts[prefix_of(name)] = counts.get(prefix_of(name), 0) + size
    rows = [Component(name, counts.pop(prefix, 0), report) for name, report, prefix in PARTS]
    for prefix, size in counts.items():  # of further adapters and modalities
        of_adapter = prefix.removeprefix("lora.")
        tower = f"{prefix.removesuffix('.')} encoder and projector"
        name = tower if of_adapter == prefix else f"{of_adapter} adapter"
        rows.append(Component(name, size, None))
    return [*rows, Component("all", sum(sizes.values()), TOTAL)]


PREFIXES = {
    "language model": "decoder.",
    "vision encoder": "vision.encoder.",
    "vision projector": "vision.projector.",
    "LoRA for vision": "lora.vision",
    "audio encoder": "audio.encoder.",
    "audio projector": "audio.projector.",
    "LoRA for speech": "lora.speech",
    "auxiliary head": "objective.",
}
"""Parts that stages train, in the order in which they are shown, and how the names of their parameters begin."""


def part_of(name: str) -> tuple[str, ...]:
    """The parts that a parameter name, or a glob over parameter names, belongs to: "vision.*" -> encoder and
    projector."""
    if ".lora." in name:
        return tuple(
            part
            for part, prefix in PREFIXES.items()
            if prefix.startswith("lora.") and prefix in name
        )
    stem = name.partition("*")[0]
    return tuple(
        part
        for part, prefix in PREFIXES.items()
        if not prefix.startswith("lora.") and (stem.startswith(prefix) or prefix.startswith(stem))
    )
