"""The convolutions before the Conformer's blocks: frames by eight, frequencies by eight (report 2.2.1).

Clips of any lengths are packed with gaps: blank frames lie between them, which are zeroed before every
convolution::

    a a a a a . . . b b b . . . . . c c c c        frames,    starts are multiples of 8
    a a a . b b . . c c                            after one convolution of stride 2
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyphi.kernels import bf16
from polyphi.kernels import encoder as native
from polyphi.kernels.encoder import QuantizedRows, Raw
from polyphi.model.config import AudioConfig
from polyphi.model.linear import Linear, product

SUBSAMPLING = 8
"""Mel frames per feature: three convolutions of stride 2."""

MIN_GAP = 4
"""Blank frames that must separate two clips at least: one frame of the last convolution's input, which is 4 frames
wide."""

BATCH_FEATURES = 96
"""Features that `in_parts` computes at a time: the intermediate results then stay in a cache. The output of the first
convolution for 30 s would take 50 MB in 8 bits. [ours]"""


def _half(n: int) -> int:
    """Outputs of a convolution of width 3, stride 2, padding 1 over n inputs."""
    return -(-n // 2)


def _from_one_channel(
    x: Float[Tensor, "T M"], conv: nn.Conv2d
) -> Float[Tensor, "1 C half_T half_M"]:
    """A convolution 3 x 3 of stride 2 and padding 1 over one channel, as a matrix product: torch's convolution on a CPU
    takes 12 times as long in bfloat16 (1024 channels). In float32, which training uses, torch's is faster. The bias is
    the weight of a tenth input."""
    assert conv.bias is not None
    size = _half(x.shape[0]), _half(x.shape[1])
    patches = F.pad(x, (1, 1, 1, 1)).unfold(0, 3, 2).unfold(1, 3, 2).permute(2, 3, 0, 1).flatten(2)
    inputs = torch.cat([patches.flatten(0, 1), patches.new_ones(1, size[0] * size[1])])
    return (torch.cat([conv.weight.flatten(1), conv.bias[:, None]], 1) @ inputs).view(1, -1, *size)


class PackedLayout(NamedTuple):
    """Layout of clips on the tape: every clip starts where a feature starts, at least MIN_GAP frames after the end of
    the one before. After convolutions that shorten time by `stride`, all positions are divided by it."""

    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    """Start of each clip, and the length of the tape."""

    @staticmethod
    def of(lengths: Sequence[int]) -> "PackedLayout":
        starts = [0]
        for n in lengths:
            span = -(-(4 * -(-n // 4) + MIN_GAP) // SUBSAMPLING) * SUBSAMPLING
            starts.append(starts[-1] + span)
        return PackedLayout(tuple(lengths), tuple(starts))

    def length(self, stride: int) -> int:
        return self.starts[-1] // stride

    def positions(self, stride: int) -> Int[np.ndarray, " m"]:
        """Positions of the clips' frames."""
        clips = zip(self.lengths, self.starts, strict=False)
        return np.concatenate([np.arange(-(-n // stride)) + start // stride for n, start in clips])

    def blanks(self, stride: int) -> Int[np.ndarray, " m"]:
        """Positions outside the clips."""
        return np.setdiff1d(
            np.arange(self.length(stride)), self.positions(stride), assume_unique=True
        )


class Subsampling(nn.Module):
    """Subsampling of time and frequency by eight: a convolution, then twice a depthwise and a pointwise one. Not
    causal."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        if config.time_reduction != SUBSAMPLING:
            raise ValueError(
                f"time_reduction must be {SUBSAMPLING} (three convolutions of stride 2), found {config.time_reduction}"
            )
        c = config.nemo_conv_channels
        self.conv = nn.Sequential(
            nn.Conv2d(1, c, kernel_size=3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, c, kernel_size=3, stride=2, padding=1, groups=c),
            nn.Conv2d(c, c, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, c, kernel_size=3, stride=2, padding=1, groups=c),
            nn.Conv2d(c, c, kernel_size=1),
            nn.ReLU(inplace=True),
        )
        self.out = Linear(c * _half(_half(_half(config.input_size))), config.hidden_size)

    def forward(self, mels: Float[Tensor, "F M"], lengths: Sequence[int]) -> Float[Tensor, "A D"]:
        """Packed frames of clips of the given lengths to packed features."""
        if self._use_kernels():
            return self._in_float32(mels, lengths)
        tape, stride = PackedLayout.of(lengths), 1

        def to_device(indices: np.ndarray) -> Tensor:
            return torch.from_numpy(indices).to(mels.device, non_blocking=True)

        x = mels.new_zeros(tape.length(1), mels.shape[-1]).index_copy(
            0, to_device(tape.positions(1)), mels
        )
        x = x[None, None]
        # On a CPU torch's depthwise convolutions are slower in bf16 than in fp32, backwards by half.
        with torch.autocast("cpu", enabled=False):
            for module in self.conv:
                if isinstance(module, nn.ReLU):
                    # the convolution's bias has changed the blank frames, which the next convolution reads
                    if stride < SUBSAMPLING:
                        x = x.index_fill_(2, to_device(tape.blanks(stride)), 0)
                    x = module(x)
                elif (
                    isinstance(module, nn.Conv2d)
                    and module.in_channels == 1
                    and (x.device.type, x.dtype) == ("cpu", torch.bfloat16)
                ):
                    x = _from_one_channel(x[0, 0], module)
                    stride *= 2
                elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
                    # one matrix product over all times and frequencies
                    assert module.bias is not None
                    x = torch.addmm(
                        module.bias[:, None], module.weight.flatten(1), x.flatten(2)[0]
                    ).view_as(x)
                else:
                    x = module(x)
                    stride *= 2
        # [1, channels, time, frequency] -> a row per feature, channel-major.
        x = x[0].transpose(0, 1).index_select(0, to_device(tape.positions(stride)))
        return self.out(x.flatten(1))

    def _use_kernels(self) -> bool:
        """Whether to use our kernels: on this CPU torch's bfloat16 products and convolutions are slow."""
        first = convolutions(self)[0]
        fits = first.out_channels % native.LANES == 0
        return fits and native.supports_attention(first.weight) and bf16.needed()

    def _in_float32(
        self, mels: Float[Tensor, "F M"], lengths: Sequence[int]
    ) -> Float[Tensor, "A D"]:
        """The result of `forward` with bfloat16 between the layers and float32 inside them."""

        def pointwise(convolution: nn.Conv2d) -> Callable[[Any], Raw]:
            return lambda x: Raw(product(x, convolution.weight.flatten(1), convolution.bias))

        _, _, up, _, down = convolutions(self)
        linears = (pointwise(up), pointwise(down), self.out)
        return in_parts(mels, lengths, taps(self), linears, eight_bits=False)


def convolutions(subsampling: Subsampling) -> list[nn.Conv2d]:
    """The convolutions: first, depthwise, pointwise, depthwise, pointwise."""
    return [m for m in subsampling.conv if isinstance(m, nn.Conv2d)]


Taps = tuple[Float[Tensor, "9 D"], Float[Tensor, " D"]]
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
