"""The convolutions before the Conformer's blocks, as matrix products and by our kernels on a CPU.

| | |
|---|---|
| with gradients, or in float32 | pointwise convolutions as one matrix product, all in the weights' dtype |
| bfloat16 without AVX-512 | our kernels: float32 inside the layers, bfloat16 between them |
| other bfloat16 | the first convolution as a matrix product too |
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyphi.kernels import bf16
from polyphi.kernels import encoder as native
from polyphi.kernels.encoder import QuantizedRows, Raw
from polyphi.model.subsampling import SUBSAMPLING, PackedLayout, Subsampling, half
from polyphi.prepared.linear import product

BATCH_FEATURES = 96
"""Features that `in_parts` computes at a time: the intermediate results then stay in a cache. The output of the first
convolution for 30 s would take 50 MB in 8 bits. [ours]"""


def _from_one_channel(
    x: Float[Tensor, "T M"], conv: nn.Conv2d
) -> Float[Tensor, "1 C half_T half_M"]:
    """A convolution 3 x 3 of stride 2 and padding 1 over one channel, as a matrix product: torch's convolution on a CPU
    takes 12 times as long in bfloat16 (1024 channels). In float32, which training uses, torch's is faster. The bias is
    the weight of a tenth input."""
    assert conv.bias is not None
    size = half(x.shape[0]), half(x.shape[1])
    patches = F.pad(x, (1, 1, 1, 1)).unfold(0, 3, 2).unfold(1, 3, 2).permute(2, 3, 0, 1).flatten(2)
    inputs = torch.cat([patches.flatten(0, 1), patches.new_ones(1, size[0] * size[1])])
    return (torch.cat([conv.weight.flatten(1), conv.bias[:, None]], 1) @ inputs).view(1, -1, *size)


class FirstConvolution(nn.Conv2d):
    """The convolution over one channel, in bfloat16 on a CPU as a matrix product."""

    def forward(self, x: Float[Tensor, "1 1 T M"]) -> Float[Tensor, "1 C half_T half_M"]:
        if (x.device.type, x.dtype) == ("cpu", torch.bfloat16):
            return _from_one_channel(x[0, 0], self)
        return super().forward(x)


class PointwiseConvolution(nn.Conv2d):
    """A convolution of width 1 as one matrix product over all times and frequencies."""

    def forward(self, x: Float[Tensor, "1 C T M"]) -> Float[Tensor, "1 O T M"]:
        assert self.bias is not None
        y = torch.addmm(self.bias[:, None], self.weight.flatten(1), x.flatten(2)[0])
        return y.view(1, -1, *x.shape[2:])


class PreparedSubsampling(Subsampling):
    """The convolutions in the dtype of their weights, or by our kernels."""

    def prepare_convolutions(self) -> None:
        """Replace the first convolution and the pointwise ones."""
        first, _, up, _, down = convolutions(self)
        first.__class__ = FirstConvolution
        up.__class__ = down.__class__ = PointwiseConvolution

    def forward(self, mels: Float[Tensor, "F M"], lengths: Sequence[int]) -> Float[Tensor, "A D"]:
        if not self._use_kernels():
            return super().forward(mels, lengths)
        _, _, up, _, down = convolutions(self)
        linears = (_pointwise(up), _pointwise(down), self.out)
        return in_parts(mels, lengths, taps(self), linears, eight_bits=False)

    def convolve(self, x: Float[Tensor, "1 1 F M"], tape: PackedLayout) -> Float[Tensor, "1 C T B"]:
        # On a CPU torch's depthwise convolutions are slower in bf16 than in fp32, backwards by half.
        with torch.autocast("cpu", enabled=False):
            return super().convolve(x, tape)

    def _use_kernels(self) -> bool:
        """Whether to use our kernels: on this CPU torch's bfloat16 products and convolutions are slow."""
        first = convolutions(self)[0]
        fits = first.out_channels % native.LANES == 0
        return fits and native.supports_attention(first.weight) and bf16.needed()


def _pointwise(convolution: nn.Conv2d) -> Callable[[Any], Raw]:
    """The product of a convolution of width 1 and rows."""
    return lambda x: Raw(product(x, convolution.weight.flatten(1), convolution.bias))


def convolutions(subsampling: Subsampling) -> list[nn.Conv2d]:
    """The convolutions: first, depthwise, pointwise, depthwise, pointwise."""
    return [m for m in subsampling.conv if isinstance(m, nn.Conv2d)]


Taps = tuple[Float[Tensor, "9 C"], Float[Tensor, " C"]]
"""Weights and bias of a 3 x 3 convolution over single channels, in the kernels' format: float32."""


def taps(subsampling: Subsampling) -> list[Taps]:
    """Weights of the first convolution and of both depthwise ones."""
    first, second, _, third, _ = convolutions(subsampling)
    return [
        (conv.weight.flatten(1).t().float().contiguous(), conv.bias.float())
        for conv in (first, second, third)
        if conv.bias is not None
    ]


def in_parts(
    mels: Float[Tensor, "F M"],
    lengths: Sequence[int],
    taps: Sequence[Taps],
    linears: tuple[Callable[[Any], Raw], Callable[[Any], Raw], Callable[[Tensor], Tensor]],
    *,
    eight_bits: bool,
) -> Float[Tensor, "A D"]:
    """The result of `Subsampling` by our kernels (kernels/encoder.py), BATCH_FEATURES at a time. `linears` are the two
    pointwise convolutions, of activations in 8 bits (`QuantizedRows`) or bfloat16, and the last linear, of bfloat16."""
    tape = PackedLayout.of(lengths)
    positions = [torch.from_numpy(tape.positions(stride)) for stride in (1, 2, 4, 8)]
    occupied = [
        torch.zeros(tape.length(stride), dtype=torch.bool).index_fill_(0, at, True)
        for stride, at in ((2, positions[1]), (4, positions[2]))
    ]
    x = torch.zeros(tape.length(1), mels.shape[1]).index_copy_(0, positions[0], mels.float())
    first, second, third = taps
    up, down, last = linears

    def features(start: int, end: int) -> Float[Tensor, "n B C"]:
        """Features from `start` to `end`, before the last linear. A convolution also reads the frame before its first
        one. To keep the stride, the output before the first is computed too and dropped."""
        first_input = max(0, 2 * start - 2)  # first input of the last convolution
        extra_frames, extra_features = min(first_input, 1), min(start, 1)
        frames, times = (slice(n * (first_input - extra_frames), 2 * n * end) for n in (4, 2))
        y = native.strided((x[frames], *first), occupied[0][times], *second, eight_bits)
        y = _skip_frames(y, extra_frames, 2 * end - first_input + extra_frames)
        y = native.strided(up(y), occupied[1][first_input : 2 * end], *third, eight_bits)
        y = _skip_frames(y, extra_features, end - start + extra_features)
        out = native.activate_bf16("relu", down(y))
        return out.view(end - start, -1, out.shape[1])

    length = tape.length(SUBSAMPLING)
    starts = range(0, length, BATCH_FEATURES)
    parts = [features(start, min(start + BATCH_FEATURES, length)) for start in starts]
    # [times, bands, channels] -> a row per feature, channel-major
    return last(torch.cat(parts).transpose(1, 2).index_select(0, positions[3]).flatten(1))


def _skip_frames(x: QuantizedRows | Tensor, first: int, times: int) -> QuantizedRows | Tensor:
    """The rows of `times` frames without the first `first` frames."""
    if isinstance(x, QuantizedRows):
        skip = len(x.q) // times * first
        return QuantizedRows(x.q[skip:], x.scale[skip:])
    return x[len(x) // times * first :]
