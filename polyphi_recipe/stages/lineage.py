"""The origin of every tensor. A stage's `start` maps globs to parents; a tensor that a parent didn't train is resolved
through the parent's `start`, so each tensor of each model has exactly one origin: the stage that trained it, the part
that stands for this stage (parts.py), or a fresh initialization.

    joint_1_vision_speech   decoder.layers.0.mlp.down_proj.lora.vision.a  <-  vision_4_multiframe
                            decoder.layers.0.mlp.down_proj.weight         <-  text_4_align
                            audio.projector.vision.up.weight              <-  speech_2_post (audio.projector.speech.up)
"""

import difflib
import fnmatch
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.train.checkpoint import TRAINED, read_trained
from polyphi.train.stage import Stage
from polyphi_recipe import stages

EXPORTED = {
    "mini": ("text_4_align", "mini"),
    "reasoning": ("reasoning_3_dpo", "mini"),
    "model": ("joint_1_vision_speech", "native"),
}
"""Folder of a run with an exported model -> the stage after which it is exported, and its layout."""
PartTensors = Mapping[str, Tensor]
"""The tensors of a part by our names (parts.py), mapped into memory."""
REPLACED = {
    "decoder": ("text_1_pretrain", "text_2_long", "text_3_post", "text_4_align"),
    "vision": ("vision_0_encoder",),
    "audio": ("speech_0_aed",),
}
"""Part of a recipe file -> the stages whose result it stands for."""


@dataclass(frozen=True)
class Origin:
    """The stage that trained a tensor and stored it as `name`, or the part of `Lineage.parts` that has it; None for
    both: freshly initialized."""

    stage: str | None
    name: str
    part: str | None = None

    def __str__(self) -> str:
        return self.part or self.stage or "fresh"


def _longest_match(patterns: Mapping[str, object], name: str) -> str | None:
    """The longest glob that matches a name, None for none."""
    return max((p for p in patterns if fnmatch.fnmatchcase(name, p)), key=len, default=None)


def _part(name: str) -> str:
    """The part of `Lineage.parts_of` that a tensor belongs to: its tower, its adapter, or the decoder."""
    _, adapted, suffix = name.partition(".lora.")
    return f"lora.{suffix.partition('.')[0]}" if adapted else name.partition(".")[0]


