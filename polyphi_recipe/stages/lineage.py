"""The origin of every tensor. A stage's `start` maps globs to parents; a tensor that a parent didn't train is resolved
through the parent's `start`, so each tensor of each model has exactly one origin: the stage that trained it, or a fresh
initialisation.

    joint_1_vision_speech   decoder.layers.0.mlp.down_proj.lora.vision.a  <-  vision_4_multiframe
                            decoder.layers.0.mlp.down_proj.weight         <-  text_4_align
                            audio.projector.vision.up.weight              <-  speech_2_post (audio.projector.speech.up)
"""

import fnmatch
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open

from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.train.stage import Stage
from polyphi_recipe import stages

IMAGE, AUDIO = "<|endoftext10|>", "<|endoftext11|>"
TRAINED = "trained.safetensors"
EXPORTS = {
    "mini": ("text_4_align", "mini"),
    "reasoning": ("reasoning_3_dpo", "mini"),
    "model": ("joint_1_vision_speech", "native"),
}
"""Folder of a run with an exported model -> the stage after which it is exported, and its layout."""
LOG_MEL_MEAN, LOG_MEL_INVSTD = (
    16.0,
    0.22,
)  # [ours] approximate values of speech for our log-mel scale; those of fresh encoders


@dataclass(frozen=True)
class Origin:
    """The stage that trained a tensor and stored it as `name`; stage None: freshly initialised."""

    stage: str | None
    name: str


def _longest_match(patterns: Mapping[str, object], name: str) -> str | None:
    """The longest glob that matches a name, None for none."""
    return max((p for p in patterns if fnmatch.fnmatchcase(name, p)), key=len, default=None)


def origin(name: str, stage: Stage) -> Origin:
    """The origin of the tensor `name` at the start of `stage`."""
    if (pattern := _longest_match(stage.copy, name)) is not None:
        name = stage.copy[pattern].rstrip("*") + name.removeprefix(pattern.rstrip("*"))
    if (pattern := _longest_match(stage.start, name)) is None:
        return Origin(None, name)
    parent = stages.load(stage.start[pattern])
    if _longest_match(parent.trainable, name) is not None and _part(name) in {
        "decoder",
        *parts(parent),
    }:
        return Origin(parent.name, name)
    return origin(name, parent)


def stages_of(name: str) -> list[str]:
    """The stage `name` and those before it that its model comes from, in the recipe's order."""
    before = {name}.union(*(stages_of(parent) for parent in stages.load(name).parents))
    return [stage for stage in stages.ORDER if stage in before]


def after(name: str) -> Stage:
    """A stage without trainable parameters that starts from the end of `name`, for exports and evaluations."""
    return replace(
        stages.load(name), name=f"after_{name}", start={"*": name}, trainable={}, copy={}
    )


def parts(stage: Stage) -> set[str]:
    """The parts of a stage's model besides the decoder: "vision", "audio", "lora.vision", "lora.speech"."""
    names: set[str] = set()
    for glob in (*stage.trainable, *stage.start):
        names |= {part for part in ("vision", "audio") if glob.startswith(part + ".")}
        names |= {
            f"lora.{adapter}" for adapter in ("vision", "speech") if f".lora.{adapter}." in glob
        }
    return names.union(*(parts(stages.load(p)) for p in stage.parents)) if stage.parents else names


def _part(name: str) -> str:
    """The part of `parts` that a tensor belongs to: its tower, its adapter, or the decoder."""
    _, adapted, suffix = name.partition(".lora.")
    return f"lora.{suffix.partition('.')[0]}" if adapted else name.partition(".")[0]


def configuration(stage: Stage, full: ModelConfig, tokenizer: Tokenizer | None) -> ModelConfig:
    """The configuration of a stage's model: the parts that it needs, with the token ids of its tokenizer (None: those
    of `full`)."""
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
    stage: Stage,
    config: ModelConfig,
    runs: Path,
    seed: int,
    device: torch.device | str = "cpu",
    untrained: Sequence[str] = (),
) -> tuple[PhiModel, dict[str, str]]:
    """(the model at the start of `stage`, on `device`; the stage of origin of each tensor, "fresh" for none).

    `runs` holds a folder per finished stage; tensors that match a glob of `untrained` are fresh in all of them. Raises
    ValueError if a parent hasn't run.
    """
    model = PhiModel(config)
    model.initialise(seed)
    if model.audio is not None:
        model.audio.encoder.global_mean.fill_(LOG_MEL_MEAN)
        model.audio.encoder.global_invstd.fill_(LOG_MEL_INVSTD)
    tensors = dict(model.named_parameters())
    by_parent: dict[str, list[tuple[str, str]]] = defaultdict(list)
    origins = {}
    for name in tensors:
        source = origin(name, stage)
        if any(fnmatch.fnmatchcase(name, glob) for glob in untrained):
            source = Origin(None, name)
        origins[name] = source.stage or "fresh"
        if source.stage is not None:
            by_parent[source.stage].append((name, source.name))
        elif source.name != name:
            raise ValueError(
                f"{stage.name} copies {name} from {source.name}, which no earlier stage trains"
            )
    for parent, pairs in by_parent.items():
        path = runs / parent / TRAINED
        if not path.exists():
            raise ValueError(
                f"{stage.name} starts from {parent}, which hasn't run: expected {path}; run `polyphi train {parent}`"
            )
        with safe_open(path, "pt") as stored, torch.no_grad():
            for name, source_name in pairs:
                tensors[name].copy_(stored.get_tensor(source_name))
    return model.to(device), origins
