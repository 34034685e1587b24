"""Conformer speech encoder: log-mel frames every 10 ms become features every 80 ms (report 2.2.1).

Three strided convolutions shorten time and frequency by eight (subsampling.py), then 24 blocks of half-step
feed-forward, attention with a learned bias per relative distance, causal convolution and half-step feed-forward. A clip
of more than 500 features (40 s) is encoded in windows of 500 that don't attend to each other.

Clips of any lengths share one call, with the same results as separate calls. In the blocks all operations on single
frames run over packed frames without padding; only attention batches windows of similar length and pads those a little.

Without gradients, the convolutions and then the blocks run over 80 s at a time: half an hour takes the memory of 80 s,
plus its features. The results are the same, since windows don't attend to each other and a feature depends on no frames
before those of the feature before it.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyphi.batch import AudioLayout
from polyphi.kernels import encoder as native
from polyphi.model.attention import working_dtype
from polyphi.model.config import AudioConfig
from polyphi.model.linear import Linear, product
from polyphi.model.subsampling import SUBSAMPLING, Subsampling
from polyphi.steps import Steps, result_of

BATCH_FEATURES = 1000
"""Features encoded at a time without gradients: 80 s, two windows. [ours] The output of the first convolution for them
takes 330 MB at full size in bfloat16."""


class Span(NamedTuple):
    """Features of one clip that are computed in one call: `frames` mel frames of the batch from `start` on. The first
    `early` features are only context for the convolutions and are dropped; the next `tokens` are the result."""

    start: int
    frames: int
    early: int
    tokens: int


def _spans(clips: Sequence[AudioLayout], max_features: int) -> Iterator[Span]:
    """Clips cut into spans of at most `max_features` features."""
    start = 0
    for clip in clips:
        for first in range(0, clip.tokens, max_features):
            early = min(first, 1)
            end = min(SUBSAMPLING * (first + max_features), clip.frames)
            begin = SUBSAMPLING * (first - early)
            tokens = min(max_features, clip.tokens - first)
            yield Span(start + begin, end - begin, early, tokens)
        start += clip.frames


def _runs(sizes: Sequence[int], max_features: int) -> Iterator[slice]:
    """Slices of consecutive items whose sum of sizes is at most `max_features`; a larger item is a slice by itself."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > max_features:
            yield slice(start, i)
            start, total = i, 0
        total += size
    yield slice(start, len(sizes))


def _concatenate(parts: Sequence[Tensor]) -> Float[Tensor, "m D"]:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@dataclass(frozen=True)
class WindowGroup:
    """Windows of similar length, padded to one batch: `gather` [windows * longest] is the index of their frames
    (padding repeats frame 0), `visible` is False at padded keys, None where nothing is padded."""

    windows: int
    longest: int
    gather: Int[Tensor, " WL"]
    visible: Bool[Tensor, "W 1 1 L"] | None


