"""Linears and adapters of the decoder whose weights are quantized: they replace prepared ones (prepared/linear.py)."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.model.attention import working_dtype
from polyphi.model.lora import Route
from polyphi.prepared.linear import PreparedLoraLinear, PreparedLowRank
from polyphi.quantization.integer_weights import Quantized


class QuantizedLowRank(PreparedLowRank):
    """An adapter's factors, whose products `down` and `up` compute."""

    down: Quantized | None = None
    up: Quantized | None = None

    def squeeze(self, x: Float[Tensor, "n I"]) -> Float[Tensor, "n R"]:
        return super().squeeze(x) if self.down is None else self.down(x)

    def expand(self, low: Float[Tensor, "n R"]) -> Float[Tensor, "n O"]:
        return super().expand(low) if self.up is None else self.up(low)

    def add(self, y: Float[Tensor, "n O"], x: Float[Tensor, "n I"]) -> Float[Tensor, "n O"]:
        """y + scale * B A x, computed in place in `y`."""
        if self.up is None:
            return super().add(y, x)
        return y.add_(self.up(self.squeeze(x)), alpha=self.scale)

    def tensors(self) -> Iterator[Tensor]:
        """Tensors that identify the adapter: all in a plain memory layout, at least the scales."""
        yield from self.parameters()
        for weight in (self.down, self.up):
            yield from (t for t in weight.tensors() if not t.is_mkldnn) if weight else ()


class QuantizedLoraLinear(PreparedLoraLinear):
    """A linear whose `kernel` computes W x, with an adapter, and the gate or the sum behind it, in one call where it
    can."""

    kernel: Quantized | None = None

    def base(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        return super().base(x) if self.kernel is None else self.kernel(x)

    def forward(
        self, x: Float[Tensor, "T I"], routes: Sequence[Route] = ()
    ) -> Float[Tensor, "T O"]:
        fused = self._fused(x, routes)
        return super().forward(x, routes) if fused is None else fused

    def gated(self, x: Float[Tensor, "T I"], routes: Sequence[Route]) -> Float[Tensor, "T O_"]:
        fused = self._fused(x, routes, gated=True)
        return super().gated(x, routes) if fused is None else fused

    def add_to(
        self, y: Float[Tensor, "T O"], x: Float[Tensor, "T I"], routes: Sequence[Route]
    ) -> Float[Tensor, "T O"]:
        fused = self._fused(x, routes, onto=y)
        return super().add_to(y, x, routes) if fused is None else fused

    def _fused(
        self,
        x: Tensor,
        routes: Sequence[Route],
        onto: Tensor | None = None,
        gated: bool = False,
    ) -> Tensor | None:
        """The output, gated or added to `onto`, by one kernel without gradients and autocast; None unless all tokens
        use one adapter or none, and its factors are quantized too."""
        # under autocast residuals are in float32
        mixed = working_dtype(x) != x.dtype or (onto is not None and onto.dtype != x.dtype)
        if self.kernel is None or torch.is_grad_enabled() or mixed:
            return None
        used = [route for route in routes if route.adapter in self.lora]
        if not used:
            return self.kernel.fused(x, None, onto, gated)
        pair = self.pair(used[0].adapter)
        if len(routes) > 1 or used[0].tokens is not None or not isinstance(pair, QuantizedLowRank):
            return None
        if pair.down is None or pair.up is None:
            return None
        return self.kernel.fused(x, (pair.down, pair.up, pair.scale), onto, gated)
