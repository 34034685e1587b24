"""Initial weights for training from scratch.

Each module uses a separate generator, seeded by the seed and its name: a model with an audio encoder has the same
initial decoder as one without.
"""

import math
import zlib

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyphi.model.config import DecoderConfig
from polyphi.model.conformer import GLU, CausalDepthwise, ConformerEncoder, Pointwise
from polyphi.model.decoder import Decoder, RMSNorm
from polyphi.model.lora import LoraLinear, LowRank
from polyphi.model.projector import VisionProjector
from polyphi.model.siglip import CrossAttention, PoolingHead, SiglipEncoder

LOG_MEL_MEAN, LOG_MEL_INVSTD = 16.0, 0.22
"""[ours] Approximate statistics of speech on our log-mel scale, for fresh encoders."""


@torch.no_grad()
def initialise(model: nn.Module, config: DecoderConfig, seed: int) -> None:
    """Initialize all weights of a model."""
    # On output projections, so that the residual stream keeps its size over 2 * layers additions.
    residual_scale = 1 / math.sqrt(2 * config.num_hidden_layers)
    for name, module in model.named_modules():
        scale = residual_scale if name.endswith(("o_proj", "down_proj")) else 1.0
        _initialize_own(module, generator(seed, name), config.initializer_range, scale)


def generator(seed: int, name: str) -> torch.Generator:
    """The random generator for the initial weights of the module `name`."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))


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


def _initialize_own(
    module: nn.Module, generator: torch.Generator, std: float, scale: float
) -> None:
    """Initialize the module's direct parameters (not its children's)."""
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
            if not module.config.tie_word_embeddings:
                nn.init.normal_(module.lm_head.weight, std=std, generator=generator)
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
            nn.init.constant_(module.global_mean, LOG_MEL_MEAN)
            nn.init.constant_(module.global_invstd, LOG_MEL_INVSTD)
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
