"""Contrastive learning of the image encoder with the frozen language model's text embedding as teacher
(vision_0_encoder; LLM2CLIP, report 2.2.1), by SigLIP's sigmoid loss.

Every image of a batch is compared with every caption of it; z is +1 where they belong together, else -1::

                 "a cat"   "two dogs"   "a cat"
    cat photo      +1         -1          +1        the same caption twice: both are positives
    dogs photo     -1         +1          -1
    cat photo      +1         -1          +1

    loss = sum over images i and captions j of
           -log sigmoid(z_ij (temperature * cos(image_i, caption_j) + bias - log(captions)))

[ours] A caption's embedding is the mean of the language model's last hidden states, concatenated with the mean of its
token embeddings: the hidden states of "the digit 3" and "the digit 7" differ by less than a hundredth, the embeddings
by a third. The mean over the captions of a step is subtracted, and the rest is divided by the standard deviation:
without this, accuracy on digits stays at chance after 9,000 images; with it, it is 44 % after 4,500. Both embeddings
pass a small auxiliary head; an image's embedding is that of its global view alone.
"""

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image as Picture
from torch import Tensor, nn

from polyphi.batch import Batch, pack
from polyphi.data.sample import Sample, Unfit
from polyphi.image_input import ImageInput, ImageLayout
from polyphi.messages import Image, Message, Text, media
from polyphi.model.multimodal import PhiModel
from polyphi.processing.label_grids import cells, covered
from polyphi.processing.processor import Processor
from polyphi.train.alignment import empty_ids, fills_crops, word_loss, word_pairs
from polyphi.train.stage import HasTokenizer

GLOBAL_VIEW = ImageLayout(0, 0, 0, 0)
"""Layout of an image of which only the global view is encoded: one crop."""

MIN_CAPTIONS = 64
"""Different captions that `Similarity` needs at least, to estimate their mean and spread."""
LOGIT_SCALE = 3.0
"""Factor on the logits of words in the `naming` loss."""
CELL_WEIGHT = 4.0
"""Weight of a cell in the `naming` loss; a patch has 1. A thing covers many patches, but its middle is in one cell."""
HEAD_TENSORS = {
    "picture.weight",
    "picture.bias",
    "text.weight",
    "text.bias",
    "log_temperature",
    "bias",
}


