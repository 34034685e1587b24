"""Where every tensor comes from. A stage's `start` maps globs to parents; what a parent doesn't own it resolves
through its own `start`, so each tensor of each model is claimed exactly once, back to the stage that learned it or to
a fresh start.

    joint_1_vision_speech   decoder.layers.0.mlp.down_proj.lora.vision.a  <-  vision_4_multiframe
                            decoder.layers.0.mlp.down_proj.weight         <-  text_4_align
                            audio.projector.vision.up.weight              <-  speech_2_post (audio.projector.speech.up)
"""

import fnmatch
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open

from polyphi import stages
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.train.stage import Stage

IMAGE, AUDIO = "<|endoftext10|>", "<|endoftext11|>"
TRAINED = "trained.safetensors"
LOG_MEL_MEAN, LOG_MEL_INVSTD = (
    16.0,
    0.22,
)  # [ours] roughly those of speech at the front end's scale; fresh encoders start here


@dataclass(frozen=True)
class Origin:
    """`stage` learned the tensor and stored it as `name`; no stage: a fresh start."""

    stage: str | None
    name: str


def _claimed(patterns: Mapping[str, object], name: str) -> str | None:
    """The most specific (longest) glob that matches a name."""
    return max((p for p in patterns if fnmatch.fnmatchcase(name, p)), key=len, default=None)


def origin(name: str, stage: Stage) -> Origin:
    """Where `name` comes from when `stage` starts."""
    if (pattern := _claimed(stage.copy, name)) is not None:
        name = stage.copy[pattern].rstrip("*") + name.removeprefix(pattern.rstrip("*"))
    if (pattern := _claimed(stage.start, name)) is None:
        return Origin(None, name)
    parent = stages.load(stage.start[pattern])
    if _claimed(parent.learn, name) is not None and _part(name) in {"decoder", *parts(parent)}:
        return Origin(parent.name, name)
    return origin(name, parent)


def after(name: str) -> Stage:
    """A stage that learns nothing and starts where `name` ended: for exporting and measuring."""
    return replace(stages.load(name), name=f"after_{name}", start={"*": name}, learn={}, copy={})


def parts(stage: Stage) -> set[str]:
    """What a stage's model is made of beside the decoder: "vision", "audio", and the adapters of that name."""
    found: set[str] = set()
    for glob in (*stage.learn, *stage.start):
        found |= {part for part in ("vision", "audio") if glob.startswith(part + ".")}
        found |= {
            f"lora.{adapter}" for adapter in ("vision", "speech") if f".lora.{adapter}." in glob
        }
    return found.union(*(parts(stages.load(p)) for p in stage.parents)) if stage.parents else found


def _part(name: str) -> str:
    """The part of `parts` that a tensor belongs to: its tower, its adapter, or the decoder."""
    _, adapted, rest = name.partition(".lora.")
    return f"lora.{rest.partition('.')[0]}" if adapted else name.partition(".")[0]


def configuration(stage: Stage, full: ModelConfig, tokenizer: Tokenizer | None) -> ModelConfig:
    """The configuration of a stage's model: the parts it needs, with the ids of its tokenizer (None: as `full` has
    them)."""
    has = parts(stage)
    adapters = {name: config for name, config in full.adapters.items() if f"lora.{name}" in has}
    if tokenizer is None:
        return ModelConfig(
            full.decoder,
            full.vision if "vision" in has else None,
            full.audio if "audio" in has else None,
            adapters,
        )
    end = tokenizer.control("<|endoftext|>")
    decoder = replace(
        full.decoder,
        vocab_size=tokenizer.vocab_size,
        bos_token_id=end,
        pad_token_id=end,
        eos_token_ids=tuple(tokenizer.eos_ids),
    )
    vision = (
        full.vision and replace(full.vision, image_token_id=tokenizer.control(IMAGE))
        if "vision" in has
        else None
    )
    audio = (
        full.audio and replace(full.audio, audio_token_id=tokenizer.control(AUDIO))
        if "audio" in has
        else None
    )
    return ModelConfig(decoder, vision, audio, adapters)


def assemble(
    stage: Stage, config: ModelConfig, runs: Path, seed: int
) -> tuple[PhiModel, dict[str, str]]:
    """The model as `stage` finds it, and for each tensor the stage it came from ("fresh" where none).

    `runs` holds a folder per finished stage. Raises ValueError if a parent hasn't run.
    """
    model = PhiModel(config)
    model.initialise(seed)
    if model.audio is not None:
        model.audio.encoder.global_mean.fill_(LOG_MEL_MEAN)
        model.audio.encoder.global_invstd.fill_(LOG_MEL_INVSTD)
    tensors = dict(model.named_parameters())
    wanted: dict[str, list[tuple[str, str]]] = defaultdict(list)
    origins = {}
    for name in tensors:
        source = origin(name, stage)
        origins[name] = source.stage or "fresh"
        if source.stage is not None:
            wanted[source.stage].append((name, source.name))
        elif source.name != name:
            raise ValueError(
                f"{stage.name} copies {name} from {source.name}, which no stage has learned"
            )
    for parent, pairs in wanted.items():
        path = runs / parent / TRAINED
        if not path.exists():
            raise ValueError(
                f"{stage.name} starts from {parent}, which hasn't run: expected {path}; run `polyphi train {parent}`"
            )
        with safe_open(path, "pt") as stored, torch.no_grad():
            for name, source_name in pairs:
                tensors[name].copy_(stored.get_tensor(source_name))
    return model, origins
