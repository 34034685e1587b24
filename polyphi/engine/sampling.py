"""Logits -> the next token: greedy, or drawn with temperature, top-k and top-p by a seeded generator.

>>> draw = Sampler(SamplingParams(temperature=0.7, top_p=0.9, seed=1))
>>> draw(logits)                                 # the same seed and logits always give the same tokens
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.chat import SamplingParams


def check(sampling: SamplingParams) -> None:
    """Raises ValueError for values that mean nothing."""
    if sampling.max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, found {sampling.max_tokens}")
    if not math.isfinite(sampling.temperature) or sampling.temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, found {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, found {sampling.top_p}")
    if sampling.top_k < 0:
        raise ValueError(f"top_k must be 0 (off) or more, found {sampling.top_k}")
    if any(not s for s in sampling.stop):
        raise ValueError("a stop string is empty, which would end every answer before it starts")


class Sampler:
    """Draws one request's tokens. It has its own generator, on the CPU, so other requests don't change its draws."""

    def __init__(self, sampling: SamplingParams) -> None:
        check(sampling)
        self.sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits: Float[Tensor, " V"]) -> int:
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        probabilities, ids = candidates(logits.float().cpu(), self.sampling)
        return int(ids[torch.multinomial(probabilities, 1, generator=self._generator)])


def candidates(
    logits: Float[Tensor, " V"], sampling: SamplingParams
) -> tuple[Float[Tensor, " n"], Tensor]:
    """What may be drawn: probabilities that sum to 1 and their ids, the likeliest first.

    Top-k keeps the k best; of these, top-p keeps the fewest that together reach p, the one that crosses p included.
    """
    ordered, ids = (logits / sampling.temperature).sort(descending=True, stable=True)
    if sampling.top_k:
        ordered, ids = ordered[: sampling.top_k], ids[: sampling.top_k]
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = before < sampling.top_p
    kept[0] = True  # rounding must not leave nothing
    probabilities, ids = probabilities[kept], ids[kept]
    return probabilities / probabilities.sum(), ids
