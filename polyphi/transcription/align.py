"""Times of an answer's tokens from the decoder's attention to the audio (the model has no CTC head for it).

>>> align(model, row, tokens)                    # row: the prompt with its audio clip
[(0.0, 0.4), (0.4, 0.72), ...]                   # seconds

One forward over prompt and answer. In every head, the attention from the position that predicts a token to the clip's
frames of 80 ms, normalized over the clip, is one row of an attention map [tokens, frames]. Alignment heads are those
whose rows move through the clip in the order of the tokens: the eight heads whose centres of attention correlate best
with that order are averaged, after normalizing each frame's mean and deviation over tokens and a median filter over
seven frames (both as Whisper does). The result is the monotonic path with the largest sum, which assigns every frame
to one token.

The quality depends on the model: alignment heads must have emerged in training. docs/transcription.md has the measured
errors of these times, and of times estimated by characters.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.engine.runner import extend
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.attention import packed_attention
from polyphi.types.batch import Batch
from polyphi.types.inputs.audio import AudioInput

FRAME = 0.08  # s of an audio token
HEADS = 8  # averaged heads [ours]
MEDIAN_WIDTH = 7  # frames of the median filter


@torch.inference_mode()
def align(
    model: PhiModel, prompt: Batch, tokens: Sequence[int], heads: int = HEADS
) -> list[tuple[float, float]]:
    """(start, end) of each token in seconds from the clip's start, contiguous over the whole clip. Raises ValueError
    for a prompt without exactly one clip."""
    audio = prompt.of(AudioInput)
    if audio is None or len(audio.layouts) != 1:
        clips = 0 if audio is None else len(audio.layouts)
        raise ValueError(f"an answer is aligned to one clip, found {clips}")
    if not tokens:
        return []
    attention = alignment_map(AudioAttention(model, prompt, tokens), heads)
    return [(first * FRAME, last * FRAME) for first, last in monotonic_path(attention)]


class AudioAttention:
    """The attention maps of all heads of all layers: from the positions that predict the tokens to the clip's frames,
    normalized over the clip (rows sum to 1). It stores queries and keys and computes a map on access; all maps at once
    would exceed the memory for half an hour."""

    def __init__(self, model: PhiModel, prompt: Batch, tokens: Sequence[int]) -> None:
        batch = extend(prompt, tokens).to(model.decoder.device)
        audio = batch.of(AudioInput)
        assert audio is not None and audio.slots is not None
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._predicting = slice(len(prompt) - 1, len(batch) - 1)
        self._slots = audio.slots
        model(batch, self)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H d"],
        k: Float[Tensor, "T K d"],
        v: Float[Tensor, "T K d"],
        cu_seqlens: Sequence[int],
    ) -> Float[Tensor, "T H d"]:
        """The cache protocol of `model/attention.py`: records queries and keys, and attends without a cache."""
        self.layers.append((q[self._predicting], k[self._slots]))
        return packed_attention(q, k, v, cu_seqlens)

    def __len__(self) -> int:
        return sum(queries.shape[1] for queries, _ in self.layers)

    def __getitem__(self, head: int) -> Float[np.ndarray, "n A"]:
        for queries, keys in self.layers:
            if head < queries.shape[1]:
                group = queries.shape[1] // keys.shape[1]
                scores = queries[:, head].float() @ keys[:, head // group].float().t()
                return (scores / queries.shape[-1] ** 0.5).softmax(-1).cpu().numpy()
            head -= queries.shape[1]
        raise IndexError("head index out of range")


def alignment_map(
    maps: AudioAttention | Sequence[Float[np.ndarray, "n A"]], heads: int = HEADS
) -> Float[np.ndarray, "n A"]:
    """The average of the alignment heads' normalized attention maps [tokens, frames]."""
    tokens, frames = maps[0].shape
    at = np.arange(frames, dtype=np.float32)
    centres = np.stack([maps[head] @ at for head in range(len(maps))])
    order = np.arange(tokens) - (tokens - 1) / 2
    moved = centres - centres.mean(axis=1, keepdims=True)
    spread = np.sqrt((moved**2).sum(axis=1) * (order**2).sum())
    correlation = np.where(spread > 1e-6, moved @ order / np.maximum(spread, 1e-6), -1.0)
    total = np.zeros((tokens, frames), np.float32)
    for head in np.argsort(-correlation)[:heads]:
        rows = maps[int(head)]
        rows = (rows - rows.mean(axis=0)) / (rows.std(axis=0) + 1e-6)
        for first in range(0, tokens, 256):  # the median's windows take seven times the memory
            padded = np.pad(
                rows[first : first + 256], ((0, 0), (MEDIAN_WIDTH // 2,) * 2), mode="edge"
            )
            windows = np.lib.stride_tricks.sliding_window_view(padded, MEDIAN_WIDTH, axis=1)
            total[first : first + 256] += np.median(windows, axis=-1)
    return total / heads


def monotonic_path(scores: Float[np.ndarray, "n A"]) -> list[tuple[float, float]]:
    """(first, last) frame of each token, `last` exclusive: every frame belongs to one token, tokens are in order, each
    has a frame, and the sum along the path is the largest. If there are more tokens than frames, frames are split."""
    tokens, frames = scores.shape
    parts = -(-tokens // frames)  # of a frame
    score = np.repeat(scores, parts, axis=1)
    best = np.full(tokens, -np.inf)
    best[0] = score[0, 0]
    advanced = np.zeros((frames * parts, tokens), bool)
    for frame in range(1, frames * parts):
        moved = np.concatenate([[-np.inf], best[:-1]])
        advanced[frame] = moved > best
        best = np.maximum(best, moved) + score[:, frame]
    token, ends = tokens - 1, [frames * parts] * tokens
    for frame in range(frames * parts - 1, 0, -1):
        if advanced[frame, token]:
            token -= 1
            ends[token] = frame
    return [(a / parts, b / parts) for a, b in zip([0, *ends], ends, strict=False)]
