"""When each token of an answer was said, by the decoder's attention to the clip (there is no CTC head to ask).

>>> align(model, row, tokens)                    # row: the prompt with its clip
[(0.0, 0.4), (0.4, 0.72), ...]                   # seconds

One forward over prompt and answer. Of every head, the attention of the position that predicts a token to the clip's
80 ms places, taken by itself, is one line of a picture, tokens by places. Heads whose lines move on through the clip as
the answer moves on are the ones that read it: the eight whose centres of attention correlate best with the order of the
tokens are averaged, after each place's mean and spread over tokens are taken out and a median over seven places has
smoothed it (both as Whisper does). The path through the picture that gives every place to one token, in order, with the
most attention along it, is the answer.

Whether that tells the time depends on the model: a head that reads must have come about in training.
docs/transcription.md says how far off it was where it was measured, and how far off times by letters were.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import Batch
from polyphi.engine.runner import extend
from polyphi.model.attention import packed_attention
from polyphi.model.multimodal import PhiModel

PLACE = 0.08  # s of an audio token
HEADS = 8  # that are averaged [ours]
SMOOTH = 7  # places of the median


@torch.inference_mode()
def align(
    model: PhiModel, prompt: Batch, tokens: Sequence[int], heads: int = HEADS
) -> list[tuple[float, float]]:
    """(start, end) of each token in seconds from the clip's start, in order, together the whole clip. Raises ValueError
    for a prompt without exactly one clip."""
    if len(prompt.clips) != 1:
        raise ValueError(f"an answer is aligned to one clip, found {len(prompt.clips)}")
    if not tokens:
        return []
    picture = read_by(Gaze(model, prompt, tokens), heads)
    return [(first * PLACE, last * PLACE) for first, last in path(picture)]


class Gaze:
    """How every head of every layer looks at the clip, one after another: the attention of the positions that predict
    the tokens to the clip's places, as if there were nothing else (lines sum to 1). Queries and keys are kept and a
    head is worked out when it's asked for; all of them together wouldn't fit the memory for half an hour."""

    def __init__(self, model: PhiModel, prompt: Batch, tokens: Sequence[int]) -> None:
        batch = extend(prompt, tokens).to(model.decoder.device)
        assert batch.audio_slots is not None
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._asking = slice(len(prompt) - 1, len(batch) - 1)
        self._slots = batch.audio_slots
        model(batch, self)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H d"],
        k: Float[Tensor, "T K d"],
        v: Float[Tensor, "T K d"],
        bounds: Sequence[int],
    ) -> Float[Tensor, "T H d"]:
        """The cache protocol of `model/attention.py`: looks on, and attends as if there were no cache."""
        self.layers.append((q[self._asking], k[self._slots]))
        return packed_attention(q, k, v, bounds)

    def __len__(self) -> int:
        return sum(queries.shape[1] for queries, _ in self.layers)

    def __getitem__(self, head: int) -> Float[np.ndarray, "n A"]:
        for queries, keys in self.layers:
            if head < queries.shape[1]:
                share = queries.shape[1] // keys.shape[1]
                scores = queries[:, head].float() @ keys[:, head // share].float().t()
                return (scores / queries.shape[-1] ** 0.5).softmax(-1).cpu().numpy()
            head -= queries.shape[1]
        raise IndexError("no such head")


def read_by(
    gaze: Gaze | Sequence[Float[np.ndarray, "n A"]], heads: int = HEADS
) -> Float[np.ndarray, "n A"]:
    """The picture of the heads that read: higher where a place belongs to a token."""
    tokens, places = gaze[0].shape
    at = np.arange(places, dtype=np.float32)
    centres = np.stack([gaze[head] @ at for head in range(len(gaze))])
    order = np.arange(tokens) - (tokens - 1) / 2
    moved = centres - centres.mean(axis=1, keepdims=True)
    spread = np.sqrt((moved**2).sum(axis=1) * (order**2).sum())
    follows = np.where(spread > 1e-6, moved @ order / np.maximum(spread, 1e-6), -1.0)
    picture = np.zeros((tokens, places), np.float32)
    for head in np.argsort(-follows)[:heads]:
        lines = gaze[int(head)]
        lines = (lines - lines.mean(axis=0)) / (lines.std(axis=0) + 1e-6)
        for some in range(0, tokens, 256):  # the windows of a median take seven times the memory
            padded = np.pad(lines[some : some + 256], ((0, 0), (SMOOTH // 2,) * 2), mode="edge")
            windows = np.lib.stride_tricks.sliding_window_view(padded, SMOOTH, axis=1)
            picture[some : some + 256] += np.median(windows, axis=-1)
    return picture / heads


def path(picture: Float[np.ndarray, "n A"]) -> list[tuple[float, float]]:
    """(first, last) place of each token, `last` exclusive: every place belongs to one token, tokens come in order, each
    has a place, and the sum along the way is the largest. Where there are more tokens than places, they share them."""
    tokens, places = picture.shape
    parts = -(-tokens // places)  # of a place
    score = np.repeat(picture, parts, axis=1)
    best = np.full(tokens, -np.inf)
    best[0] = score[0, 0]
    advanced = np.zeros((places * parts, tokens), bool)
    for place in range(1, places * parts):
        moved = np.concatenate([[-np.inf], best[:-1]])
        advanced[place] = moved > best
        best = np.maximum(best, moved) + score[:, place]
    token, ends = tokens - 1, [places * parts] * tokens
    for place in range(places * parts - 1, 0, -1):
        if advanced[place, token]:
            token -= 1
            ends[token] = place
    return [(a / parts, b / parts) for a, b in zip([0, *ends], ends, strict=False)]
