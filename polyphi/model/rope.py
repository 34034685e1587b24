"""LongRoPE: partial rotary positions with a short and a long table, chosen per sequence (report 2.1).

Channel pair i is rotated by position / (factor * theta^(2i / rotary_dim)). Sequences of up to
`original_max_position_embeddings` (4,096) tokens use factors of 1, longer ones the long factors, which lower the
frequencies. Both multiply cosine and sine by the same `rope_scale`. Only the first `rotary_dim` channels of a head (96
of 128) are rotated; channel i pairs with i + rotary_dim / 2.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.model.config import DecoderConfig
from polyphi.types.batch import Batch


class LongRope:
    """Cosine and sine for every token of a batch.

    Not a module: its tables are computed from the configuration, so they aren't stored in checkpoints and must survive
    a move from the meta device, which a buffer would not.
    """

    def __init__(self, config: DecoderConfig) -> None:
        self.switch = config.original_max_position_embeddings
        self.scale = config.rope_scale
        self.theta = config.rope_theta
        self.dim = config.rotary_dim
        self.factors = (config.short_factor, config.long_factor)
        for name, factor in zip(("short_factor", "long_factor"), self.factors, strict=True):
            if len(factor) != self.dim // 2:
                raise ValueError(
                    f"{name} has {len(factor)} values, but {self.dim} rotated channels need {self.dim // 2}: "
                    "check partial_rotary_factor and the head size"
                )
        self._tables: dict[torch.device, Tensor] = {}

    def frequencies(self, device: torch.device) -> Float[Tensor, "2 pairs"]:
        """Inverse frequencies in float32: row 0 for short sequences, row 1 for long ones."""
        if device not in self._tables:
            # The published arithmetic, step by step in float32: an exact power, rounded once, differs.
            exponent = torch.arange(0, self.dim, 2, dtype=torch.int64).float() / self.dim
            table = 1.0 / (torch.tensor(self.factors, dtype=torch.float32) * self.theta**exponent)
            self._tables[device] = table.to(device)
        return self._tables[device]

    def __call__(
        self, batch: Batch, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "T 1 pairs"], Float[Tensor, "T 1 pairs"]]:
        """(cos, sin), scaled. Sequence s uses the long table if and only if `seq_lens[s]` exceeds `switch`, whatever
        else is in its pack."""
        device = batch.positions.device
        table = self.frequencies(device)
        long = [int(total > self.switch) for total in batch.seq_lens]
        if len(set(long)) == 1:
            frequencies = table[long[0]]
        else:
            spans = pairwise(batch.cu_seqlens)
            rows = [
                row
                for row, (start, end) in zip(long, spans, strict=True)
                for _ in range(end - start)
            ]
            frequencies = table[torch.tensor(rows, device=device)]
        angles = batch.positions.float()[:, None] * frequencies
        cos, sin = angles.cos() * self.scale, angles.sin() * self.scale
        return cos.to(dtype)[:, None], sin.to(dtype)[:, None]


def rotate(
    heads: Float[Tensor, "T heads d"],
    cos: Float[Tensor, "T 1 pairs"],
    sin: Float[Tensor, "T 1 pairs"],
) -> Float[Tensor, "T heads d"]:
    """Rotate the first 2 * pairs channels of every head; the others stay unchanged and unscaled."""
    pairs = cos.shape[-1]
    first, second, unrotated = (
        heads[..., :pairs],
        heads[..., pairs : 2 * pairs],
        heads[..., 2 * pairs :],
    )
    return torch.cat([first * cos - second * sin, second * cos + first * sin, unrotated], dim=-1)
