"""The convolutions before the Conformer's blocks: frames by eight, frequencies by eight (report 2.2.1).

Clips of any lengths are packed with gaps: blank frames lie between them, which are zeroed before every
convolution::

    a a a a a . . . b b b . . . . . c c c c        frames,    starts are multiples of 8
    a a a . b b . . c c                            after one convolution of stride 2
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyphi.model.config import AudioConfig

SUBSAMPLING = 8
"""Mel frames per feature: three convolutions of stride 2."""

MIN_GAP = 4
"""Blank frames that must separate two clips at least: one frame of the last convolution's input, which is 4 frames
wide."""


def half(n: int) -> int:
    """Outputs of a convolution of width 3, stride 2, padding 1 over n inputs."""
    return -(-n // 2)


class PackedLayout(NamedTuple):
    """Layout of clips on one tape: every clip starts where a feature starts, at least MIN_GAP frames after the end of
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
        self.out = nn.Linear(c * half(half(half(config.input_size))), config.hidden_size)

    def forward(self, mels: Float[Tensor, "F M"], lengths: Sequence[int]) -> Float[Tensor, "A D"]:
        """Packed frames of clips of the given lengths to packed features."""
        tape = PackedLayout.of(lengths)
        x = mels.new_zeros(tape.length(1), mels.shape[-1])
        x = x.index_copy_(0, _on(mels, tape.positions(1)), mels)
        x = self.convolve(x[None, None], tape)
        # [1, channels, time, frequency] -> a row per feature, channel-major.
        x = x[0].transpose(0, 1).index_select(0, _on(mels, tape.positions(SUBSAMPLING)))
        return self.out(x.flatten(1))

    def convolve(self, x: Float[Tensor, "1 1 F M"], tape: PackedLayout) -> Float[Tensor, "1 C T B"]:
        """All convolutions of packed frames."""
        stride = 1
        for module in self.conv:
            if isinstance(module, nn.Conv2d):
                stride *= module.stride[0]
            elif stride < SUBSAMPLING:
                # the convolution's bias has changed the blank frames, which the next convolution reads
                x = x.index_fill_(2, _on(x, tape.blanks(stride)), 0)
            x = module(x)
        return x


def _on(x: Tensor, indices: Int[np.ndarray, " m"]) -> Int[Tensor, " m"]:
    """Indices on the device of `x`."""
    return torch.from_numpy(indices).to(x.device, non_blocking=True)
