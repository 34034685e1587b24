"""Conformer speech encoder: log-mel frames every 10 ms become features every 80 ms (report 2.2.1).

Three strided convolutions shorten time and frequency by eight (subsampling.py), then 24 blocks of half-step
feed-forward, attention with a learned bias per relative distance, causal convolution and half-step feed-forward. A clip
of more than 500 features (40 s) is encoded in windows of 500 that don't attend to each other.

Clips of any lengths share one call, with the same results as separate calls. In the blocks all operations on single
frames run over packed frames without padding; only attention batches windows of similar length and pads those a little.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyphi.model.attention import working_dtype
from polyphi.model.buckets import buckets
from polyphi.model.config import AudioConfig
from polyphi.model.subsampling import Subsampling
from polyphi.types.inputs.audio import AudioLayout


@dataclass(frozen=True)
class WindowGroup:
    """Windows of similar length, padded to one batch: `gather` [windows * longest] is the index of their frames,
    `bias` is added to the logits: the learned one for (key - query), -inf at padded keys."""

    windows: int
    longest: int
    gather: Int[Tensor, " WL"]
    bias: Float[Tensor, "W_or_1 H L L"]


@dataclass(frozen=True)
class Windows:
    """The windows of a call: `index[t]` is the position of frame t in the concatenated groups, `age[t]` the number of
    frames before it in its window; `lengths` are those of the windows."""

    lengths: tuple[int, ...]
    groups: tuple[WindowGroup, ...]
    index: Int[Tensor, " A"]
    age: Int[Tensor, " A"]


def ages(lengths: Sequence[int], device: torch.device) -> Int[Tensor, " A"]:
    """The number of frames before each frame in its window."""
    age = torch.cat([torch.arange(n) for n in lengths])
    return age.to(device, non_blocking=True)


class ConformerFeedForward(nn.Module):
    """down(value * swish(gate)); unlike in the decoder, the *value* comes first in the fused projection."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.value_gate_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "A D"]) -> Float[Tensor, "A D"]:
        value, gate = self.value_gate_proj(self.layer_norm(x)).chunk(2, dim=-1)
        return self.down_proj(value * F.silu(gate))


class ConformerAttention(nn.Module):
    """Attention within windows, with a bias per head and distance."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(size, size) for _ in range(4)
        )

    def forward(self, x: Float[Tensor, "A D"], windows: Windows) -> Float[Tensor, "A D"]:
        qkv, outs = [p(x) for p in (self.q_proj, self.k_proj, self.v_proj)], []
        for group in windows.groups:
            shape = (group.windows, group.longest, self.heads, -1)
            q, k, v = (t.index_select(0, group.gather).view(shape).transpose(1, 2) for t in qkv)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.bias)
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
        return F.linear(x, self.weight.squeeze(-1), self.bias)


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


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.feed_forward_in = ConformerFeedForward(config)
        self.layer_norm_att = nn.LayerNorm(config.hidden_size)
        self.self_attn = ConformerAttention(config)
        self.conv = ConvModule(config)
        self.feed_forward_out = ConformerFeedForward(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size)

    def forward(self, x: Float[Tensor, "A D"], windows: Windows) -> Float[Tensor, "A D"]:
        x = x + 0.5 * self.feed_forward_in(x)
        x = x + self.self_attn(self.layer_norm_att(x), windows)
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
        self.blocks = nn.ModuleList([ConformerBlock(config) for _ in range(config.num_blocks)])

    def forward(
        self, mels: Float[Tensor, "F M"], clips: Sequence[AudioLayout]
    ) -> Float[Tensor, "A D"]:
        """Features of all clips, `clip.tokens` each, the same as in separate calls.

        Raises ValueError where the clips' frames don't add up to the batch's, or a clip has none.
        """
        self.check(mels, clips)
        x = self.subsampling(self.normalize(mels), [clip.frames for clip in clips])
        x, lengths = self.into_windows(x, clips)
        windows = self.windows(lengths, x)
        for block in self.blocks:
            x = block(x, windows)
        return self.out_of_windows(x, clips)

    def check(self, mels: Float[Tensor, "F M"], clips: Sequence[AudioLayout]) -> None:
        """Raise ValueError as `forward`."""
        total = sum(clip.frames for clip in clips)
        if total != len(mels):
            raise ValueError(
                f"the clips' layouts need {total} log-mel frames, the batch has {len(mels)}"
            )
        if any(clip.frames < 1 for clip in clips):
            raise ValueError("found a clip without log-mel frames: audio must last at least 25 ms")

    def normalize(self, mels: Float[Tensor, "F M"]) -> Float[Tensor, "F M"]:
        """The frames with the mean and deviation of the training data removed."""
        # Rounded to the weights' dtype first, then normalized: the order of the published code.
        mels = mels.to(self.relative_attention_bias.weight.dtype)
        return (mels - self.global_mean) * self.global_invstd

    def distance_biases(self, distances: Int[Tensor, "*n"]) -> Float[Tensor, "*n H"]:
        """The learned bias of every head for distances (key - query), those beyond the table's ends as at its ends."""
        most = self.config.bias_max_distance
        return self.relative_attention_bias(distances.clamp(-most, most - 1) + most)

    def windows(self, lengths: Sequence[int], x: Float[Tensor, "B D"]) -> Windows:
        """The windows of packed features, and their attention biases, which all blocks share."""
        batches, index = buckets(lengths)
        t = torch.arange(max(lengths), device=x.device)
        table = self.distance_biases(t[None, :] - t[:, None]).permute(2, 0, 1).to(working_dtype(x))
        groups = []
        for bucket in batches:
            bias = table[None, :, : bucket.longest, : bucket.longest]
            if bucket.is_token is not None:
                visible = bucket.is_token[:, None, None, :].to(x.device, non_blocking=True)
                bias = torch.where(visible, bias, float("-inf"))
            gather = bucket.gather.to(x.device, non_blocking=True)
            groups.append(WindowGroup(bucket.sequences, bucket.longest, gather, bias))
        index = index.to(x.device, non_blocking=True)
        return Windows(tuple(lengths), tuple(groups), index, ages(lengths, x.device))

    def _padding(self, clip: AudioLayout) -> int:
        """Number of zero frames that fill the last window of a clip longer than one window. They aren't masked in
        attention, as in the published code for a single clip."""
        return -clip.tokens % self.config.window if clip.tokens > self.config.window else 0

    def into_windows(
        self, x: Float[Tensor, "A D"], clips: Sequence[AudioLayout]
    ) -> tuple[Float[Tensor, "B D"], list[int]]:
        """(features with long clips padded to whole windows, lengths of all windows)."""
        lengths: list[int] = []
        for clip in clips:
            count = max(1, -(-clip.tokens // self.config.window))
            lengths += [(clip.tokens + self._padding(clip)) // count] * count
        if any(self._padding(clip) for clip in clips):
            parts = zip(x.split([clip.tokens for clip in clips]), clips, strict=True)
            x = torch.cat([F.pad(part, (0, 0, 0, self._padding(clip))) for part, clip in parts])
        return x, lengths

    def out_of_windows(
        self, x: Float[Tensor, "B D"], clips: Sequence[AudioLayout]
    ) -> Float[Tensor, "A D"]:
        """The features without the padding of windows."""
        if not any(self._padding(clip) for clip in clips):
            return x
        if len(clips) == 1:  # not copied: hours of features are hundreds of megabytes
            return x[: clips[0].tokens]
        parts = x.split([clip.tokens + self._padding(clip) for clip in clips])
        return torch.cat([part[: clip.tokens] for part, clip in zip(parts, clips, strict=True)])
