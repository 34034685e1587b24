"""Configuration of the model. Field names are those of the public checkpoints' `config.json`, defaults are the
published values.

Source: the published configuration of Phi-4-multimodal-instruct; report sections 2.1 and 2.2.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from polyphi.types.modality import AdapterConfig, ModalityEntry

# fmt: off
SHORT_FACTOR = (1.0,) * 48
LONG_FACTOR = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898,
    2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424,
    6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252,
    16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6,
    32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)
# fmt: on


@dataclass(frozen=True)
class DecoderConfig:
    """The language model (report 2.1), or one of the Llama layout. `attention_head_dim`: channels of a head where they
    aren't hidden_size / num_attention_heads. `llama3_rope`: factor, low_freq_factor, high_freq_factor and
    original_max_position_embeddings of Llama 3's rope scaling, from which both tables of factors come."""

    vocab_size: int = 200064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 24
    num_key_value_heads: int = 8
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.75
    max_position_embeddings: int = 131072
    original_max_position_embeddings: int = 4096
    short_factor: tuple[float, ...] = SHORT_FACTOR
    long_factor: tuple[float, ...] = LONG_FACTOR
    sliding_window: int | None = 262144
    attention_head_dim: int | None = None
    llama3_rope: tuple[float, ...] = ()
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    bos_token_id: int = 199999
    pad_token_id: int = 199999
    eos_token_ids: tuple[int, ...] = (200020, 199999)

    @property
    def head_dim(self) -> int:
        return self.attention_head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated: 96 of 128."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def rope_scale(self) -> float:
        """Factor on cos and sin, for both tables: sqrt(1 + ln(max / original) / ln(original)) = 1.1902380714."""
        extension = self.max_position_embeddings / self.original_max_position_embeddings
        return (
            1.0
            if extension <= 1
            else math.sqrt(
                1 + math.log(extension) / math.log(self.original_max_position_embeddings)
            )
        )


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP tower and multi-crop (report 2.2.1)."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    crop_size: int = 448
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    max_crops: int = 36
    image_token_id: int = 200010

    @property
    def grid(self) -> int:
        """Patches along a crop's side: 32."""
        return self.crop_size // self.patch_size

    @property
    def cells(self) -> int:
        """Pooled cells along a crop's side, tokens of a row without its separator: 16."""
        return self.grid // 2


@dataclass(frozen=True)
class AudioConfig:
    """Conformer encoder (report 2.2.1)."""

    hidden_size: int = 1024
    intermediate_size: int = 1536
    num_attention_heads: int = 16
    num_blocks: int = 24
    input_size: int = 80
    time_reduction: int = 8
    nemo_conv_channels: int = 1024
    kernel_size: int = 3
    ext_pw_out_channel: int = 1024
    depthwise_separable_out_channel: int = 1024
    bias_max_distance: int = 500
    window: int = 500
    audio_token_id: int = 200011


def _published_adapters() -> dict[str, AdapterConfig]:
    return {"vision": AdapterConfig(256, 512.0), "speech": AdapterConfig(320, 640.0, 0.01)}


@dataclass(frozen=True)
class ModelConfig:
    """The whole model; without `vision`, `audio` and adapters it is Phi-4-mini. `further` has users' modalities."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    vision: VisionConfig | None = field(default_factory=VisionConfig)
    audio: AudioConfig | None = field(default_factory=AudioConfig)
    adapters: dict[str, AdapterConfig] = field(default_factory=_published_adapters)
    further: Mapping[str, ModalityEntry] = field(default_factory=dict, repr=False)

    @property
    def towers(self) -> dict[str, str]:
        """Modality -> the name of its tower in the model, for those that the model has."""
        published = {"image": ("vision", self.vision), "audio": ("audio", self.audio)}
        towers = {name: tower for name, (tower, config) in published.items() if config is not None}
        return towers | {name: name for name in self.further}

    def only(self, parts: Collection[str]) -> "ModelConfig":
        """The model with the decoder and those of its `parts` alone: towers by their names, adapters as lora.NAME."""
        return replace(
            self,
            vision=self.vision if "vision" in parts else None,
            audio=self.audio if "audio" in parts else None,
            adapters={name: a for name, a in self.adapters.items() if f"lora.{name}" in parts},
            further={name: own for name, own in self.further.items() if name in parts},
        )

    def with_placeholders(self, ids: Mapping[str, int]) -> "ModelConfig":
        """A copy of this configuration with the given ids of placeholders, by modality."""
        vision = self.vision and replace(self.vision, image_token_id=ids["image"])
        audio = self.audio and replace(self.audio, audio_token_id=ids["audio"])
        further = {n: replace(own, placeholder=ids[n]) for n, own in self.further.items()}
        return replace(self, vision=vision, audio=audio, further=further)

    @property
    def placeholders(self) -> dict[str, int]:
        """The id of the placeholder of each modality that the model has, by its name."""
        ids = {name: own.placeholder for name, own in self.further.items()}
        if self.audio is not None:
            ids = {"audio": self.audio.audio_token_id, **ids}
        if self.vision is not None:
            ids = {"image": self.vision.image_token_id, **ids}
        return ids

    def without_further(self) -> "ModelConfig":
        """The model without users' modalities, which checkpoints have in folders of their own."""
        adapters = {name: a for name, a in self.adapters.items() if name not in self.further}
        return replace(self, adapters=adapters, further={})
