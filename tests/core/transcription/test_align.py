"""The monotonic path, and that it is computed from the model's attention."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.engine.engine import Engine
from polyphi.engine.runner import extend
from polyphi.prepared import decoder
from polyphi.transcription import longform
from polyphi.transcription.align import FRAME, AudioAttention, align, alignment_map, monotonic_path
from polyphi.types.messages import Message
from tests.fixtures.audio import say
from tests.fixtures.engines import clip


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_a_path_covers_all_frames_in_order(tokens: int, frames: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(tokens, frames)).astype(np.float32)
    spans = monotonic_path(scores)
    assert len(spans) == tokens and spans[0][0] == 0 and spans[-1][1] == frames
    for (a, b), (c, d) in pairwise(spans):
        assert a < b == c < d


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_the_path_has_the_largest_sum_there_is(lengths: list[int], seed: int) -> None:
    """Against all assignments of frames to tokens."""
    tokens, frames = len(lengths), sum(lengths)
    scores = np.random.default_rng(seed).normal(size=(tokens, frames)).astype(np.float32)
    best = max(
        sum(
            scores[i, a:b].sum()
            for i, (a, b) in enumerate(zip((0, *cuts), (*cuts, frames), strict=True))
        )
        for cuts in combinations(range(1, frames), tokens - 1)
    )
    total = sum(scores[i, int(a) : int(b)].sum() for i, (a, b) in enumerate(monotonic_path(scores)))
    assert total == pytest.approx(best, abs=1e-4)


def test_alignment_heads_are_selected_among_others() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 20)
    ends = np.cumsum(lengths)
    weights = rng.random((30, 20, ends[-1])).astype(np.float32)
    for head in (4, 11, 25):
        for token, (length, end) in enumerate(zip(lengths, ends, strict=True)):
            weights[head, token, end - length : end] += 20
    weights /= weights.sum(-1, keepdims=True)
    spans = monotonic_path(alignment_map(list(weights), 3))
    assert np.abs(np.array([b for _, b in spans]) - ends).max() <= 2  # half of the median's seven


def test_it_is_the_attention_of_the_forward(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with queries and keys recorded in the decoder, with an adapter and the long LongRoPE table."""
    row = engine.rows.row([Message.user(clip(3.0), "say it")])
    tokens = engine.processor.tokenizer.encode("the quick brown fox jumps over the lazy dog" * 3)
    assert len(row) < engine.model.decoder.rope.switch < len(row) + len(tokens)
    inputs = []
    plain = decoder.packed_attention

    def watched(q, k, v, cu_seqlens, **options):
        inputs.append((q, k))
        return plain(q, k, v, cu_seqlens, **options)

    monkeypatch.setattr(decoder, "packed_attention", watched)
    with torch.inference_mode():
        engine.model(extend(row, tokens))
        attention = AudioAttention(engine.model, row, tokens)
        maps = [attention[head] for head in range(len(attention))]
    assert len(maps) == 2 * 6 and len(inputs) == 2
    for layer, (q, k) in enumerate(inputs):
        assert len(q) == len(row) + len(tokens)
        for head in range(6):
            predicting = q[len(row) - 1 : -1, head]
            scores = predicting @ k[row.inputs["audio"].slots, head // 3].t() / q.shape[-1] ** 0.5
            expected = F.softmax(scores, -1)
            torch.testing.assert_close(
                torch.from_numpy(maps[layer * 6 + head]), expected, atol=1e-6, rtol=0
            )


def test_tokens_fill_the_clip(engine: Engine) -> None:
    row = engine.rows.row([Message.user(clip(1.0), "say it")])
    tokens = engine.processor.tokenizer.encode("the quick fox")
    times = align(engine.model, row, tokens)
    assert times[0][0] == 0 and times[-1][1] == pytest.approx(13 * FRAME)
    assert align(engine.model, row, []) == []
    with pytest.raises(ValueError, match="found 0"):
        align(engine.model, engine.rows.row([Message.user("fox")]), tokens)


def test_aligned_words_have_their_source(engine: Engine) -> None:
    wave = say(list(range(8)), [0.1] * 9)
    task = longform.Task("Say it.", words="aligned")
    (transcript,) = longform.transcribe(engine, [(wave, 16000)], task)
    assert transcript.words and {w.source for w in transcript.words} == {"aligned"}
    assert {s.source for s in transcript.segments} == {"window"}
    assert all(s.avg_logprob is not None and s.avg_logprob < 0 for s in transcript.segments)
    ends = [
        0.0,
        *(t for w in transcript.words for t in (w.start, w.end)),
        transcript.seconds + FRAME,
    ]
    assert ends == sorted(ends)