@dataclass(frozen=True)
class Windows:
    """The windows of a call: `index[t]` is the position of frame t in the concatenated groups, `age[t]` the number of
    frames before it in its window; `lengths` are those of the windows."""

    lengths: tuple[int, ...]
    groups: tuple[WindowGroup, ...]
    index: Int[Tensor, " A"]
    age: Int[Tensor, " A"]

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> "Windows":
        """Group windows of the given lengths (at most a quarter or 8 frames of padding each), in order of length."""
        starts = np.concatenate([[0], np.cumsum(lengths)])
        groups, index, out = [], np.empty(starts[-1], dtype=np.int64), 0
        order = sorted(range(len(lengths)), key=lambda w: lengths[w])
        while order:
            shortest = lengths[order[0]]
            members = [w for w in order if lengths[w] <= max(shortest + 8, shortest * 5 // 4)]
            order = order[len(members) :]
            longest = lengths[members[-1]]
            is_frame = np.arange(longest) < np.array([lengths[w] for w in members])[:, None]
            frames = np.where(is_frame, starts[members][:, None] + np.arange(longest), 0)
            index[frames[is_frame]] = out + np.flatnonzero(is_frame)
            out += is_frame.size
            visible = (
                None
                if is_frame.all()
                else torch.from_numpy(is_frame)[:, None, None, :].to(device, non_blocking=True)
            )
            gather = torch.from_numpy(frames.ravel()).to(device, non_blocking=True)
            groups.append(WindowGroup(len(members), longest, gather, visible))
        age = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        index_, age_ = (torch.from_numpy(x).to(device, non_blocking=True) for x in (index, age))
        return Windows(tuple(lengths), tuple(groups), index_, age_)


class FeedForward(nn.Module):
    """down(value * swish(gate)); unlike in the decoder, the *value* comes first in the fused projection."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.value_gate_proj = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "A D"]) -> Float[Tensor, "A D"]:
        value, gate = self.value_gate_proj(self.layer_norm(x)).chunk(2, dim=-1)
        return self.down_proj(value * F.silu(gate))


class SelfAttention(nn.Module):
    """Attention within windows, with a bias per head and distance: `biases` are [W H L L] per group, or, for our
    kernel, one tensor of all distances [H 2L-1]."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Linear(size, size) for _ in range(4))

    def forward(
        self, x: Float[Tensor, "A D"], windows: Windows, biases: Sequence[Tensor] | Tensor
    ) -> Float[Tensor, "A D"]:
        q, k, v = qkv = [p(x) for p in (self.q_proj, self.k_proj, self.v_proj)]
        if isinstance(biases, Tensor):
            sizes = windows.lengths
            return self.o_proj(native.attention(q, k, v, self.heads, sizes, sizes, biases))
        outs = []
        for group, bias in zip(windows.groups, biases, strict=True):
            shape = (group.windows, group.longest, self.heads, -1)
            q, k, v = (t.index_select(0, group.gather).view(shape).transpose(1, 2) for t in qkv)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            outs.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
        return self.o_proj(torch.cat(outs).index_select(0, windows.index))


class Pointwise(nn.Module):
    """A convolution of width 1 with the weight [out in 1], computed as a linear."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Float[Tensor, "A I"]) -> Float[Tensor, "A O"]:
        return product(x, self.weight.squeeze(-1), self.bias)


class GLU(nn.Module):
    """(value + b1) * swish(gate + b2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.b1 = nn.Parameter(torch.zeros(1, outputs, 1))
        self.b2 = nn.Parameter(torch.zeros(1, outputs, 1))
        self.ext_pw_conv_1d = Pointwise(inputs, 2 * outputs)

    def forward(self, x: Float[Tensor, "A I"]) -> Float[Tensor, "A O"]:
        value, gate = self.ext_pw_conv_1d(x).chunk(2, dim=-1)
        return (value + self.b1.flatten()) * F.silu(gate + self.b2.flatten())


class CausalDepthwise(nn.Module):
    """Depthwise convolution of each channel over the last `width` frames of its window; weight [D 1 width]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Float[Tensor, "A D"], age: Int[Tensor, " A"]) -> Float[Tensor, "A D"]:
        taps = self.weight[:, 0].t()
        out = self.bias + x * taps[-1]
        for back in range(1, len(taps)):
            # Frame t - back, or zero where that is before the start of the window.
            shifted = F.pad(x[: max(len(x) - back, 0)], (0, 0, min(back, len(x)), 0))
            out = out + torch.where((age >= back)[:, None], shifted, 0) * taps[-1 - back]
        return out


class SeparableConv(nn.Module):
    """Depthwise convolution over time, then pointwise over channels."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.dw_conv = CausalDepthwise(inputs, width)
        self.pw_conv = Pointwise(inputs, outputs)

    def forward(self, x: Float[Tensor, "A I"], age: Int[Tensor, " A"]) -> Float[Tensor, "A O"]:
        return self.pw_conv(self.dw_conv(x, age))


class ConvModule(nn.Module):
    """Norm, GLU, causal separable convolution, swish, pointwise; no batch norm."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        size, inner, middle = (
            config.hidden_size,
            config.ext_pw_out_channel,
            config.depthwise_separable_out_channel,
        )
        self.layer_norm = nn.LayerNorm(size)
        self.glu = GLU(size, inner)
        self.dw_sep_conv_1d = SeparableConv(inner, middle, config.kernel_size)
        self.ext_pw_conv_1d = Pointwise(middle, size)

    def forward(self, x: Float[Tensor, "A D"], age: Int[Tensor, " A"]) -> Float[Tensor, "A D"]:
        return self.ext_pw_conv_1d(F.silu(self.dw_sep_conv_1d(self.glu(self.layer_norm(x)), age)))


class Block(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(config)
        self.layer_norm_att = nn.LayerNorm(config.hidden_size)
        self.self_attn = SelfAttention(config)
        self.conv = ConvModule(config)
        self.feed_forward_out = FeedForward(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size)

    def forward(
        self, x: Float[Tensor, "A D"], windows: Windows, biases: Sequence[Tensor] | Tensor
    ) -> Float[Tensor, "A D"]:
        x = x + 0.5 * self.feed_forward_in(x)
        x = x + self.self_attn(self.layer_norm_att(x), windows, biases)
        x = x + self.conv(x, windows.age)
        x = x + 0.5 * self.feed_forward_out(x)
        return self.layer_norm(x)


class ConformerEncoder(nn.Module):
    """Packed log-mel frames of all clips to packed features of all clips."""

    global_mean: Tensor
    global_invstd: Tensor

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("global_mean", torch.zeros(config.input_size))
        self.register_buffer("global_invstd", torch.ones(config.input_size))
        self.subsampling = Subsampling(config)
        self.relative_attention_bias = nn.Embedding(
            2 * config.bias_max_distance, config.num_attention_heads
        )
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_blocks)])

    def _distance_biases(self, longest: int) -> Float[Tensor, "H L"]:
        """The learned biases of all distances (key - query) in windows of up to `longest` frames, shared by all blocks:
        [H, 2 longest - 1]."""
        max_distance = self.config.bias_max_distance
        distance = (
            torch.arange(1 - longest, longest).clamp(-max_distance, max_distance - 1) + max_distance
        )
        return self.relative_attention_bias(distance).t().float().contiguous()

    def _biases(self, windows: Windows, dtype: torch.dtype) -> list[Tensor]:
        """Attention biases [W or 1, H, L, L] per group, shared by all blocks: the learned one for (key - query), -inf
        at padded keys."""
        max_distance = self.config.bias_max_distance
        longest = max(group.longest for group in windows.groups)
        t = torch.arange(longest, device=windows.age.device)
        distance = (t[None, :] - t[:, None]).clamp(-max_distance, max_distance - 1) + max_distance
        table = self.relative_attention_bias(distance).permute(2, 0, 1).to(dtype)
        biases = []
        for group in windows.groups:
            bias = table[None, :, : group.longest, : group.longest]
            if group.visible is not None:
                bias = torch.where(group.visible, bias, float("-inf"))
            biases.append(bias)
        return biases

    def forward(
        self, mels: Float[Tensor, "F M"], clips: Sequence[AudioLayout]
    ) -> Float[Tensor, "A D"]:
        """Features of all clips, `clip.tokens` each, the same as in separate calls.

        Raises ValueError where the clips' frames don't add up to the batch's, or a clip has none.
        """
        return result_of(self.slices(mels, clips))

    def slices(
        self, mels: Float[Tensor, "F M"], clips: Sequence[AudioLayout]
    ) -> Steps[Float[Tensor, "A D"]]:
        """The result of `forward`, in slices of one block over a few windows."""
        total = sum(clip.frames for clip in clips)
        if total != len(mels):
            raise ValueError(
                f"the clips' layouts need {total} log-mel frames, the batch has {len(mels)}"
            )
        if any(clip.frames < 1 for clip in clips):
            raise ValueError("found a clip without log-mel frames: audio must last at least 25 ms")
        # Rounded to the weights' dtype first, then normalized: the order of the published code.
        dtype = self.relative_attention_bias.weight.dtype
        x = (mels.to(dtype) - self.global_mean) * self.global_invstd
        # With gradients all activations are stored anyway, and one pass is faster.
        max_features = (
            sys.maxsize if torch.is_grad_enabled() else max(BATCH_FEATURES, self.config.window)
        )
        spans = list(_spans(clips, max_features))
        runs = _runs([span.tokens for span in spans], max_features)
        features = []
        for run in runs:
            features.append(self._subsample(x, spans[run]))
            yield
        x, lengths = self._into_windows(_concatenate(features), clips)
        groups = [lengths[run] for run in _runs(lengths, max_features)]
        encoded = []
        for pair in zip(x.split([sum(group) for group in groups]), groups, strict=True):
            encoded.append((yield from self._encode(*pair)))
        return self._out_of_windows(_concatenate(encoded), clips)

    def _subsample(self, x: Float[Tensor, "F M"], spans: Sequence[Span]) -> Float[Tensor, "A D"]:
        """The spans' features, without the `early` ones."""
        frames = torch.cat([x[span.start : span.start + span.frames] for span in spans])
        features = self.subsampling(frames, [span.frames for span in spans])
        if not any(span.early for span in spans):
            return features
        parts = features.split([span.early + span.tokens for span in spans])
        return torch.cat([p[span.early :] for p, span in zip(parts, spans, strict=True)])

    def _encode(
        self, x: Float[Tensor, "B D"], lengths: Sequence[int]
    ) -> Steps[Float[Tensor, "B D"]]:
        """The output of all blocks for windows of these lengths."""
        windows = Windows.of(lengths, x.device)
        biases = (
            self._distance_biases(max(lengths))
            if native.supports_attention(x)
            else self._biases(windows, working_dtype(x))
        )
        for block in self.blocks:
            x = block(x, windows, biases)
            yield
        return x

    def _padding(self, clip: AudioLayout) -> int:
        """Number of zero frames that fill the last window of a clip longer than one window. They aren't masked in
        attention, as in the published code for a single clip."""
        return -clip.tokens % self.config.window if clip.tokens > self.config.window else 0

    def _into_windows(
        self, x: Float[Tensor, "A D"], clips: Sequence[AudioLayout]
    ) -> tuple[Float[Tensor, "B D"], list[int]]:
        """(features with long clips padded to whole windows, lengths of all windows)."""
        lengths: list[int] = []
        for clip in clips:
            n = clip.tokens + self._padding(clip)
            lengths += (
                [n] if n <= self.config.window else [self.config.window] * (n // self.config.window)
            )
        if any(self._padding(clip) for clip in clips):
            parts = x.split([clip.tokens for clip in clips])
            x = torch.cat(
                [
                    F.pad(part, (0, 0, 0, self._padding(clip)))
                    for part, clip in zip(parts, clips, strict=True)
                ]
            )
        return x, lengths

    def _out_of_windows(
        self, x: Float[Tensor, "B D"], clips: Sequence[AudioLayout]
    ) -> Float[Tensor, "A D"]:
        if not any(self._padding(clip) for clip in clips):
            return x
        parts = x.split([clip.tokens + self._padding(clip) for clip in clips])
        return torch.cat([part[: clip.tokens] for part, clip in zip(parts, clips, strict=True)])
