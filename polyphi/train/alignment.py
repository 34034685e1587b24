"""Alignment loss: it trains the encoders so that an image or audio token points in the direction of the language
model's embeddings of the words that it stands for. [ours]

    image token of a cell with a red star    ->  the directions of " red" and " star", each with probability 1/2
    tokens of a clip that says "three seven" ->  " three", blanks, " seven": a CTC loss over the vocabulary

Larger models learn this mapping from billions of pairs (report 2.2.2); a small model sees too few. Only samples with
annotations are aligned: those of our generators (`meta["named"]`, `meta["reference"]`).

The logits are cosines between tokens and embeddings, times `LOGIT_SCALE`. Losses are sums over tokens and clips, so
that a pack's loss is the sum of the losses of its rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from polyphi.data.sample import Sample
from polyphi.model.multimodal import PhiModel
from polyphi.processing.label_grids import EMPTY, ROW_END, LabelledBox, cells
from polyphi.processing.processor import Processor
from polyphi.train.stage import Vocabulary
from polyphi.types.batch import Batch
from polyphi.types.inputs.audio import AudioInput
from polyphi.types.inputs.image import ImageInput, ImageLayout

LOGIT_SCALE = 20.0
"""Factor on the logits. With this one the right direction of a vocabulary of 4,096 gets nearly all of the
probability."""
EMPTY_WEIGHT = 0.2
"""Weight of an empty cell in the loss; a filled cell has 1. Most cells are empty."""


def word_ids(words: str, tokenizer: Vocabulary) -> list[int]:
    """Token ids of words, each after a space, without the ids of spaces alone (unless nothing else is left: a test's
    tokenizer may have a single id)."""
    ids: list[int] = tokenizer.encode(f" {words}")
    space = tokenizer.encode(" ")
    return [id for id in ids if [id] != space] or ids


def with_words(row: Batch, sample: Sample, processor: Processor) -> Batch:
    """The row with the words of its images and of its audio clip, where the sample has them. An image that doesn't fill
    its crops gets no words, because its cells don't match the boxes of the annotation."""
    if (images := row.of(ImageInput)) is not None:
        side, triples = processor.images.cells, list[tuple[int, int, int]]()
        named = zip(images.layouts, sample.meta.get("named", ()), strict=False)
        for number, (layout, items) in enumerate(named):
            if fills_crops(layout, side):
                words = word_pairs(image_words(layout, items, side), processor.tokenizer)
                triples += [(number, *pair) for pair in words]
        row = row.with_inputs(replace(images, label_ids=torch.tensor(triples) if triples else None))
    if (audio := row.of(AudioInput)) is not None and len(audio.layouts) == 1:
        ids = processor.tokenizer.encode(sample.meta.get("reference", ""))
        pairs = torch.tensor([(0, id) for id in ids]) if ids else None
        row = row.with_inputs(replace(audio, label_ids=pairs))
    return row


def fills_crops(layout: ImageLayout, side: int) -> bool:
    """Whether an image fills its crops of `side` x `side` cells each."""
    return (layout.rows, layout.cols) == (layout.crop_rows * side, layout.crop_cols * side)


def image_words(layout: ImageLayout, items: Sequence[LabelledBox], side: int) -> list[str]:
    """The words of every token of an image, in order (projector.py): the cells of its crops, row by row, then those of
    its global view; ROW_END for separators. Words for the side on which a thing lies ("left") are included where the
    encoder can see the whole image: not in one crop of several."""
    single_crop = layout.crop_rows == layout.crop_cols == 1
    crops, view = (
        [words for line in cells(items, rows, cols, sides=sides) for words in (*line, ROW_END)]
        for rows, cols, sides in ((layout.rows, layout.cols, single_crop), (side, side, True))
    )
    return [*crops, ROW_END, *view]


def word_pairs(texts: Sequence[str], tokenizer: Vocabulary) -> list[tuple[int, int]]:
    """(index in `texts`, token id) for every token of each text; an empty text has the token of EMPTY."""
    ids = {
        words: tokenizer.encode(words) if words == ROW_END else word_ids(words or EMPTY, tokenizer)
        for words in set(texts)
    }
    return [(index, id) for index, words in enumerate(texts) for id in ids[words]]


def empty_ids(tokenizer: Vocabulary) -> tuple[int, int]:
    """Token ids of an empty cell (also the CTC blank of speech) and of a row's end."""
    return word_ids(EMPTY, tokenizer)[-1], tokenizer.encode(ROW_END)[0]


