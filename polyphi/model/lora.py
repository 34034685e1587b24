"""Mixture of LoRAs: one frozen linear, a low-rank adapter per modality, chosen per sequence (report 2.2.1).

y = W x + alpha / rank * B A dropout(x) on the tokens of sequences that name the adapter, y = W x on all others. A
batch mixes them freely: the base product runs once over all tokens, each low-rank product only over its own.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyphi import kernels
from polyphi.batch import Batch
from polyphi.kernels import half
from polyphi.model.config import AdapterConfig


@dataclass(frozen=True)
class Route:
    """The tokens that go through `adapter`; `tokens` is None where that is the whole pack."""

    adapter: str
    tokens: Int[Tensor, " n"] | None


def routes(batch: Batch, known: Collection[str], device: torch.device) -> list[Route]:
    """Who goes where: made once per forward, used by every linear of every layer."""
    named = set(batch.adapters) - {None}
    if unknown := sorted(str(name) for name in named - set(known)):
        have = ", ".join(sorted(known)) or "none"
        raise ValueError(
            f"the batch asks for the adapter {', '.join(unknown)}, but this model has: {have}"
        )
    if len(set(batch.adapters)) == 1:
        return [Route(str(name), None) for name in named]
    return [
        Route(str(name), _tokens(batch, name).to(device, non_blocking=True))
        for name in sorted(named, key=str)
    ]


def _tokens(batch: Batch, adapter: str | None) -> Int[Tensor, " n"]:
    spans = zip(batch.adapters, pairwise(batch.bounds), strict=True)
    return torch.cat([torch.arange(*span) for name, span in spans if name == adapter])


class LowRank(nn.Module):
    """An adapter's two factors: x -> B A dropout(x), not yet scaled."""

    def __init__(self, inputs: int, outputs: int, config: AdapterConfig) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(config.rank, inputs))
        self.b = nn.Parameter(torch.empty(outputs, config.rank))
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout

    def initialise(self, generator: torch.Generator) -> None:
        """A uniform, B zero: a fresh adapter changes nothing."""
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.b)

    def squeeze(self, x: Float[Tensor, "n I"]) -> Float[Tensor, "n R"]:
        """A dropout(x)."""
        if self.training and self.dropout > 0:
            x = dropped(x, self.dropout)
        return product(x, self.a)


def dropped(x: Float[Tensor, "n I"], p: float) -> Float[Tensor, "n I"]:
    """Dropout: each value is 0 with probability `p`, else 1 / (1 - p) times as large.

    A CPU is slow to draw a number per value; where few are dropped it is quicker to draw which. So many places as a
    Poisson distribution of mean -n ln(1 - p) says, each anywhere: then a value is hit at least once with probability p,
    whatever happens to the others.
    """
    if x.is_cuda or p > 0.1:
        return F.dropout(x, p)
    mean = torch.tensor(-x.numel() * math.log1p(-p))
    places = torch.randint(x.numel(), (int(torch.poisson(mean)),), device=x.device)
    kept = x.new_full((x.numel(),), 1 / (1 - p)).index_fill_(0, places, 0.0)
    return x * kept.view_as(x)


def product(x: Float[Tensor, "*T I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*T O"]:
    """W x. On a CPU few rows are answered by our own kernel, or a single one by a matrix-vector product: in bfloat16
    the matrix product's kernel reads weights at a part of the rate that memory gives. Neither has a gradient, so
    training doesn't take them."""
    if _few(x, weight):
        return half.linear(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], len(weight))
    if x.numel() == x.shape[-1] and _answers(x, weight):
        return torch.mv(weight, x.flatten()).view(*x.shape[:-1], len(weight))
    return F.linear(x, weight)


def _answers(x: Tensor, weight: Tensor) -> bool:
    """Whether both are of bfloat16 on a CPU, and nobody wants a gradient."""
    narrow = x.dtype == weight.dtype == torch.bfloat16
    return narrow and x.device.type == "cpu" and not torch.is_grad_enabled()


def _few(x: Tensor, weight: Tensor) -> bool:
    """Whether our own kernel pays."""
    rows = x.numel() // x.shape[-1]
    return 0 < rows <= half.FEW and _answers(x, weight) and kernels.missing() is None


class LoraLinear(nn.Module):
    """A linear without bias and its adapters: `weight` [out in], `lora.NAME.a` [R in], `lora.NAME.b` [out R].

    `kernel` computes W x in the weight's place in a model that only answers (`quantize.py`)."""

    def __init__(self, inputs: int, outputs: int, adapters: Mapping[str, AdapterConfig]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.kernel: Callable[[Tensor], Tensor] | None = None
        self.lora = nn.ModuleDict(
            {name: LowRank(inputs, outputs, config) for name, config in adapters.items()}
        )

    def pair(self, adapter: str) -> LowRank:
        """An adapter's factors."""
        found = self.lora[adapter]
        assert isinstance(found, LowRank)
        return found

    def base(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        """W x alone."""
        return product(x, self.weight) if self.kernel is None else self.kernel(x)

    def forward(self, x: Float[Tensor, "T I"], taken: Sequence[Route] = ()) -> Float[Tensor, "T O"]:
        y = self.base(x)
        for route in taken:
            pair = self.pair(route.adapter)
            if route.tokens is None and _few(x, pair.b):
                y = half.add(y, pair.squeeze(x), pair.b, scale=pair.scale)
            elif route.tokens is None:
                y = torch.addmm(y, pair.squeeze(x), pair.b.t(), alpha=pair.scale)
            else:
                low = pair.squeeze(x.index_select(0, route.tokens))
                y = y.index_add(
                    0, route.tokens, F.linear(low, pair.b).to(y.dtype), alpha=pair.scale
                )
        return y
