"""Alignment of image and audio tokens with words: packs are their rows, and tokens that are the words lose nothing."""

import dataclasses

import pytest
import torch

from polyphi.batch import Batch, Clip, ImageLayout, pack, row
from polyphi.train.alignment import Alignment, word_loss

SIDE, WIDTH, BLANK = 2, 8, 0
TOKENS = ImageLayout(1, 1, SIDE, SIDE).tokens(SIDE)


def picture(words: list[tuple[int, int]], seed: int = 0) -> Batch:
    """A row whose image has those (cell, word)s."""
    ids = [9] + [1] * TOKENS + [9]
    return row(
        ids,
        images=(ImageLayout(1, 1, SIDE, SIDE),),
        image_slots=torch.arange(1, 1 + TOKENS),
        cell_words=torch.tensor([(0, cell, word) for cell, word in words]),
    )


def clip(words: list[int], tokens: int) -> Batch:
    return row(
        [9] + [1] * tokens,
        clips=(Clip(8 * tokens, "speech"),),
        audio_slots=torch.arange(1, 1 + tokens),
        clip_words=torch.tensor([(0, word) for word in words]),
    )


@pytest.fixture
def embeddings() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.manual_seed(0)))[0]


FIRST = [(0, 3), (1, BLANK), (2, BLANK), (3, 4), (3, 5)]
SECOND = [(0, BLANK), (1, 6), (2, BLANK), (3, BLANK)]


def test_a_pack_is_its_rows_one_by_one(embeddings: torch.Tensor) -> None:
    rows = [picture(FIRST), clip([3, 3, 5], 9), picture(SECOND), clip([7], 4)]
    x = torch.randn(sum(map(len, rows)), WIDTH, dtype=torch.float64)
    align = Alignment(BLANK)
    whole, metrics = align(x, pack(rows), embeddings)
    parts = [
        align(part, r, embeddings)
        for part, r in zip(x.split([len(r) for r in rows]), rows, strict=True)
    ]
    torch.testing.assert_close(whole, torch.stack([loss for loss, _ in parts]).sum())
    assert metrics["named"][1] == sum(m["named"][1] for _, m in parts if m) == 6


def test_tokens_that_are_the_words_lose_nothing(embeddings: torch.Tensor) -> None:
    batch = picture(SECOND)
    words = [BLANK, 6, BLANK, BLANK]
    grid = [words[0], words[1], 9 - 9, words[2], words[3], 0]
    ids = torch.tensor([0, *grid, 0, *grid, 0])
    loss, metrics = Alignment(BLANK)(embeddings[ids], batch, embeddings)
    assert loss < 1e-6 and metrics["named"] == (2.0, 2)
    spoken = clip([3, 5], 5)
    heard = torch.tensor([0, BLANK, 3, BLANK, 5, 5])
    loss, _ = Alignment(BLANK)(embeddings[heard], spoken, embeddings)
    assert loss < 1e-6


def test_gradients_reach_tokens_and_not_embeddings(embeddings: torch.Tensor) -> None:
    embeddings.requires_grad_(True)
    x = torch.randn(TOKENS + 2, WIDTH, requires_grad=True)
    loss, _ = Alignment(BLANK)(x, picture(FIRST), embeddings)
    loss.backward()
    assert embeddings.grad is None and x.grad is not None
    touched = x.grad.abs().sum(1) > 0
    assert touched.sum() == 2 * SIDE**2  # each cell twice; separators and text aren't


def test_two_words_of_a_place_share_it(embeddings: torch.Tensor) -> None:
    both = embeddings[[4]] + embeddings[[5]]
    places, words = torch.tensor([0, 0]), torch.tensor([4, 5])
    loss, found, filled = word_loss(both, places, words, embeddings, BLANK)
    assert abs(float(loss) - torch.tensor(2.0).log()) < 1e-3 and (found, filled) == (1.0, 1)


def test_a_clip_that_is_too_short_for_its_words_teaches_nothing(embeddings: torch.Tensor) -> None:
    loss, _ = Alignment(BLANK)(torch.randn(3, WIDTH), clip([3, 4, 5], 2), embeddings)
    assert loss == 0


def test_rows_without_words_are_left_alone(embeddings: torch.Tensor) -> None:
    plain = dataclasses.replace(picture(FIRST), cell_words=None)
    loss, metrics = Alignment(BLANK)(torch.randn(len(plain), WIDTH), plain, embeddings)
    assert loss == 0 and not metrics
