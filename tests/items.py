"""Items of the example's modality, and models that have it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyphi.checkpoints import modalities
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.types.modality import Modality, load_modality
from polyphi.types.parts import Item

FILE = Path(__file__).parents[1] / "examples" / "motion" / "motion.py"
HEADER = "ax,ay,az,gx,gy,gz"


def motion(**changes: Any) -> Modality:
    """The example's modality with other values."""
    modality = load_modality(FILE)
    return replace(modality, file=None, **changes) if changes else modality


def csv(steps: int = 20, seed: int = 0) -> bytes:
    """A series of six channels."""
    values = np.random.default_rng(seed).normal(0, 2, (steps, 6))
    return "\n".join([HEADER, *(",".join(f"{x:.3f}" for x in row) for row in values)]).encode()


def series(steps: int = 20, seed: int = 0) -> Item:
    return Item("motion", csv(steps, seed))


def add_motion(model: PhiModel, processor: Processor, **changes: Any) -> None:
    """Add the modality with an adapter that changes outputs."""
    modality = motion(**changes)
    modalities.create(model, processor, modality, modality.adapter, seed=1)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if f".lora.{modality.name}.b" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
