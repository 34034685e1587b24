"""The multimodal model: tokens, images and audio of a `Batch` to hidden states, in one forward for training and
serving.

    embed tokens -> write image and audio features over their placeholders -> decoder, one adapter per sequence

Encoders run only where the batch has images or audio.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyphi.batch import AudioInput, Batch, ImageInput, ImageLayout
from polyphi.model.attention import KVCache
from polyphi.model.config import AdapterConfig, AudioConfig, ModelConfig, VisionConfig
from polyphi.model.conformer import GLU, CausalDepthwise, ConformerEncoder, Pointwise
from polyphi.model.decoder import Decoder, RMSNorm
from polyphi.model.lora import Factors, LoraLinear, LowRank, is_adapter_name
from polyphi.model.projector import AudioProjector, VisionProjector
from polyphi.model.siglip import CrossAttention, PoolingHead, SiglipEncoder
from polyphi.steps import Steps, result_of


class Vision(nn.Module):
    """Images to tokens: encoder, then projector."""

    def __init__(self, config: VisionConfig, width: int) -> None:
        super().__init__()
        self.encoder = SiglipEncoder(config)
        self.projector = VisionProjector(config.hidden_size, width, config.cells)


class Audio(nn.Module):
    """Audio clips to tokens: encoder, then one of two projectors."""

    def __init__(self, config: AudioConfig, width: int) -> None:
        super().__init__()
        self.encoder = ConformerEncoder(config)
        self.projector = AudioProjector(config.hidden_size, width)


class PhiModel(nn.Module):
    """Phi-4-multimodal, or Phi-4-mini where `config` has no vision, audio or adapters.

        model = PhiModel(config)
        model.initialise(seed=0)                      # or polyphi.load(folder)
        logits = model.logits(model(batch))           # [T V]

    Before one of the two, the weights are uninitialised.
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
        """Token embeddings, with the image and audio tokens in place of the placeholders."""
        x = self.decoder.embed(batch.ids)
        if batch.images:
            has_words = batch.crops is None and batch.cell_words is not None
            tokens = self.word_tokens(batch) if has_words else self.image_tokens(batch)
            x = splice(x, batch.image_slots, tokens, "image")
        if batch.clips:
            x = splice(x, batch.audio_slots, self.audio_tokens(batch), "audio")
        return x

    def word_tokens(self, batch: Batch) -> Float[Tensor, "I D"]:
        """Tokens of images that are replaced by words: the mean of the words' embeddings. [ours]"""
        assert batch.image_slots is not None
        slots, words = image_word_slots(batch)
        embedded = self.decoder.embed(words)
        empty = embedded.new_zeros(len(batch.image_slots), embedded.shape[-1])
        counts = torch.bincount(slots, minlength=len(empty)).clamp(min=1)
        return empty.index_add(0, slots, embedded) / counts[:, None]

    def image_tokens(self, batch: Batch) -> Float[Tensor, "I D"]:
        """Tokens of all images of the batch, in order."""
        return result_of(self.image_slices(batch.image_input))

    def image_slices(self, images: ImageInput) -> Steps[Float[Tensor, "I D"]]:
        """Tokens of images by encoder and projector, in slices of one layer."""
        if self.vision is None:
            raise ValueError(
                f"the batch has {len(images.layouts)} images, but this model has no vision tower"
            )
        images = images.float_crops()
        crops, masks, sources = images.crops, images.masks, _equal_crops(images)
        inverse = None
        if sources is not None:
            distinct, inverse = sources.unique(return_inverse=True)
            crops, masks = crops.index_select(0, distinct), masks.index_select(0, distinct)
        features = yield from self.vision.encoder.slices(crops, masks)
        if inverse is not None:
            features = features.index_select(0, inverse)
        return self.vision.projector(features, images.layouts)

    def audio_tokens(self, batch: Batch) -> Float[Tensor, "A D"]:
        """Tokens of all audio clips of the batch, in order."""
        return result_of(self.audio_slices(batch.audio_input))

    def audio_slices(self, audio: AudioInput) -> Steps[Float[Tensor, "A D"]]:
        """Tokens of audio clips by encoder and each clip's projector, in slices of one block."""
        if self.audio is None:
            raise ValueError(
                f"the batch has {len(audio.clips)} audio clips, but this model has no audio encoder"
            )
        features = yield from self.audio.encoder.slices(audio.mels, audio.clips)
        return self.audio.projector(features, audio.clips)

    def unused(self) -> frozenset[str]:
        """Names of the parameters that the multimodal forward doesn't use: the vision tower's last layer, final norm
        and head."""
        return (
            frozenset(f"vision.encoder.{n}" for n in self.vision.encoder.unused())
            if self.vision
            else frozenset()
        )

    @torch.no_grad()
    def initialise(self, seed: int = 0) -> None:
        """Initialise all weights for training from scratch.

        Each module uses a separate generator, seeded by `seed` and its name: a model with an audio encoder has the same
        initial decoder as one without.
        """
        for name, module in self.named_modules():
            generator = _generator(seed, name)
            scale = self.decoder.residual_scale() if name.endswith(("o_proj", "down_proj")) else 1.0
            _initialise(module, generator, self.config.decoder.initializer_range, scale)

    @torch.no_grad()
    def add_adapter(self, name: str, like: AdapterConfig | str, seed: int = 0) -> None:
        """Add an adapter: a fresh one with the rank and alpha of `like`, which doesn't change outputs until it is
        trained, or a copy of the adapter that `like` names. Raises ValueError for a name that is in use or invalid, and
        for a copy of an unknown adapter."""
        self._check_unquantized()
        self._check_name(name)
        existing = self.config.adapters
        if isinstance(like, str) and like not in existing:
            raise ValueError(
                f"{name} can't be a copy of {like!r}; this model has: {', '.join(existing) or 'no adapters'}"
            )
        config = existing[like] if isinstance(like, str) else like
        for path, linear in self._lora_linears():
            pair = LowRank(linear.weight.shape[1], linear.weight.shape[0], config)
            if isinstance(like, str):
                pair.load_state_dict(linear.pair(like).state_dict())
            else:
                pair.initialise(_generator(seed, f"{path}.lora.{name}"))
            linear.lora[name] = pair.to(linear.weight).train(self.training)
        self._use_adapters({**existing, name: config})

    @torch.no_grad()
    def put_adapter(self, name: str, config: AdapterConfig, factors: Mapping[str, Factors]) -> None:
        """Add an adapter with the given factors of linears by their paths, in the dtype of the weights that aren't
        quantized; linears without factors stay without it. Raises ValueError for a name that is in use or invalid."""
        self._check_name(name)
        self.insert_adapter(name, config, self.low_ranks(factors))

    @torch.no_grad()
    def low_ranks(self, factors: Mapping[str, Factors]) -> dict[str, LowRank]:
        """The modules of factors of linears by their paths, for `insert_adapter`."""
        return {
            path: LowRank.of(f, self.decoder.norm.weight).requires_grad_(False).eval()
            for path, f in factors.items()
        }

    def insert_adapter(
        self, name: str, config: AdapterConfig, pairs: Mapping[str, LowRank]
    ) -> None:
        """Add an adapter of these modules under a name that isn't in use; takes no time."""
        assert name not in self.config.adapters, name
        linears = dict(self._lora_linears())
        for path, pair in pairs.items():
            linears[path].lora[name] = pair
        self._use_adapters({**self.config.adapters, name: config})

    @torch.no_grad()
    def remove_adapter(self, name: str) -> None:
        """Remove an adapter. Raises ValueError for an unknown one."""
        adapters = dict(self.config.adapters)
        if adapters.pop(name, None) is None:
            raise ValueError(
                f"there is no adapter {name!r} to remove; this model has: "
                f"{', '.join(self.config.adapters) or 'none'}"
            )
        for _, linear in self._lora_linears():
            if name in linear.lora:
                del linear.lora[name]
        self._use_adapters(adapters)

    def _check_name(self, name: str) -> None:
        """Raise ValueError for the name of a new adapter that is in use or invalid."""
        existing = self.config.adapters
        if name in existing or not is_adapter_name(name):
            raise ValueError(
                f"expected a new name for the adapter (letters, digits, _ and -; not auto or none), found {name!r}; "
                f"names in use: {', '.join(existing) or 'none'}"
            )

    @torch.no_grad()
    def merge_adapter(self, name: str) -> None:
        """Merge an adapter into the base weights, W + alpha / rank * B A, and remove it: the base model then gives its
        outputs. The inverse is added to every other adapter (whose rank grows by the merged one's), so that their
        outputs stay the same. Sums are in float32; weights in bfloat16 are rounded once, so cast the model first where
        that matters. Raises ValueError for an unknown adapter."""
        self._check_unquantized()
        others = dict(self.config.adapters)
        if name not in others:
            raise ValueError(
                f"there is no adapter {name!r} to merge; this model has: {', '.join(others) or 'none'}"
            )
        merged = others.pop(name)
        for _, linear in self._lora_linears():
            if name not in linear.lora:
                continue
            pair = linear.pair(name)
            inverse = Factors(pair.a.float(), -pair.b.float(), pair.scale)
            del linear.lora[name]
            weight = linear.weight
            weight.copy_(weight.float() - inverse.scale * (inverse.b @ inverse.a))
            for key, config in others.items():
                factors = inverse
                if key in linear.lora:
                    pair = linear.pair(key)
                    a = torch.cat([pair.a.float(), inverse.a])
                    b = torch.cat([pair.b.float(), inverse.scale / pair.scale * inverse.b], dim=1)
                    factors = Factors(a, b, pair.scale)
                wider = LowRank.of(factors, pair.a, config.dropout)
                linear.lora[key] = wider.train(self.training)
        ranks = {key: config.rank + merged.rank for key, config in others.items()}
        self._use_adapters(
            {
                key: replace(config, rank=ranks[key], alpha=config.alpha / config.rank * ranks[key])
                for key, config in others.items()
            }
        )

    def adapter_pairs(self, name: str) -> Iterator[tuple[str, LowRank]]:
        """The modules of an adapter by the paths of their linears."""
        return (
            (path, linear.pair(name))
            for path, linear in self._lora_linears()
            if name in linear.lora
        )

    def _lora_linears(self) -> Iterator[tuple[str, LoraLinear]]:
        """Every linear that has adapters, with its name."""
        return ((n, m) for n, m in self.named_modules() if isinstance(m, LoraLinear))

    def _check_unquantized(self) -> None:
        """Raise ValueError for a quantized model."""
        if self.quant is not None:
            raise ValueError(
                "the adapters of a quantized model can't be changed; load it without quant, change them, save it, and "
                "quantize the saved model"
            )

    def _use_adapters(self, adapters: Mapping[str, AdapterConfig]) -> None:
        self.config = replace(self.config, adapters=dict(adapters))
        self.decoder.adapters = dict(adapters)


