"""Models after finished stages of a run, as they are exported, evaluated and used by corpora."""

from collections import Counter
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import nn

from polyphi.api import Phi
from polyphi.data.shards import Shards
from polyphi.devices import placement
from polyphi.devices.memory import free_memory
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.quantization.quantize import quantize
from polyphi.runtime.files import whole_folder
from polyphi.train.aed import Recognizer
from polyphi.train.checkpoint import read_trained
from polyphi.train.contrastive import Similarity
from polyphi_recipe.graph import tokenizer
from polyphi_recipe.graph.folder import RunFolder
from polyphi_recipe.recipe.recipe import Recipe


class Models:
    """The models after finished stages of a run, whose tokenizer is loaded once, when the first one needs it."""

    def __init__(self, recipe: Recipe, folder: RunFolder, seed: int) -> None:
        self.recipe, self.folder, self.seed = recipe, folder, seed

    @cached_property
    def processor(self) -> Processor:
        """The processor of all models. The tokenizer must be built."""
        return tokenizer.load_processor(self.recipe, self.folder)

    def after(self, stage: str) -> PhiModel:
        """The model after a stage, with the dtypes in which its tensors are stored."""
        lineage, end = self.recipe.lineage, self.recipe.lineage.after(stage)
        config = lineage.configuration(end, self.recipe.size.model, self.processor.tokenizer)
        return lineage.assemble(end, config, self.folder.stages, self.seed)[0].eval()

    def exported(self, stage: str) -> PhiModel:
        """The model after a stage as it is exported and evaluated: with the dtype of its decoder, which a part may have
        in bfloat16 beside trained tensors in float32."""
        model = self.after(stage)
        return model.to(model.decoder.dtype)

    def phi(self, stage: str, quant: str | None = None) -> Phi:
        """A `Phi` with the model after a stage, as `polyphi.load` would place the exported one; with `quant` it is
        quantized."""
        model = self.exported(stage)
        if (dtype := dtype_for(model, quant)) is not None:
            model = model.to(dtype)
        return Phi(quantize(model, quant) if quant else model, self.processor)

    def recognizer(self) -> Recognizer:
        """The recognizer after speech_0, which is exported if it isn't yet."""
        folder = self.folder.path / "recogniser"
        if not folder.exists():
            trained = read_trained(self.folder.stages / "speech_0_aed")
            recognizer = Recognizer.from_stage(self.after("speech_0_aed"), trained, self.processor)
            with whole_folder(folder) as partial:
                recognizer.save(partial)
        return Recognizer.load(folder, self.processor)

    def for_corpora(self, stage: str) -> Any:
        """A stage's model as corpora use it: the recognizer's `transcribe_bytes` after speech_0, the `Similarity` of
        images and captions after vision_0, else a `Phi` with the language model."""
        if stage == "speech_0_aed":
            return self.recognizer().transcribe_bytes
        if stage == "vision_0_encoder":
            trained = read_trained(self.folder.stages / stage)
            captions = (
                s.answer for s in islice(Shards(self.folder.data / "captions" / "train"), 1000)
            )
            return Similarity(self.after(stage), trained, self.processor, captions)
        return self.phi(stage)


def dtype_for(model: nn.Module, quant: str | None) -> torch.dtype | None:
    """`choose_dtype` for a model in memory."""
    stored: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        stored[parameter.dtype] += parameter.numel()
    device = next(model.parameters()).device
    return placement.choose_dtype(stored, device, free_memory(device), quant=quant)
