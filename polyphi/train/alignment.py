"""Alignment: tokens that encoders make of images and clips are drawn to the language model's own embeddings of the
words that they stand for. [ours]

    image token of a cell with a red star    ->  the directions of " red" and " star", each with probability 1/2
    tokens of a clip that says "three seven" ->  " three", blanks, " seven": a CTC loss over the vocabulary

A frozen language model of a few million parameters that has read images and speech in words (the corpora
of `Mix.in_words` and `written_speech`) then needs no more than encoders that name what they see and hear. Larger
models learn this mapping from billions of pairs (report 2.2.2). Only samples that know what they show are aligned:
those that our generators make (`meta["named"]`, `meta["heard"]`).

A token is compared with embeddings by their cosine, times `SHARPNESS`. Losses are sums over tokens and clips, so that a
pack's loss is that of its rows one by one.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from polyphi.batch import Batch, ImageLayout
from polyphi.data.draws import Unfit
from polyphi.data.shards import Sample
from polyphi.model.multimodal import image_places
from polyphi.processing.grids import EMPTY, ROW_END, LabelledBox, cells
from polyphi.processing.processor import Processor
from polyphi.train.objective import Vocabulary

SHARPNESS = 20.0
"""Of a vocabulary of 4,096 directions the right one then gets nearly all of the probability."""
EMPTY_WEIGHT = 0.2
"""Of a cell where nothing is, beside 1 of one that holds something: most cells are empty."""


def word_ids(words: str, tokenizer: Vocabulary) -> list[int]:
    """The tokens of words with a space before each, without the spaces that are tokens by themselves (all of them where
    nothing else is left: a tokenizer that stands in for one has a single id)."""
    ids: list[int] = tokenizer.encode(f" {words}")
    space = tokenizer.encode(" ")
    return [id for id in ids if [id] != space] or ids


def with_words(row: Batch, sample: Sample, processor: Processor) -> Batch:
    """The row with the words of its images and of its audio clip, as far as the sample knows them. Of an image that
    doesn't fill its crops nothing is known: its cells don't lie as its boxes say."""
    side, triples = processor.cells, list[tuple[int, int, int]]()
    for number, (layout, shown) in enumerate(
        zip(row.images, sample.meta.get("named", ()), strict=False)
    ):
        if fills(layout, side):
            places = image_words(layout, shown, side)
            triples += [(number, *pair) for pair in numbered(places, processor.tokenizer)]
    heard = sample.meta.get("heard", "") if len(row.clips) == 1 else ""
    pairs = [(0, id) for id in processor.tokenizer.encode(heard)] if heard else []
    return replace(
        row,
        cell_words=torch.tensor(triples) if triples else None,
        clip_words=torch.tensor(pairs) if pairs else None,
    )


def fills(layout: ImageLayout, side: int) -> bool:
    """Whether an image fills its crops, of side x side cells each."""
    return (layout.rows, layout.cols) == (layout.crop_rows * side, layout.crop_cols * side)


def in_words(row: Batch, sample: Sample, processor: Processor) -> Batch:
    """The row with words in place of its images: `PhiModel.embed` gives each image token the mean of their embeddings.
    Raises `Unfit` where the sample doesn't know what its images show."""
    row = with_words(row, sample, processor)
    known = 0 if row.cell_words is None else len(row.cell_words[:, 0].unique())
    if known < len(row.images):
        raise Unfit(
            f"sample {sample.id}: of {len(row.images)} images {known} can be given in words"
        )
    return replace(row, crops=None, views=None, crop_masks=None)


def image_words(layout: ImageLayout, shown: Sequence[LabelledBox], side: int) -> list[str]:
    """The words of every token of an image, in order (projector.py): the cells of its crops, row by row, then those of
    its global view; ROW_END for separators. The sides that things are on are told where the encoder can see them: not
    in one crop of several."""
    alone = layout.crop_rows == layout.crop_cols == 1
    crops, view = (
        [words for line in cells(shown, rows, cols, sides=sides) for words in (*line, ROW_END)]
        for rows, cols, sides in ((layout.rows, layout.cols, alone), (side, side, True))
    )
    return [*crops, ROW_END, *view]


def numbered(places: Sequence[str], tokenizer: Vocabulary) -> list[tuple[int, int]]:
    """(number of a place, token id) for every token of its words; an empty place has the token of EMPTY."""
    ids = {
        words: tokenizer.encode(words) if words == ROW_END else word_ids(words or EMPTY, tokenizer)
        for words in set(places)
    }
    return [(number, id) for number, words in enumerate(places) for id in ids[words]]


