"""Linear layers by our kernels, where these are faster than torch's and no gradient is needed.

>>> product(x, weight, bias)                                 # [*T I] by [O I] -> [*T O]

On a CPU without bfloat16 instructions torch multiplies bfloat16 at a tenth of its float32 rate; our kernel reads the
same weights and multiplies in float32 (kernels/bf16.py).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

import polyphi.kernels as kernels
from polyphi.kernels import bf16, blocks
from polyphi.model import conformer, decoder, lora, projector
from polyphi.model.lora import Route


def product(
    x: Float[Tensor, "*T I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "*T O"]:
    """W x + bias."""
    # Without a gradient of x autograd doesn't store the weight, and a copy would be additional memory.
    if x.requires_grad:
        weight = autocast_weight(weight)
    if bf16.supports(x, weight):
        y = bf16.linear(x.reshape(-1, x.shape[-1]), weight, bias)
        return y.view(*x.shape[:-1], len(weight))
    if bias is None and _one_row(x, weight) and kernels.missing() is not None:
        return torch.mv(weight, x.reshape(-1)).view(*x.shape[:-1], len(weight))
    return F.linear(x, weight, bias)


def autocast_weight(weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """A frozen weight of a CPU in the dtype of autocast, within `frozen_copies`; otherwise the weight itself. (autocast
    keeps its copies of trainable weights for one forward, and none of frozen ones.)"""
    if _copies is None or weight.requires_grad or not weight.is_cpu:
        return weight
    if not torch.is_autocast_enabled("cpu"):
        return weight
    dtype = torch.get_autocast_dtype("cpu")
    if weight.dtype == dtype:
        return weight
    version, copy = _copies.get(weight, (None, None))
    if copy is None or version != weight._version:
        copy = weight.detach().to(dtype)
        _copies[weight] = weight._version, copy
    return copy


def autocast_input(x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T I"]:
    """The input of several products, cast once to the dtype of autocast."""
    device = x.device.type
    active = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return x.to(torch.get_autocast_dtype(device)) if active else x


_copies: WeakIdKeyDictionary | None = None


@contextmanager
def frozen_copies(enabled: bool = True) -> Iterator[None]:
    """A context in which a frozen weight is cast only once for all forwards under autocast; its copy takes the memory
    that it would take during each of them, where activations are kept."""
    global _copies  # noqa: PLW0603 - a context, as autocast's own
    before, _copies = _copies, WeakIdKeyDictionary() if enabled else None
    try:
        yield
    finally:
        _copies = before


def _one_row(x: Tensor, weight: Tensor) -> bool:
    """Whether x is a single row in bfloat16 on a CPU, without gradients. A matrix product reads its weights at a part
    of the memory's bandwidth, a matrix-vector product at all of it."""
    bf16_cpu = x.dtype == weight.dtype == torch.bfloat16 and x.device.type == "cpu"
    return bf16_cpu and x.numel() == x.shape[-1] and not torch.is_grad_enabled()


class PreparedLinear(nn.Linear):
    """`nn.Linear` by `product`."""

    def forward(self, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
        return product(x, self.weight, self.bias)


class PreparedPointwise(conformer.Pointwise):
    """A convolution of width 1 by `product`."""

    def forward(self, x: Float[Tensor, "A I"]) -> Float[Tensor, "A O"]:
        return product(x, self.weight.squeeze(-1), self.bias)


PROJECTED = 4096
"""Audio features projected at a time without gradients. [ours]"""


class PreparedProjector(projector.Projector):
    """A projector of a bounded number of features at a time: half an hour of audio is 22,500."""

    def forward(self, x: Float[Tensor, "n I"]) -> Float[Tensor, "n D"]:
        if len(x) <= PROJECTED or torch.is_grad_enabled():
            return super().forward(x)
        return torch.cat(
            [super(PreparedProjector, self).forward(part) for part in x.split(PROJECTED)]
        )


class PreparedLowRank(lora.LowRank):
    """An adapter's factors by `product`, whose output is added in place without gradients, and whose dropout is sparse
    on a CPU."""

    def squeeze(self, x: Float[Tensor, "n I"]) -> Float[Tensor, "n R"]:
        if self.training and self.dropout > 0:
            x = dropout(x, self.dropout)
        return product(x, self.a)

    def expand(self, low: Float[Tensor, "n R"]) -> Float[Tensor, "n O"]:
        return product(low, self.b)

    def add(self, y: Float[Tensor, "n O"], x: Float[Tensor, "n I"]) -> Float[Tensor, "n O"]:
        """y + scale * B A dropout(x), computed in place in `y`, the output of a product."""
        low = self.squeeze(x)
        if bf16.supports(low, self.b) and y.dtype == low.dtype and y.is_contiguous():
            return bf16.add(y, low, self.b, scale=self.scale)
        # autocast casts no operands of operations in place
        return y.addmm_(low.to(y.dtype), self.b.t().to(y.dtype), alpha=self.scale)


def dropout(x: Float[Tensor, "n I"], p: float) -> Float[Tensor, "n I"]:
    """Dropout: each value is 0 with probability `p`, else 1 / (1 - p) times as large.

    A CPU is slow to draw a number per value; where few are dropped it is faster to draw their indices. The number of
    indices is Poisson-distributed with mean -n ln(1 - p), each index is uniform: then a value is drawn at least once
    with probability p, independently of the others.
    """
    if x.is_cuda or p > 0.1:
        return F.dropout(x, p)
    mean = torch.tensor(-x.numel() * math.log1p(-p))
    indices = torch.randint(x.numel(), (int(torch.poisson(mean)),), device=x.device)
    factors = x.new_full((x.numel(),), 1 / (1 - p)).index_fill_(0, indices, 0.0)
    return x * factors.view_as(x)


class PreparedLoraLinear(lora.LoraLinear):
    """A linear with adapters by `product`. A quantized one computes `gated` and `add_to` in one kernel
    (quantization/modules.py)."""

    def forward(
        self, x: Float[Tensor, "T I"], routes: Sequence[Route] = ()
    ) -> Float[Tensor, "T O"]:
        return super().forward(autocast_input(x), routes)

    def base(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        return product(x, self.weight)

    def gated(self, x: Float[Tensor, "T I"], routes: Sequence[Route]) -> Float[Tensor, "T O_"]:
        """`swiglu` of the linear's output."""
        return swiglu(self(x, routes))

    def add_to(
        self, y: Float[Tensor, "T O"], x: Float[Tensor, "T I"], routes: Sequence[Route]
    ) -> Float[Tensor, "T O"]:
        """y plus the linear's output."""
        return y + self(x, routes)


def swiglu(x: Float[Tensor, "T I2"]) -> Float[Tensor, "T I"]:
    """up * silu(gate), from gate and up concatenated."""
    return blocks.swiglu(x) if kernels.plain(x) else decoder.swiglu(x)
