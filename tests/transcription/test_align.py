"""The path through attention, and that it is the model's own attention that is looked at."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from engine.conftest import clip
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import say

from polyphi.engine.engine import Engine
from polyphi.messages import Message
from polyphi.model import attention as model_attention
from polyphi.transcription import longform
from polyphi.transcription.align import PLACE, Gaze, align, path, read_by


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_a_path_goes_on_and_leaves_nothing_out(tokens: int, places: int, seed: int) -> None:
    found = path(np.random.default_rng(seed).normal(size=(tokens, places)).astype(np.float32))
    assert len(found) == tokens and found[0][0] == 0 and found[-1][1] == places
    for (a, b), (c, d) in pairwise(found):
        assert a < b == c < d


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_the_path_has_the_largest_sum_there_is(lengths: list[int], seed: int) -> None:
    """Against all ways of giving places to tokens."""
    tokens, places = len(lengths), sum(lengths)
    picture = np.random.default_rng(seed).normal(size=(tokens, places)).astype(np.float32)
    best = max(
        sum(
            picture[i, a:b].sum()
            for i, (a, b) in enumerate(zip((0, *cuts), (*cuts, places), strict=True))
        )
        for cuts in combinations(range(1, places), tokens - 1)
    )
    found = sum(picture[i, int(a) : int(b)].sum() for i, (a, b) in enumerate(path(picture)))
    assert found == pytest.approx(best, abs=1e-4)


def test_heads_that_read_are_found_among_those_that_do_not() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 20)
    ends = np.cumsum(lengths)
    weights = rng.random((30, 20, ends[-1])).astype(np.float32)
    for head in (4, 11, 25):
        for token, (length, end) in enumerate(zip(lengths, ends, strict=True)):
            weights[head, token, end - length : end] += 20
    weights /= weights.sum(-1, keepdims=True)
    found = path(read_by(list(weights), 3))
    assert np.abs(np.array([b for _, b in found]) - ends).max() <= 2  # half of the median's seven


def test_it_is_the_attention_of_the_forward(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights from a copy of what the decoder hands to its attention, whatever the adapter and the LongRoPE table."""
    row = engine.row([Message.user(clip(3.0), "say it")])
    tokens = engine.processor.tokenizer.encode("the quick brown fox jumps over the lazy dog" * 3)
    assert len(row) < engine.model.decoder.rope.switch < len(row) + len(tokens)
    seen = []
    plain = model_attention.packed_attention

    def watched(q, k, v, bounds, **options):
        seen.append((q, k))
        return plain(q, k, v, bounds, **options)

    monkeypatch.setattr("polyphi.model.decoder.packed_attention", watched)
    with torch.inference_mode():
        gaze = Gaze(engine.model, row, tokens)
        found = [gaze[head] for head in range(len(gaze))]
    assert len(found) == 2 * 6
    for layer, (q, k) in enumerate(seen):
        assert len(q) == len(row) + len(tokens)
        for head in range(6):
            asking = q[len(row) - 1 : -1, head]
            scores = asking @ k[row.audio_slots, head // 3].t() / q.shape[-1] ** 0.5
            expected = F.softmax(scores, -1)
            torch.testing.assert_close(
                torch.from_numpy(found[layer * 6 + head]), expected, atol=1e-6, rtol=0
            )


def test_tokens_fill_the_clip(engine: Engine) -> None:
    row = engine.row([Message.user(clip(1.0), "say it")])
    tokens = engine.processor.tokenizer.encode("the quick fox")
    found = align(engine.model, row, tokens)
    assert found[0][0] == 0 and found[-1][1] == pytest.approx(13 * PLACE)
    assert align(engine.model, row, []) == []
    with pytest.raises(ValueError, match="one clip, found 0"):
        align(engine.model, engine.row([Message.user("fox")]), tokens)


def test_aligned_words_say_so(engine: Engine) -> None:
    wave = say(list(range(8)), [0.1] * 9)
    task = longform.Task("Say it.", words="aligned")
    (found,) = longform.transcribe(engine, [(wave, 16000)], task)
    assert found.words and {w.source for w in found.words} == {"aligned"}
    assert {s.source for s in found.segments} == {"window"}
    assert all(s.avg_logprob is not None and s.avg_logprob < 0 for s in found.segments)
    ends = [0.0, *(t for w in found.words for t in (w.start, w.end)), found.seconds + PLACE]
    assert ends == sorted(ends)