def image_word_slots(batch: Batch) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
    """(index among all image tokens of the batch, token id) of each word of its images."""
    assert batch.cell_words is not None
    images, tokens, words = batch.cell_words.unbind(1)
    sizes = [_tokens(layout) for layout in batch.images]
    starts = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
    return starts.to(images.device)[images] + tokens, words


def _tokens(layout: ImageLayout) -> int:
    """Number of tokens of an image that fills its crops."""
    return layout.tokens(layout.rows // layout.crop_rows)


def _generator(seed: int, name: str) -> torch.Generator:
    """The random generator for the initial weights of the module `name`."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))


def _equal_crops(images: ImageInput) -> Int[Tensor, " N"] | None:
    """Index, for each crop, of the first crop of its image with the same pixels; None on a GPU, where the comparison
    would need a synchronization. An image of exactly one crop equals its global view, which saves half of the encoder's
    work (nano's vision 3 takes a sixth less time)."""
    if images.crops.is_cuda:
        return None
    sources, start = torch.arange(len(images.crops)), 0
    for layout in images.layouts:
        if layout.crops == 2 and all(
            torch.equal(t[start], t[start + 1]) for t in (images.crops, images.masks)
        ):
            sources[start + 1] = start
        start += layout.crops
    return sources


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


def _sinusoidal_positions(side: int, size: int) -> Float[Tensor, "P D"]:
    """Initial position embeddings of a square grid: sines and cosines of row and column, wavelengths of 4 to 130 cells.
    [ours] SigLIP starts from noise far weaker than the patches; with sines a fresh encoder has information about
    neighbouring patches from the first step on (at nano size it reads a moving digit in half the steps)."""
    frequencies = torch.logspace(0, -1.5, size // 4) * math.pi / 2
    y, x = (
        t.reshape(-1, 1) * frequencies
        for t in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")
    )
    waves = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    return F.pad(waves, (0, size - waves.shape[1]))


def _initialise(module: nn.Module, generator: torch.Generator, std: float, scale: float) -> None:
    """Initialise the module's direct parameters (not its children's)."""
    match module:
        case LowRank():
            module.initialise(generator)
        case LoraLinear():
            nn.init.normal_(module.weight, std=std * scale, generator=generator)
        case RMSNorm():
            nn.init.ones_(module.weight)
        case nn.LayerNorm():
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        case Decoder():
            nn.init.normal_(module.embed_tokens.weight, std=std, generator=generator)
        case SiglipEncoder():
            module.position_embedding.weight.data.copy_(
                _sinusoidal_positions(module.config.grid, module.config.hidden_size)
            )
        case PoolingHead():
            nn.init.normal_(module.probe, std=std, generator=generator)
        case CrossAttention():
            nn.init.xavier_uniform_(module.in_proj_weight, generator=generator)
            nn.init.zeros_(module.in_proj_bias)
        case VisionProjector():
            nn.init.normal_(module.global_separator, std=std, generator=generator)
            nn.init.normal_(module.row_separator, std=std, generator=generator)
        case ConformerEncoder():
            nn.init.zeros_(module.global_mean)
            nn.init.ones_(module.global_invstd)
            nn.init.zeros_(module.relative_attention_bias.weight)
        case nn.Linear() | Pointwise():
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        case nn.Conv2d() | CausalDepthwise():
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        case GLU():
            nn.init.zeros_(module.b1)
            nn.init.zeros_(module.b2)