class Alignment(nn.Module):
    """The alignment loss of a pack's image and audio tokens; the module has no parameters. A crop has `side` x `side`
    cells."""

    def __init__(self, tokenizer: Vocabulary, side: int) -> None:
        super().__init__()
        self.empty_ids = empty_ids(tokenizer)
        self.side = side

    @classmethod
    def of(cls, model: PhiModel, tokenizer: Vocabulary) -> "Alignment":
        """The loss of a model's inputs."""
        vision = model.config.vision
        return cls(tokenizer, vision.cells if vision else 0)

    def forward(
        self, x: Float[Tensor, "T D"], batch: Batch, embeddings: Float[Tensor, "V D"]
    ) -> tuple[Float[Tensor, ""], dict[str, tuple[float, int]]]:
        """(sum of losses over image tokens and clips, metrics). `x` are the decoder's inputs, image and audio tokens
        included; gradients flow to `x`, not to the embeddings. The metric "named" counts filled cells whose most
        probable word is one of theirs."""
        directions = F.normalize(embeddings.detach().float(), dim=-1)
        total = x.new_zeros((), dtype=torch.float32)
        correct, filled = 0.0, 0
        if (images := batch.of(ImageInput)) is not None and images.label_ids is not None:
            loss, correct, filled = self._images(x, images, directions)
            total = total + loss
        if (audio := batch.of(AudioInput)) is not None and audio.label_ids is not None:
            total = total + self._clips(x, audio, directions)
        return total, {"named": (correct, filled)}

    def _images(
        self, x: Tensor, images: ImageInput, directions: Float[Tensor, "V D"]
    ) -> tuple[Tensor, float, int]:
        assert images.label_ids is not None and images.slots is not None
        numbers, cells, words = images.label_ids.unbind(1)
        sizes = torch.tensor([layout.tokens(self.side) for layout in images.layouts])
        slots = (sizes.cumsum(0) - sizes).to(numbers.device)[numbers] + cells
        tokens = x.index_select(0, images.slots)
        return word_loss(word_log_probs(tokens, directions), slots, words, self.empty_ids)

    def _clips(self, x: Tensor, audio: AudioInput, directions: Float[Tensor, "V D"]) -> Tensor:
        """The CTC loss over the vocabulary of the words of each audio clip."""
        assert audio.label_ids is not None and audio.slots is not None
        by_clip: dict[int, list[int]] = {}
        for clip, word in audio.label_ids.tolist():
            by_clip.setdefault(clip, []).append(word)
        slots_of = audio.slots.split(audio.tokens)
        audio_slots = [slots_of[clip] for clip in by_clip]
        log_probs = word_log_probs(x.index_select(0, torch.cat(audio_slots)), directions)
        # CTC needs the blank and the words of these clips: a few dozen of 200,064 columns.
        words = torch.tensor([word for ids in by_clip.values() for word in ids], device=x.device)
        used, columns = words.unique(return_inverse=True)
        chosen = log_probs.index_select(1, F.pad(used, (1, 0), value=self.empty_ids[0]))
        return F.ctc_loss(
            pad_sequence(list(chosen.split([len(part) for part in audio_slots]))),
            columns + 1,
            torch.tensor([len(part) for part in audio_slots]),
            torch.tensor([len(ids) for ids in by_clip.values()]),
            reduction="sum",
            zero_infinity=True,  # a clip with fewer frames than words has no gradient
        )


def word_loss(
    log_probs: Float[Tensor, "n V"],
    slots: Int[Tensor, " m"],
    words: Int[Tensor, " m"],
    empty_ids: Sequence[int],
) -> tuple[Float[Tensor, ""], float, int]:
    """Cross-entropy of slots (image tokens or patches) with their words: `log_probs` are those of all words in each
    slot, and slot `slots[i]` has the word `words[i]`. A slot with several words has each with equal probability; a slot
    with one of `empty_ids` is empty.

    Returns (sum of cross-entropies, filled slots whose most probable word is one of theirs, filled slots).
    """
    rows, slot, counts = slots.unique(return_inverse=True, return_counts=True)
    filled = torch.ones_like(rows, dtype=torch.bool)
    filled = filled.index_fill(0, slot[torch.isin(words, words.new_tensor(empty_ids))], False)
    weights = torch.where(filled, 1.0, EMPTY_WEIGHT) / counts
    loss = -(log_probs[slots, words] * weights[slot]).sum()
    hits = slot[log_probs.detach().argmax(-1)[slots] == words].unique()
    return loss, float(filled[hits].sum()), int(filled.sum())


def word_log_probs(
    x: Float[Tensor, "n D"], directions: Float[Tensor, "V D"]
) -> Float[Tensor, "n V"]:
    """Log-probabilities of all words, by cosine with their embeddings."""
    return (LOGIT_SCALE * F.normalize(x.float(), dim=-1) @ directions.t()).log_softmax(-1)
