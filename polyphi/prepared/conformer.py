"""The Conformer with bounded memory, and on a CPU with our kernels: attention reads packed frames, without padding.

Without gradients, the convolutions and then the blocks run over 80 s at a time: half an hour takes the memory of 80 s,
plus its features. The results are the same, since windows don't attend to each other and a feature depends on no frames
before those of the feature before it. A server answers others between two slices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

import polyphi.kernels as kernels
from polyphi.kernels import encoder as native
from polyphi.kernels import training_attention
from polyphi.model import conformer
from polyphi.model.conformer import Windows, ages
from polyphi.model.subsampling import SUBSAMPLING
from polyphi.prepared.linear import autocast_input
from polyphi.runtime.steps import Steps, result_of
from polyphi.types.inputs.audio import AudioLayout

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
class PackedWindows(Windows):
    """Windows whose frames stay packed: our kernel adds the learned biases of all `distances` by (key - query)."""

    distances: Float[Tensor, "H L2"]


class PreparedConformerAttention(conformer.ConformerAttention):
    """Attention within windows, by our kernel where they are packed."""

    def forward(self, x: Float[Tensor, "A D"], windows: Windows) -> Float[Tensor, "A D"]:
        if not isinstance(windows, PackedWindows):
            return super().forward(x, windows)
        x = autocast_input(x)
        q, k, v = (p(x) for p in (self.q_proj, self.k_proj, self.v_proj))
        sizes, distances = windows.lengths, windows.distances
        if native.supports_attention(q):
            out = native.attention(q, k, v, self.heads, sizes, sizes, distances)
        else:
            q, k, v = (y.unflatten(1, (self.heads, -1)) for y in (q, k, v))
            out = training_attention.attention(q, k, v, sizes, distances=distances).flatten(1)
        return self.o_proj(out)


class PreparedConformerEncoder(conformer.ConformerEncoder):
    """The encoder, in slices where no gradient is needed."""

    def forward(
        self, mels: Float[Tensor, "F M"], clips: Sequence[AudioLayout]
    ) -> Float[Tensor, "A D"]:
        return result_of(self.slices(mels, clips))

    def slices(
        self, mels: Float[Tensor, "F M"], clips: Sequence[AudioLayout]
    ) -> Steps[Float[Tensor, "A D"]]:
        """The result of `forward`, in slices of one block over a few windows. Where weights are trained all activations
        are stored anyway, and one pass is faster; a frozen encoder's first convolution alone would take 15 GB for half
        an hour."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            yield
            return super().forward(mels, clips)
        self.check(mels, clips)
        max_features = max(BATCH_FEATURES, self.config.window)
        spans = list(_spans(clips, max_features))
        features = []
        for run in _runs([span.tokens for span in spans], max_features):
            features.append(self._subsample(mels, spans[run]))
            yield
        x, lengths = self.into_windows(_concatenate(features), clips)
        del features  # hours of them are hundreds of megabytes
        groups = [lengths[run] for run in _runs(lengths, max_features)]
        encoded = []
        for pair in zip(x.split([sum(group) for group in groups]), groups, strict=True):
            encoded.append((yield from self._encode(*pair)))
        return self.out_of_windows(_concatenate(encoded), clips)

    def _subsample(self, mels: Float[Tensor, "F M"], spans: Sequence[Span]) -> Float[Tensor, "A D"]:
        """The spans' features, without the `early` ones."""
        frames = torch.cat([mels[span.start : span.start + span.frames] for span in spans])
        features = self.subsampling(self.normalize(frames), [span.frames for span in spans])
        if not any(span.early for span in spans):
            return features
        parts = features.split([span.early + span.tokens for span in spans])
        return torch.cat([p[span.early :] for p, span in zip(parts, spans, strict=True)])

    def _encode(
        self, x: Float[Tensor, "B D"], lengths: Sequence[int]
    ) -> Steps[Float[Tensor, "B D"]]:
        """The output of all blocks for windows of these lengths."""
        windows = self.windows(lengths, x)
        for block in self.blocks:
            x = block(x, windows)
            yield
        return x

    def windows(self, lengths: Sequence[int], x: Float[Tensor, "B D"]) -> Windows:
        if not kernels.plain(x):
            return super().windows(lengths, x)
        longest = max(lengths)
        distances = self.distance_biases(torch.arange(1 - longest, longest))
        biases = distances.t().float().contiguous()
        return PackedWindows(
            tuple(lengths), (), torch.arange(len(x)), ages(lengths, x.device), biases
        )
