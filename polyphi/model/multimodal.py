"""The multimodal model: tokens, images and audio of a `Batch` to hidden states, in one forward for training and
serving (report 2.2).

    embed tokens -> write image and audio features over their placeholders -> decoder, one adapter per sequence

Encoders run only where the batch has images or audio.
"""

import zlib
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyphi.model.attention import KVCache
from polyphi.model.config import AudioConfig, ModelConfig, VisionConfig
from polyphi.model.conformer import ConformerEncoder
from polyphi.model.decoder import Decoder
from polyphi.model.initialise import initialise
from polyphi.model.projector import AudioProjector, VisionProjector
from polyphi.model.siglip import SiglipEncoder
from polyphi.types.batch import Batch
from polyphi.types.inputs.audio import AudioInput
from polyphi.types.inputs.encoder import Inputs
from polyphi.types.inputs.image import ImageInput
from polyphi.types.inputs.item import ItemInput
from polyphi.types.modality import ModalityEntry


class Tower(nn.Module):
    """A modality's inputs to tokens: encoder, then projector.

    Both read the inputs of all items at once: `encoder(inputs)` returns features, and `projector(features, inputs)`
    tokens [m D], as many of each item as `inputs.tokens` says. This class is that of a user's modality `name`, whose
    tokens are checked; the report's two are subclasses.
    """

    published = False
    """Whether the tower is one of the report's, whose linears may be quantized."""

    def __init__(self, encoder: nn.Module, projector: nn.Module, name: str, width: int) -> None:
        super().__init__()
        self.encoder, self.projector, self.name, self.width = encoder, projector, name, width

    def forward(self, inputs: Any) -> Float[Tensor, "m D"]:
        """Tokens of all items, in order."""
        inputs = inputs.ready()
        return self.project(self.encode(inputs), inputs)

    def encode(self, inputs: Any) -> Float[Tensor, "n ..."]:
        """Features of all items, in order; the inputs are `ready`."""
        features: Tensor = self.encoder(self.cast(inputs))
        return features

    def project(self, features: Float[Tensor, "n ..."], inputs: Any) -> Float[Tensor, "m D"]:
        """Tokens of all items from their features. Raises ValueError where they aren't as many as the items have, or
        of another width than the decoder's."""
        tokens: Tensor = self.projector(features, inputs)
        expected, shape = [sum(inputs.tokens), self.width], list(getattr(tokens, "shape", ()))
        if shape != expected:
            raise ValueError(
                f"{self.name}: expected tokens of shape {expected} from encoder and projector, by the items' cost and "
                f"the decoder's width; found {shape or type(tokens).__name__}"
            )
        return tokens

    def cast(self, inputs: ItemInput) -> ItemInput:
        """The inputs with values in the dtype of the encoder's weights."""
        weight = next(self.encoder.parameters(), inputs.values)
        return replace(inputs, values=inputs.values.to(weight.dtype))

    def unused(self) -> frozenset[str]:
        """Names of the parameters that `forward` doesn't use."""
        return frozenset()


class Vision(Tower):
    """Images to tokens."""

    published = True
    encoder: SiglipEncoder
    projector: VisionProjector

    def __init__(self, config: VisionConfig, width: int) -> None:
        projector = VisionProjector(config.hidden_size, width, config.cells)
        super().__init__(SiglipEncoder(config), projector, ImageInput.NAME, width)

    def encode(self, inputs: ImageInput) -> Float[Tensor, "N P V"]:
        """Features of all crops, in order."""
        return self.encoder(inputs.crops, inputs.masks)

    def project(self, features: Float[Tensor, "N P V"], inputs: ImageInput) -> Float[Tensor, "I D"]:
        """Tokens of all images, in order."""
        return self.projector(features, inputs.layouts)

    def unused(self) -> frozenset[str]:
        """The last layer, the final norm and the head of the vision tower."""
        return frozenset(f"encoder.{name}" for name in self.encoder.unused())


class Audio(Tower):
    """Audio clips to tokens, by one of two projectors."""

    published = True
    encoder: ConformerEncoder
    projector: AudioProjector

    def __init__(self, config: AudioConfig, width: int) -> None:
        projector = AudioProjector(config.hidden_size, width)
        super().__init__(ConformerEncoder(config), projector, AudioInput.NAME, width)

    def encode(self, inputs: AudioInput) -> Float[Tensor, "A V"]:
        """Features of all clips, in order."""
        return self.encoder(inputs.mels, inputs.layouts)

    def project(self, features: Float[Tensor, "A V"], inputs: AudioInput) -> Float[Tensor, "A D"]:
        """Tokens of all audio clips, in order."""
        return self.projector(features, inputs.layouts)


