"""What `polyphi inspect` shows: a model's parts against the report's numbers, and a file of logits for comparison."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from polyphi.chat import Message
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.phi import Phi


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


def write_logits(phi: Phi, request: str | Path, out: str | Path) -> tuple[int, int]:
    """Runs a request; writes `ids` (after placeholder expansion) and `logits` (float32, every position) as
    safetensors.

    `request` is a JSON file: an OpenAI-style list of messages (the generation prompt is added), with media as paths
    relative to the file or data URLs, or `{"ids": [...], "images": [...], "audios": [...]}`. Returns the logits'
    shape.
    """
    request, out = Path(request), Path(out)
    ids, logits = phi.logits(*_read_request(request))
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(out.name + ".partial")
    try:
        save_file({"ids": ids.cpu().contiguous(), "logits": logits.contiguous()}, work)
        work.replace(out)
    finally:
        work.unlink(missing_ok=True)
    return logits.shape[0], logits.shape[1]


def _read_request(path: Path) -> tuple[Sequence[Any], Sequence[Path], Sequence[Path]]:
    if not path.is_file():
        raise ValueError(f"no request file at {path}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    root = path.parent
    if isinstance(value, dict) and "ids" in value:
        images, audios = (
            [root / name for name in value.get(kind, ())] for kind in ("images", "audios")
        )
        return value["ids"], images, audios
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise ValueError(
            f"{path} must hold a list of messages, or an object with ids; found {type(value).__name__}"
        )
    return [Message.parse(m, root) for m in messages], (), ()