def quiet_ids(tokenizer: Vocabulary) -> tuple[int, int]:
    """The tokens of an empty cell, and of a frame in which nothing is said, and of a row's end."""
    return word_ids(EMPTY, tokenizer)[-1], tokenizer.encode(ROW_END)[0]


class Alignment(nn.Module):
    """The loss of a pack's image and audio tokens; it has no parameters."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        super().__init__()
        self.quiet = quiet_ids(tokenizer)

    def forward(
        self, x: Float[Tensor, "T D"], batch: Batch, embeddings: Float[Tensor, "V D"]
    ) -> tuple[Float[Tensor, ""], dict[str, tuple[float, int]]]:
        """(sum over image tokens and clips, metrics). `x` are the decoder's inputs, with image and audio tokens in
        their places; gradients reach them, not the embeddings. The metric "named" counts filled cells whose nearest
        word is one of theirs."""
        directions = F.normalize(embeddings.detach().float(), dim=-1)
        total = x.new_zeros((), dtype=torch.float32)
        metrics: dict[str, tuple[float, int]] = {}
        if batch.cell_words is not None:
            loss, right, filled = self._images(x, batch, directions)
            total, metrics = total + loss, {"named": (right, filled)}
        if batch.clip_words is not None:
            total = total + self._clips(x, batch, directions)
        return total, metrics

    def _images(
        self, x: Tensor, batch: Batch, directions: Float[Tensor, "V D"]
    ) -> tuple[Tensor, float, int]:
        assert batch.cell_words is not None and batch.image_slots is not None
        places, words = image_places(batch)
        tokens = x.index_select(0, batch.image_slots)
        return word_loss(scores_of(tokens, directions), places, words, self.quiet)

    def _clips(self, x: Tensor, batch: Batch, directions: Float[Tensor, "V D"]) -> Tensor:
        """CTC over the vocabulary."""
        assert batch.clip_words is not None and batch.audio_slots is not None
        spoken: dict[int, list[int]] = {}
        for clip, word in batch.clip_words.tolist():
            spoken.setdefault(clip, []).append(word)
        parts = batch.audio_slots.split([clip.tokens for clip in batch.clips])
        slots = [parts[clip] for clip in spoken]
        scores = scores_of(x.index_select(0, torch.cat(slots)), directions)
        # CTC looks at the blank and at the words of these clips: of 200,064 columns a few dozen.
        words = torch.tensor([word for said in spoken.values() for word in said], device=x.device)
        used, columns = words.unique(return_inverse=True)
        chosen = scores.index_select(1, F.pad(used, (1, 0), value=self.quiet[0]))
        return F.ctc_loss(
            pad_sequence(list(chosen.split([len(part) for part in slots]))),
            columns + 1,
            torch.tensor([len(part) for part in slots]),
            torch.tensor([len(said) for said in spoken.values()]),
            reduction="sum",
            zero_infinity=True,  # a clip with fewer frames than words teaches nothing
        )


def word_loss(
    scores: Float[Tensor, "n V"],
    places: Int[Tensor, " m"],
    words: Int[Tensor, " m"],
    quiet: Sequence[int],
) -> tuple[Float[Tensor, ""], float, int]:
    """Places named by the words that stand there, given logarithms of the probabilities of all words at each place:
    (sum of cross-entropies, places that hold something and whose most probable word is one of theirs, places that hold
    something). A place of several words has each with equal probability; one with a word of `quiet` holds nothing."""
    rows, place, counts = places.unique(return_inverse=True, return_counts=True)
    filled = torch.ones_like(rows, dtype=torch.bool)
    filled = filled.index_fill(0, place[torch.isin(words, words.new_tensor(quiet))], False)
    weights = torch.where(filled, 1.0, EMPTY_WEIGHT) / counts
    loss = -(scores[places, words] * weights[place]).sum()
    hits = place[scores.detach().argmax(-1)[places] == words].unique()
    return loss, float(filled[hits].sum()), int(filled.sum())


def scores_of(x: Float[Tensor, "n D"], directions: Float[Tensor, "V D"]) -> Float[Tensor, "n V"]:
    """Logarithms of the probabilities of all words."""
    return (SHARPNESS * F.normalize(x.float(), dim=-1) @ directions.t()).log_softmax(-1)