class PhiModel(nn.Module):
    """Phi-4-multimodal, or Phi-4-mini where `config` has no vision, audio or adapters.

        model = PhiModel(config)
        model.initialise(seed=0)                      # or polyphi.load(folder)
        logits = model.logits(model(batch))           # [T V]

    Before one of the two, the weights are uninitialized. `prepared.prepare` makes it faster on this machine.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder.hidden_size
        self.decoder = Decoder(config.decoder, config.adapters)
        self.vision = Vision(config.vision, width) if config.vision else None
        self.audio = Audio(config.audio, width) if config.audio else None
        for name, own in config.further.items():
            if hasattr(self, name):
                raise ValueError(f"{name!r} can't be a modality: the model has an attribute of it")
            self.add_module(name, tower_of(own, width))
        self.quant: str | None = None  # the scheme of quantize.py that was applied

    def forward(self, batch: Batch, cache: KVCache | None = None) -> Float[Tensor, "T D"]:
        """Hidden states after the final norm; with a `cache`, the batch holds only the new tokens of each sequence."""
        return self.decoder(self.embed(batch), batch, cache)

    def logits(self, hidden: Float[Tensor, "*T D"]) -> Float[Tensor, "*T V"]:
        """Logits of the next token by the tied head."""
        return self.decoder.logits(hidden)

    def embed(self, batch: Batch) -> Float[Tensor, "T D"]:
        """Token embeddings, with those of the inputs in place of their placeholders."""
        x = self.decoder.embed(batch.ids)
        for name, inputs in batch.inputs.items():
            x = splice(x, inputs.slots, self.encode(name, inputs), name)
        return x

    def encode(self, modality: str, inputs: Inputs) -> Float[Tensor, "n D"]:
        """Tokens of all items of a modality, in order. Raises ValueError where the model has no encoder for it."""
        tokens: Float[Tensor, "n D"] = self.tower(modality, len(inputs.layouts))(inputs)
        return tokens

    def tower(self, modality: str, items: int = 1) -> Any:
        """The encoder of a modality with its projector. Raises ValueError where the model has none."""
        if (tower := self.towers.get(modality)) is None:
            raise ValueError(
                f"the batch has {items} inputs of {modality}, but this model has no encoder for them"
            )
        return tower

    @property
    def towers(self) -> dict[str, Tower]:
        """The tower of each modality that the model has, by the modality's name."""
        towers = {name: getattr(self, attribute) for name, attribute in self.config.towers.items()}
        return {name: tower for name, tower in towers.items() if tower is not None}

    @property
    def units(self) -> dict[str, str]:
        """Modality -> what the size of its inputs counts (`Inputs.SIZE_UNIT`), for those that the model has."""
        published = {kind.NAME: kind.SIZE_UNIT for kind in (ImageInput, AudioInput)}
        return {name: published.get(name, f"{name} {ItemInput.SIZE_UNIT}") for name in self.towers}

    def unused(self) -> frozenset[str]:
        """Names of the parameters that the multimodal forward doesn't use."""
        return frozenset(
            f"{self.config.towers[modality]}.{name}"
            for modality, tower in self.towers.items()
            for name in tower.unused()
        )

    def initialise(self, seed: int = 0) -> None:
        """Initialize all weights for training from scratch (initialise.py); those of users' modalities by their own
        constructors."""
        initialise(self, self.config.decoder, seed)
        for name, own in self.config.further.items():
            tower = initial_tower(own, self.config.decoder.hidden_size, seed)
            self.get_submodule(name).load_state_dict(tower.state_dict())


def tower_of(own: ModalityEntry, width: int) -> Tower:
    """The tower of a user's modality, with the initial weights of its own modules."""
    modality = own.modality
    encoder, projector = modality.encoder(own.config), modality.projector(own.config, width)
    return Tower(encoder, projector, modality.name, width)


def initial_tower(own: ModalityEntry, width: int, seed: int) -> Tower:
    """The tower of a user's modality with the initial weights that a seed gives; the random state stays as it is."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(zlib.crc32(f"{seed} {own.modality.name}".encode()))
        return tower_of(own, width)


def splice(
    x: Float[Tensor, "T D"],
    slots: Int[Tensor, " n"] | None,
    features: Float[Tensor, "m D"],
    modality: str,
) -> Float[Tensor, "T D"]:
    """`x` with `features` written at `slots`."""
    count = 0 if slots is None else len(slots)
    if slots is None or count != len(features):
        raise ValueError(
            f"the batch has {count} {modality} placeholder tokens, but its {modality} data has {len(features)} tokens: "
            "the prompt must repeat each placeholder exactly as often as its image or audio clip has tokens"
        )
    return x.index_copy(0, slots, features.to(x.dtype))
