"""Alignment of image and audio tokens with words: a pack's loss is the sum of its rows', and equal embeddings have
none."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import Tensor

from polyphi.data.shards import Sample
from polyphi.processing.label_grids import ROW_END
from polyphi.train.alignment import (
    Alignment,
    image_words,
    with_words,
    word_log_probs,
    word_loss,
)
from polyphi.train.loss import NextToken
from polyphi.types.batch import Batch, pack, row
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from polyphi.types.inputs.image import ImageInput, ImageLayout
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from tests.core.train.small import make_processor

SIDE, WIDTH, BLANK, END = 2, 8, 0, 1
LAYOUT = ImageLayout(1, 1, SIDE, SIDE)
TOKENS = LAYOUT.tokens(SIDE)


class Words:
    """A tokenizer that has only the tokens of an empty cell and a row's end."""

    def encode(self, text: str) -> list[int]:
        return [END if text == ROW_END else BLANK]


def images(layout: ImageLayout, **fields: Tensor) -> ImageInput:
    """An image, of which only the words are needed."""
    crops, masks = torch.zeros(layout.crops, 3, 1, 1), torch.ones(layout.crops, 4, 4) > 0
    return ImageInput(layouts=(layout,), crops=crops, masks=masks, **fields)


def image(words: list[tuple[int, int]]) -> Batch:
    """A row whose image has those (token of the image, word)s."""
    return row(
        [9] + [1] * TOKENS + [9],
        images(
            LAYOUT,
            slots=torch.arange(1, 1 + TOKENS),
            label_ids=torch.tensor([(0, token, word) for token, word in words]),
        ),
    )


def clip(words: list[int], tokens: int) -> Batch:
    return row(
        [9] + [1] * tokens,
        AudioInput(
            layouts=(AudioLayout(8 * tokens, "speech"),),
            slots=torch.arange(1, 1 + tokens),
            label_ids=torch.tensor([(0, word) for word in words]),
            mels=torch.zeros(8 * tokens, 80),
        ),
    )


@pytest.fixture
def embeddings() -> Tensor:
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.manual_seed(0)))[0]


FIRST = [(0, 3), (1, BLANK), (2, END), (3, 4), (3, 5)]
SECOND = [(0, BLANK), (1, 6), (7, BLANK)]
PADDED = ImageLayout(1, 2, 1, 2 * SIDE)
"""Of an image that doesn't fill its crops, and so has no words."""


def test_a_pack_is_its_rows_one_by_one(embeddings: Tensor) -> None:
    size = PADDED.tokens(SIDE)
    wide = row([1] * size, images(PADDED, slots=torch.arange(size)))
    rows = [image(FIRST), wide, clip([3, 3, 5], 9), image(SECOND), clip([7], 4)]
    x = torch.randn(sum(map(len, rows)), WIDTH, dtype=torch.float64)
    align = Alignment(Words(), SIDE)
    whole, metrics = align(x, pack(rows), embeddings)
    parts = [
        align(part, one, embeddings)
        for part, one in zip(x.split([len(r) for r in rows]), rows, strict=True)
    ]
    torch.testing.assert_close(whole, torch.stack([loss for loss, _ in parts]).sum())
    assert metrics["named"][1] == sum(m["named"][1] for _, m in parts if m) == 3


def test_tokens_equal_to_their_words_have_no_loss(embeddings: Tensor) -> None:
    words = dict(SECOND)
    ids = torch.tensor([0, *(words.get(token, 7) for token in range(TOKENS)), 0])
    loss, metrics = Alignment(Words(), SIDE)(embeddings[ids], image(SECOND), embeddings)
    assert loss < 1e-6 and metrics["named"] == (1.0, 1)
    spoken = torch.tensor([0, BLANK, 3, BLANK, 5, 5])
    loss, _ = Alignment(Words(), SIDE)(embeddings[spoken], clip([3, 5], 5), embeddings)
    assert loss < 1e-6


def test_gradients_reach_tokens_and_not_embeddings(embeddings: Tensor) -> None:
    embeddings.requires_grad_(True)
    x = torch.randn(TOKENS + 2, WIDTH, requires_grad=True)
    loss, _ = Alignment(Words(), SIDE)(x, image(FIRST), embeddings)
    loss.backward()
    assert embeddings.grad is None and x.grad is not None
    assert (x.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == [1, 2, 3, 4]


def test_two_words_of_a_slot_share_its_probability(embeddings: Tensor) -> None:
    both = embeddings[[4]] + embeddings[[5]]
    slots, words = torch.tensor([0, 0]), torch.tensor([4, 5])
    log_probs = word_log_probs(both, embeddings)
    loss, correct, filled = word_loss(log_probs, slots, words, (BLANK, END))
    assert abs(float(loss) - torch.tensor(2.0).log()) < 1e-3 and (correct, filled) == (1.0, 1)


def test_a_clip_that_is_too_short_for_its_words_has_no_loss(embeddings: Tensor) -> None:
    loss, _ = Alignment(Words(), SIDE)(torch.randn(3, WIDTH), clip([3, 4, 5], 2), embeddings)
    assert loss == 0


def test_rows_without_words_have_no_loss_and_the_same_metrics(embeddings: Tensor) -> None:
    batch = image(FIRST)
    plain = batch.with_inputs(dataclasses.replace(batch.inputs["image"], label_ids=None))
    loss, metrics = Alignment(Words(), SIDE)(torch.randn(len(plain), WIDTH), plain, embeddings)
    assert loss == 0 and metrics == {"named": (0, 0)}


def test_an_image_has_a_word_for_each_of_its_tokens() -> None:
    """Crops first, separators after rows, then the global view: the order of the projector."""
    items = [("red star", 0.5, 0.0, 0.75, 0.5), ("7", 0.0, 0.5, 0.25, 1.0)]
    wide = ImageLayout(1, 2, 2, 4)
    words = image_words(wide, items, 2)
    assert len(words) == wide.tokens(2)
    assert words == [
        *("", "", "red star", "", ROW_END, "7", "", "", "", ROW_END),
        ROW_END,
        *("", "red star top", ROW_END, "7", "", ROW_END),
    ]
    alone = image_words(ImageLayout(1, 1, 2, 2), items, 2)
    assert alone[:6] == ["", "red star top", ROW_END, "7", "", ROW_END], "one crop has all sides"


def picture(side: int, **meta: object) -> Sample:
    file = io.BytesIO()
    Picture.new("RGB", (side, side), "red").save(file, "PNG")
    messages = (Message.user(Image(file.getvalue()), "What?"), Message.assistant("red"))
    return Sample("1", messages, "polyphi", "", meta)


def test_a_clip_is_aligned_by_its_reference_and_not_by_the_transcript_of_a_recording() -> None:
    """Rows of recordings have `transcript`: only what a generator wrote for the clip is aligned."""
    processor, wave = make_processor(), np.zeros(16_000, np.float32)
    messages = (Message.user(Audio((wave, 16_000)), "What?"), Message.assistant("red"))
    for key, aligned in (("reference", True), ("transcript", False)):
        sample = Sample("1", messages, "polyphi", "", {key: "red two"})
        (plain,) = NextToken().rows(sample, processor, 200)
        assert (
            with_words(plain, sample, processor).inputs["audio"].label_ids is not None
        ) == aligned
