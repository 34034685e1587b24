"""Mixture of LoRAs: one frozen linear, a low-rank adapter per modality, chosen per sequence (report 2.2.1).

y = W x + alpha / rank * B A dropout(x) on the tokens of sequences that name the adapter, y = W x on all others. A
batch mixes them freely: the base product runs once over all tokens, each low-rank product only over its own.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyphi.model.config import AdapterConfig
from polyphi.types.batch import Batch


@dataclass(frozen=True)
class Factors:
    """An adapter of one linear as numbers: it adds scale * B A x."""

    a: Float[Tensor, "R I"]
    b: Float[Tensor, "O R"]
    scale: float

    @property
    def rank(self) -> int:
        return len(self.a)


@dataclass(frozen=True)
class Route:
    """The indices of the tokens that use `adapter`; `tokens` is None where that is the whole pack."""

    adapter: str
    tokens: Int[Tensor, " n"] | None


def routes(batch: Batch, available: Collection[str], device: torch.device) -> list[Route]:
    """One route per adapter of the batch, computed once per forward for all linears. Raises ValueError for an adapter
    that isn't in `available`."""
    names = set(batch.adapters) - {None}
    if unknown := sorted(str(name) for name in names - set(available)):
        listed = ", ".join(sorted(available)) or "none"
        raise ValueError(
            f"unknown adapter {', '.join(unknown)} in the batch; this model has: {listed}"
        )
    if len(set(batch.adapters)) == 1:
        return [Route(str(name), None) for name in names]
    return [
        Route(str(name), _tokens(batch, name).to(device, non_blocking=True))
        for name in sorted(names, key=str)
    ]


def _tokens(batch: Batch, adapter: str | None) -> Int[Tensor, " n"]:
    spans = zip(batch.adapters, pairwise(batch.cu_seqlens), strict=True)
    return torch.cat([torch.arange(*span) for name, span in spans if name == adapter])


def is_adapter_name(name: str) -> bool:
    """Whether an adapter may have a name: letters, digits, _ and -; not auto, none or a method of ModuleDict, whose
    modules are attributes."""
    reserved = name in {"auto", "none"} or hasattr(nn.ModuleDict(), name)
    return re.fullmatch(r"[A-Za-z][\w-]*", name) is not None and not reserved


class LowRank(nn.Module):
    """An adapter's two factors: x -> B A dropout(x), not scaled."""

    def __init__(self, inputs: int, outputs: int, config: AdapterConfig) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(config.rank, inputs))
        self.b = nn.Parameter(torch.empty(outputs, config.rank))
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout

    @classmethod
    def of(cls, factors: Factors, like: Tensor, dropout: float = 0.0) -> "LowRank":
        """The module with these factors, in the dtype and on the device of `like`."""
        config = AdapterConfig(factors.rank, factors.scale * factors.rank, dropout)
        pair = cls(factors.a.shape[1], len(factors.b), config).to(like)
        pair.a.data.copy_(factors.a)
        pair.b.data.copy_(factors.b)
        pair.scale = factors.scale
        return pair

    def initialise(self, generator: torch.Generator) -> None:
        """Initialize A uniformly and B with zeros: a fresh adapter doesn't change the output."""
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.b)

    def tensors(self) -> Iterator[Tensor]:
        """Tensors that identify the adapter: its factors."""
        yield from self.parameters()

    def squeeze(self, x: Float[Tensor, "n I"]) -> Float[Tensor, "n R"]:
        """A dropout(x)."""
        return F.linear(F.dropout(x, self.dropout, self.training), self.a)

    def expand(self, low: Float[Tensor, "n R"]) -> Float[Tensor, "n O"]:
        """B low."""
        return F.linear(low, self.b)

    def add(self, y: Float[Tensor, "n O"], x: Float[Tensor, "n I"]) -> Float[Tensor, "n O"]:
        """y + scale * B A dropout(x)."""
        return torch.addmm(y, self.squeeze(x), self.b.t(), alpha=self.scale)


class LoraLinear(nn.Module):
    """A linear without bias and its adapters: `weight` [out in], `lora.NAME.a` [R in], `lora.NAME.b` [out R]. An
    adapter may have no factors for a linear."""

    def __init__(self, inputs: int, outputs: int, adapters: Mapping[str, AdapterConfig]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.lora = nn.ModuleDict(
            {name: LowRank(inputs, outputs, config) for name, config in adapters.items()}
        )

    def pair(self, adapter: str) -> LowRank:
        """An adapter's factors."""
        module = self.lora[adapter]
        assert isinstance(module, LowRank)
        return module

    def base(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        """W x alone."""
        return F.linear(x, self.weight)

    def forward(
        self, x: Float[Tensor, "T I"], routes: Sequence[Route] = ()
    ) -> Float[Tensor, "T O"]:
        """W x, plus the outputs of the routes' adapters on their tokens."""
        y = self.base(x)
        for route in routes:
            if route.adapter not in self.lora:
                continue
            pair = self.pair(route.adapter)
            if route.tokens is None:
                y = pair.add(y, x)
            else:
                low = pair.squeeze(x.index_select(0, route.tokens))
                y = y.index_add(0, route.tokens, pair.expand(low).to(y.dtype), alpha=pair.scale)
        return y
