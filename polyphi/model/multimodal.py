"""The multimodal model: tokens, images and audio of a `Batch` to hidden states, in one forward for training and
serving (report 2.2).

    embed tokens -> write image and audio features over their placeholders -> decoder, one adapter per sequence

Encoders run only where the batch has images or audio.
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from polyphi.audio_input import AudioInput
from polyphi.batch import Batch
from polyphi.image_input import ImageInput
from polyphi.modality import Inputs
from polyphi.model.attention import KVCache
from polyphi.model.config import AudioConfig, ModelConfig, VisionConfig
from polyphi.model.conformer import ConformerEncoder
from polyphi.model.decoder import Decoder
from polyphi.model.initialise import initialise
from polyphi.model.projector import AudioProjector, VisionProjector
from polyphi.model.siglip import SiglipEncoder


class Vision(nn.Module):
    """Images to tokens: encoder, then projector."""

    def __init__(self, config: VisionConfig, width: int) -> None:
        super().__init__()
        self.encoder = SiglipEncoder(config)
        self.projector = VisionProjector(config.hidden_size, width, config.cells)

    def forward(self, images: ImageInput) -> Float[Tensor, "I D"]:
        """Tokens of all images, in order."""
        images = images.ready()
        return self.projector(self.encoder(images.crops, images.masks), images.layouts)


class Audio(nn.Module):
    """Audio clips to tokens: encoder, then one of two projectors."""

    def __init__(self, config: AudioConfig, width: int) -> None:
        super().__init__()
        self.encoder = ConformerEncoder(config)
        self.projector = AudioProjector(config.hidden_size, width)

    def forward(self, audio: AudioInput) -> Float[Tensor, "A D"]:
        """Tokens of all audio clips, in order."""
        return self.projector(self.encoder(audio.mels, audio.layouts), audio.layouts)


class PhiModel(nn.Module):
    """Phi-4-multimodal, or Phi-4-mini where `config` has no vision, audio or adapters.

        model = PhiModel(config)
        model.initialise(seed=0)                      # or polyphi.load(folder)
        logits = model.logits(model(batch))           # [T V]

    Before one of the two, the weights are uninitialised. `prepared.prepare` makes it faster on this machine.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder.hidden_size
        self.decoder = Decoder(config.decoder, config.adapters)
        self.vision = Vision(config.vision, width) if config.vision else None
        self.audio = Audio(config.audio, width) if config.audio else None
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
        tokens: Float[Tensor, "n D"] = self.encoder(modality, len(inputs.layouts))(inputs)
        return tokens

    def encoder(self, modality: str, items: int = 1) -> Any:
        """The encoder of a modality with its projector. Raises ValueError where the model has none."""
        encoder = {ImageInput.NAME: self.vision, AudioInput.NAME: self.audio}.get(modality)
        if encoder is None:
            raise ValueError(
                f"the batch has {items} inputs of {modality}, but this model has no encoder for them"
            )
        return encoder

    def unused(self) -> frozenset[str]:
        """Names of the parameters that the multimodal forward doesn't use: the vision tower's last layer, final norm
        and head."""
        names = self.vision.encoder.unused() if self.vision else ()
        return frozenset(f"vision.encoder.{name}" for name in names)

    def initialise(self, seed: int = 0) -> None:
        """Initialise all weights for training from scratch (initialise.py)."""
        initialise(self, self.config.decoder, seed)


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