@dataclass(frozen=True)
class Lineage:
    """The stages of a run by name, in an order in which parents come first, and the parts that stand for the results of
    some of them: a part's tensors are those that these stages would have trained."""

    stages: Mapping[str, Stage]
    parts: Mapping[str, PartTensors] = field(default_factory=dict)

    def stage(self, name: str) -> Stage:
        """The stage with the given name. Raises ValueError with the nearest name for an unknown one."""
        if name not in self.stages:
            near = difflib.get_close_matches(name, self.stages, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"unknown stage {name!r}; did you mean {near!r}? The stages are: {', '.join(self.stages)}"
            )
        return self.stages[name]

    def replacement(self, name: str) -> str | None:
        """The name of the part that stands for a stage's result, None for none."""
        return next((part for part in self.parts if name in REPLACED[part]), None)

    def origin(self, name: str, stage: Stage) -> Origin:
        """The origin of the tensor `name` at the start of `stage`."""
        if (pattern := _longest_match(stage.copy, name)) is not None:
            name = stage.copy[pattern].rstrip("*") + name.removeprefix(pattern.rstrip("*"))
        if (pattern := _longest_match(stage.start, name)) is None:
            return Origin(None, name)
        source = stage.start[pattern]
        part = source if source in self.parts else self.replacement(source)
        if part is not None and name in self.parts[part]:
            return Origin(None, name, part)
        if source in self.parts:
            return Origin(None, name)
        parent = self.stage(source)
        if _longest_match(parent.trainable, name) is not None and _part(name) in {
            "decoder",
            *self.parts_of(parent),
        }:
            if part is not None:
                raise ValueError(f"the part {part} lacks {name}, which {stage.name} needs")
            return Origin(parent.name, name)
        return self.origin(name, parent)

    def stages_of(self, name: str) -> list[str]:
        """The stage `name` and those before it that its model comes from and that aren't replaced by a part, in
        order."""
        before = {name}.union(*(self.stages_of(parent) for parent in self.parents(name)))
        return [stage for stage in self.stages if stage in before]

    def parents(self, name: str) -> list[str]:
        """The stages that a stage starts from, without those that a part replaces."""
        parents = self.stage(name).parents
        return [p for p in parents if p not in self.parts and self.replacement(p) is None]

    def after(self, name: str) -> Stage:
        """A stage without trainable parameters that starts from the end of `name`, for exports and evaluations."""
        return replace(
            self.stage(name), name=f"after_{name}", start={"*": name}, trainable={}, copy={}
        )

    def parts_of(self, stage: Stage) -> set[str]:
        """The parts of a stage's model besides the decoder: "vision", "audio", "lora.vision", "lora.speech"."""
        names = {_part(glob) for glob in (*stage.trainable, *stage.start)}
        names = {name for name in names if "*" not in name} - {"decoder", "objective"}
        parents = [self.stage(p) for p in stage.parents if p not in self.parts]
        return names.union(*map(self.parts_of, parents))

    def configuration(
        self, stage: Stage, full: ModelConfig, tokenizer: Tokenizer | None
    ) -> ModelConfig:
        """The configuration of a stage's model: the parts that it needs, with the token ids of its tokenizer (None:
        those of `full`). A decoder that is a part keeps its number of embeddings, which may exceed the tokenizer's."""
        config = full.only(self.parts_of(stage))
        if tokenizer is None:
            return config
        if "decoder" not in self.parts:
            end = tokenizer.control(tokenizer.marks.document_end)
            decoder = replace(
                config.decoder,
                vocab_size=tokenizer.vocab_size,
                bos_token_id=end,
                pad_token_id=end,
                eos_token_ids=tuple(tokenizer.eos_ids),
            )
            config = replace(config, decoder=decoder)
        return config.with_placeholders(
            {name: tokenizer.placeholder(name) for name in config.towers}
        )

    def assemble(
        self,
        stage: Stage,
        config: ModelConfig,
        runs: Path,
        seed: int,
        device: torch.device | str = "cpu",
        untrained: Sequence[str] = (),
    ) -> tuple[PhiModel, dict[str, str]]:
        """(the model at the start of `stage`, on `device`; the origin of each parameter: a stage, a part, or "fresh").

        `runs` holds a folder per finished stage; tensors that match a glob of `untrained` are fresh in all of them.
        Raises ValueError if a parent hasn't run.
        """
        model = PhiModel(config)
        model.initialise(seed)
        parameters = {name for name, _ in model.named_parameters()}
        by_source: dict[str, list[tuple[str, str]]] = defaultdict(list)
        origins = {}
        for (
            name
        ) in model.state_dict():  # with the statistics of the audio encoder, which are buffers
            source = self.origin(name, stage)
            if any(fnmatch.fnmatchcase(name, glob) for glob in untrained):
                source = Origin(None, name)
            if name not in parameters and source.part is None:
                continue  # stages have no buffers: all have the values above
            if name in parameters:
                origins[name] = str(source)
            if source.part or source.stage:
                by_source[str(source)].append((name, source.name))
            elif source.name != name:
                raise ValueError(
                    f"{stage.name} copies {name} from {source.name}, which no earlier stage trains"
                )
        for source_name, pairs in by_source.items():
            if source_name in self.parts:
                self._copy_part(model, source_name, pairs)
                continue
            path = runs / source_name / TRAINED
            if not path.exists():
                raise ValueError(
                    f"{stage.name} starts from {source_name}, which hasn't run: expected {path}; "
                    f"run `polyphi train {source_name}`"
                )
            tensors = dict(model.named_parameters())
            stored = read_trained(path.parent, {stored_name for _, stored_name in pairs})
            with torch.no_grad():
                for name, stored_name in pairs:
                    tensors[name].copy_(stored[stored_name])
        return model.to(device), origins

    def _copy_part(self, model: PhiModel, part: str, pairs: Sequence[tuple[str, str]]) -> None:
        """Copy a part's tensors into a model, each with the dtype in which the part has it."""
        for name, part_name in pairs:
            tensor = self.parts[part][part_name]
            module, _, leaf = name.rpartition(".")
            old = getattr(model.get_submodule(module), leaf)
            if old.shape != tensor.shape:
                raise ValueError(
                    f"the part {part} has {part_name} of shape {list(tensor.shape)}, expected {list(old.shape)}"
                )
            old.data = tensor.clone()


BUILT_IN = Lineage(stages.BUILT_IN)
"""The report's sixteen stages, without parts."""