class Heads(nn.Module):
    """The auxiliary head: two linear layers into one space, the temperature (as its logarithm) and the bias."""

    def __init__(
        self, picture_size: int, text_size: int, width: int, empty_ids: tuple[int, int] | None
    ) -> None:
        """`empty_ids`: token ids of empty patches and cells for the `naming` loss; None without it."""
        super().__init__()
        self.picture = nn.Linear(picture_size, width)
        self.text = nn.Linear(text_size, width)
        self.words = None if empty_ids is None else nn.Linear(picture_size, text_size // 2)
        self.cells = None if empty_ids is None else nn.Linear(picture_size, text_size // 2)
        self.empty_ids = empty_ids
        # Almost all pairs are negatives, so the logits must be low from the first step on. SigLIP's bias starts at -10
        # for its 32,768 captions, which is minus their logarithm; here `forward` subtracts it for any number [ours].
        self.log_temperature = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, images: Float[Tensor, "S P"], texts: Float[Tensor, "S 2D"]
    ) -> Float[Tensor, "S S"]:
        """Logit of every image (row) with every caption (column), float32."""
        # The mean of all captions doesn't distinguish them.
        texts = (texts - texts.mean(0)) / (texts.std(0, unbiased=False) + 1e-3)
        a, b = (F.normalize(x.float(), dim=-1) for x in (self.picture(images), self.text(texts)))
        with torch.autocast(a.device.type, enabled=False):
            return self.log_temperature.exp() * (a @ b.t()) + self.bias - math.log(len(texts))

    def word_embeddings(self, features: Float[Tensor, "S p P"]) -> Float[Tensor, "S slots D"]:
        """Predicted word embeddings of all patches and then of all cells, of two by two patches as the projector
        averages them."""
        assert self.words is not None and self.cells is not None
        side = math.isqrt(features.shape[1])
        averages = F.avg_pool2d(features.mT.unflatten(2, (side, side)), 2).flatten(2).mT
        return torch.cat([self.words(features), self.cells(averages)], dim=1)


def _images(row: Batch) -> ImageInput:
    images = row.of(ImageInput)
    assert images is not None
    return images.ready()


def caption_embeddings(model: PhiModel, batch: Batch) -> Float[Tensor, "S 2D"]:
    """Embedding of each caption by the language model: means over its tokens of last hidden states and of token
    embeddings, both normalized, without gradient; float32."""
    captions = replace(batch, inputs={})
    with torch.no_grad():
        states = (model(captions), model.decoder.embed_tokens(batch.ids))
        # Hidden states of a language model share a large common part; normalization keeps it from hiding differences.
        tokens = torch.cat([F.layer_norm(x.float(), x.shape[-1:]) for x in states], dim=-1)
    lengths = torch.tensor([end - start for start, end in pairwise(batch.cu_seqlens)]).to(
        tokens.device, non_blocking=True
    )
    caption_index = torch.repeat_interleave(lengths, output_size=len(batch))
    sums = tokens.new_zeros(batch.sequences, tokens.shape[-1]).index_add(0, caption_index, tokens)
    return sums / lengths[:, None]


def same_caption(batch: Batch) -> Bool[Tensor, "S S"]:
    """True where two captions have the same token ids."""
    ids = batch.ids.tolist()
    index_of: dict[tuple[int, ...], int] = {}
    indices = torch.tensor(
        [index_of.setdefault(tuple(ids[a:b]), len(index_of)) for a, b in pairwise(batch.cu_seqlens)]
    )
    indices = indices.to(batch.ids.device, non_blocking=True)
    return indices[:, None] == indices[None, :]


@dataclass(frozen=True)
class Contrastive:
    """`width`: size of the space in which images and captions are compared. `naming` is the weight of a second loss
    [ours]: each patch of an image predicts the words of the thing that covers it, and each cell those of the thing that
    has its middle there, as the projector's tokens later do (alignment.py). From it a fresh encoder learns where things
    are, which captions hardly describe."""

    width: int = 256
    naming: float = 0.0
    whole_step: ClassVar[bool] = True
    """Every image of a step is compared with every caption, whatever the memory and the number of processes."""

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        """The caption as a document with the image's global view; no labels and no placeholders. Raises `Unfit` unless
        the sample has exactly one image and a caption of at most `context` tokens."""
        images = media(sample.messages, Image)
        if len(images) != 1:
            raise Unfit(
                f"sample {sample.id}: contrastive learning needs one image, found {len(images)}"
            )
        if not sample.answer.strip():
            raise Unfit(f"sample {sample.id}: expected a caption, found an empty answer")
        caption = processor.row(
            [Message("document", (Text(sample.answer),))], adapter=None, context=context
        )
        image_input = _images(processor.row([Message.user(images[0])]))
        words = None
        side = image_input.masks.shape[-1]
        if (
            self.naming
            and "named" in sample.meta
            and fills_crops(image_input.layouts[0], side // 2)
        ):
            items = sample.meta["named"][0]
            middles = cells(items, side // 2, side // 2, sides=True)
            texts = [*covered(items, side), *chain.from_iterable(middles)]
            pairs = word_pairs(texts, processor.tokenizer)
            words = torch.tensor([(0, *pair) for pair in pairs])
        view = ImageInput(
            layouts=(GLOBAL_VIEW,),
            words=words,
            crops=image_input.crops[:1],
            masks=image_input.masks[:1],
        )
        return [caption.with_inputs(view)]

    def build(self, model: PhiModel, processor: HasTokenizer, seed: int = 0) -> Heads:
        """Fresh heads, equal for equal seeds. Raises ValueError where the model has no vision tower."""
        if model.vision is None:
            raise ValueError("contrastive learning needs a model with a vision tower, found none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = model.config
            ids = empty_ids(processor.tokenizer) if self.naming else None
            text_size = 2 * config.decoder.hidden_size
            return Heads(model.vision.encoder.config.hidden_size, text_size, self.width, ids)

    def begin(self, model: PhiModel) -> None:
        """No reference."""

    def loss(
        self, model: PhiModel, head: Heads, reference: None, batch: Batch
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """(sum of losses over pairs and patches, number of images, metrics). `accuracy` counts images whose nearest
        caption is their own, `named` filled patches and cells whose most probable word is one of theirs."""
        views = batch.of(ImageInput)
        assert model.vision is not None and views is not None
        assert len(views.crops) == len(views.layouts) == batch.sequences, (
            "one global view per caption"
        )
        features = model.vision.encoder(views.crops, views.masks)
        logits = head(
            model.vision.encoder.pool(features, views.masks), caption_embeddings(model, batch)
        )
        same = same_caption(batch)
        total = -F.logsigmoid(torch.where(same, logits, -logits)).sum()
        hits = same.gather(1, logits.argmax(1, keepdim=True)).sum()
        named_hits, filled = 0.0, 0
        if head.words is not None and views.words is not None:
            assert head.empty_ids is not None
            images, slots, words = views.words.unbind(1)
            # As with captions, the mean of a step's words is subtracted; only their columns are needed, about a hundred
            # of the vocabulary.
            used, words = words.unique(return_inverse=True)
            directions = model.decoder.embed_tokens.weight[used].detach().float()
            directions = F.normalize(directions - directions.mean(0), dim=-1)
            empty = torch.isin(used, used.new_tensor(head.empty_ids)).nonzero().flatten().tolist()
            predicted = head.word_embeddings(features)
            log_probs = (
                LOGIT_SCALE * predicted.flatten(0, 1).float() @ directions.t()
            ).log_softmax(-1)
            cell = slots >= features.shape[1]
            slots = images * predicted.shape[1] + slots
            for chosen, weight in ((~cell, 1.0), (cell, CELL_WEIGHT)):
                loss, correct, count = word_loss(log_probs, slots[chosen], words[chosen], empty)
                total = total + self.naming * weight * loss
                named_hits, filled = named_hits + correct, filled + count
        return total, batch.sequences, {"accuracy": float(hits), "named": (named_hits, filled)}


class Similarity:
    """Similarity of an image and a caption: the cosine of their embeddings, by the trained encoder and its heads.

    >>> similarity = Similarity(model, trained, processor, captions)
    >>> similarity(picture, "two red stars")
    0.83

    `trained` holds the heads' tensors, alone or among all trained tensors of the stage (with `objective.` before their
    names). `captions` (at least 64 different ones) give the mean and spread that normalize captions, as in training.
    """

    def __init__(
        self,
        model: PhiModel,
        trained: Mapping[str, Tensor],
        processor: Processor,
        captions: Iterable[str],
    ) -> None:
        if model.vision is None:
            raise ValueError("comparing captions with images needs a vision tower, found none")
        distinct = list(dict.fromkeys(captions))
        if len(distinct) < MIN_CAPTIONS:
            raise ValueError(
                f"expected at least {MIN_CAPTIONS} different captions, found {len(distinct)}"
            )
        state = {name.removeprefix("objective."): value for name, value in trained.items()}
        state = {name: value for name, value in state.items() if name in HEAD_TENSORS}
        if set(state) != HEAD_TENSORS:
            raise ValueError(f"expected the heads' {sorted(HEAD_TENSORS)}, found {sorted(state)}")
        width = len(state["picture.bias"])
        self._model, self._processor = model, processor
        self._heads = Contrastive(width).build(model, processor)
        self._heads.load_state_dict(state)
        self._heads.eval()
        texts = torch.cat([self._embedding(caption) for caption in distinct])
        self._mean, self._spread = texts.mean(0), texts.std(0, unbiased=False) + 1e-3

    def __deepcopy__(self, memo: dict[int, Any]) -> "Similarity":
        """The same object: datatrove copies its steps for each task, but a model needs no copy."""
        return self

    @torch.no_grad()
    def __call__(self, picture: Picture.Image, caption: str) -> float:
        """The cosine, in [-1, 1]; only the image's global view is encoded. Raises ValueError for an empty caption."""
        if not caption.strip():
            raise ValueError("expected a caption, found an empty text")
        encoded = io.BytesIO()
        picture.convert("RGB").save(encoded, "PNG", compress_level=1)
        row = self._processor.row([Message.user(Image(encoded.getvalue()))])
        image_input = _images(row)
        assert self._model.vision is not None
        pooled = self._model.vision.encoder.pooled(image_input.crops[:1], image_input.masks[:1])
        text = (self._embedding(caption) - self._mean) / self._spread
        a = self._heads.picture(pooled.float())
        return float(F.cosine_similarity(a, self._heads.text(text)))

    def _embedding(self, caption: str) -> Float[Tensor, "1 2D"]:
        """The embedding of one caption, not normalized."""
        document = Message("document", (Text(caption),))
        row = self._processor.row([document], adapter=None)
        return caption_embeddings(self._model, pack([row]))
