"""Contrastive learning of the image encoder with the frozen language model's text embedding as teacher
(vision_0_encoder; LLM2CLIP, report 2.2.1), by SigLIP's sigmoid loss.

Every picture of a batch is compared with every caption of it; z is +1 where they belong together, else -1::

                 "a cat"   "two dogs"   "a cat"
    cat photo      +1         -1          +1        the same caption twice: both are right
    dogs photo     -1         +1          -1
    cat photo      +1         -1          +1

    loss = sum over pictures i and captions j of
           -log sigmoid(z_ij (temperature * cos(picture_i, caption_j) + bias - log(captions)))

[ours] A caption's embedding is the mean of the language model's last hidden states, and beside it the mean of its token
embeddings: the hidden states of "the digit 3" and "the digit 7" differ by less than a hundredth, the embeddings by a
third. What the captions of a step share is taken off, and what is left is brought to one scale: else digits stay at
chance after 9,000 pictures; so they are read by 44 % after 4,500. Both pass a small head that is thrown away; a
picture's embedding is that of its global view alone.
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

from polyphi.batch import Batch, ImageLayout, pack
from polyphi.data.draws import Unfit
from polyphi.data.shards import Sample
from polyphi.messages import Image, Message, Text, media
from polyphi.model.multimodal import PhiModel
from polyphi.processing.grids import cells, covered
from polyphi.processing.processor import Processor
from polyphi.train.alignment import fills, numbered, quiet_ids, word_loss
from polyphi.train.objective import HasTokenizer

GLOBAL_VIEW = ImageLayout(0, 0, 0, 0)
"""A picture of which only the global view is kept: one crop."""


LEAST_CAPTIONS = 64
SHARPNESS = 3.0
"""Scores of words in `naming` grow so many times as fast as what a place says of them."""
CELL_WEIGHT = 4.0
"""Of a cell beside a patch in `naming`: a thing lies over many patches, its middle is in one cell."""
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
        self, picture_size: int, text_size: int, width: int, quiet: tuple[int, int] | None
    ) -> None:
        """`quiet`: the tokens of empty places where patches are named, else None."""
        super().__init__()
        self.picture = nn.Linear(picture_size, width)
        self.text = nn.Linear(text_size, width)
        self.words = None if quiet is None else nn.Linear(picture_size, text_size // 2)
        self.cells = None if quiet is None else nn.Linear(picture_size, text_size // 2)
        self.quiet = quiet
        # Almost all pairs are negatives, and the scores must say so from the first step on. SigLIP's bias starts at -10
        # for its 32,768 captions, which is minus their logarithm; here that is taken off whatever the number [ours].
        self.log_temperature = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, pictures: Float[Tensor, "S P"], texts: Float[Tensor, "S 2D"]
    ) -> Float[Tensor, "S S"]:
        """Score of every picture (row) with every caption (column), float32."""
        # What all captions share says nothing of which is which.
        texts = (texts - texts.mean(0)) / (texts.std(0, unbiased=False) + 1e-3)
        a, b = (F.normalize(x.float(), dim=-1) for x in (self.picture(pictures), self.text(texts)))
        with torch.autocast(a.device.type, enabled=False):
            return self.log_temperature.exp() * (a @ b.t()) + self.bias - math.log(len(texts))

    def named(self, features: Float[Tensor, "S p P"]) -> Float[Tensor, "S places D"]:
        """What patches of pictures and then cells, two by two patches as the projector averages them, are called."""
        assert self.words is not None and self.cells is not None
        side = math.isqrt(features.shape[1])
        averages = F.avg_pool2d(features.mT.unflatten(2, (side, side)), 2).flatten(2).mT
        return torch.cat([self.words(features), self.cells(averages)], dim=1)


def caption_embeddings(model: PhiModel, batch: Batch) -> Float[Tensor, "S 2D"]:
    """Each caption as the language model sees it: means over its tokens of last hidden states and of embeddings, both
    normed, without gradient; float32."""
    captions = replace(batch, crops=None, crop_masks=None, images=(), image_slots=None)
    with torch.no_grad():
        seen = (model(captions), model.decoder.embed_tokens(batch.ids))
        # Hidden states of a language model share a large common part; normed, it doesn't drown what differs.
        tokens = torch.cat([F.layer_norm(x.float(), x.shape[-1:]) for x in seen], dim=-1)
    lengths = torch.tensor([end - start for start, end in pairwise(batch.bounds)]).to(
        tokens.device, non_blocking=True
    )
    owner = torch.repeat_interleave(lengths, output_size=len(batch))
    sums = tokens.new_zeros(batch.sequences, tokens.shape[-1]).index_add(0, owner, tokens)
    return sums / lengths[:, None]


def same_caption(batch: Batch) -> Bool[Tensor, "S S"]:
    """Which captions are the same, id by id."""
    ids = batch.ids.tolist()
    seen: dict[tuple[int, ...], int] = {}
    numbers = torch.tensor(
        [seen.setdefault(tuple(ids[a:b]), len(seen)) for a, b in pairwise(batch.bounds)]
    )
    numbers = numbers.to(batch.ids.device, non_blocking=True)
    return numbers[:, None] == numbers[None, :]


@dataclass(frozen=True)
class Contrastive:
    """`width`: size of the space in which pictures and captions are compared. `naming` weighs a second loss [ours]:
    each patch of a picture names what lies over it by the language model's embeddings, and each cell what has its
    middle there, as the projector's tokens will (alignment.py). A fresh encoder then learns where things are, which
    captions hardly tell."""

    width: int = 256
    naming: float = 0.0
    whole_step: ClassVar[bool] = True
    """Every picture of a step is compared with every caption, whatever the memory and the processes."""

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        """The caption as a document, carrying the picture's global view; no labels and no placeholders. Raises
        `Unfit` unless the sample has exactly one picture and a caption within `context`."""
        pictures = media(sample.messages, Image)
        if len(pictures) != 1:
            raise Unfit(
                f"sample {sample.id}: contrastive learning needs one picture, found {len(pictures)}"
            )
        if not sample.answer.strip():
            raise Unfit(f"sample {sample.id}: the caption is empty")
        caption = processor.row(
            [Message("document", (Text(sample.answer),))], adapter=None, context=context
        )
        seen = processor.row([Message.user(pictures[0])]).image_input.float_crops()
        words = None
        side = seen.masks.shape[-1]
        if self.naming and "named" in sample.meta and fills(seen.layouts[0], side // 2):
            shown = sample.meta["named"][0]
            middles = cells(shown, side // 2, side // 2, sides=True)
            places = [*covered(shown, side), *chain.from_iterable(middles)]
            pairs = numbered(places, processor.tokenizer)
            words = torch.tensor([(0, *pair) for pair in pairs])
        return [
            replace(
                caption,
                crops=seen.crops[:1],
                crop_masks=seen.masks[:1],
                images=(GLOBAL_VIEW,),
                cell_words=words,
            )
        ]

    def build(self, model: PhiModel, processor: HasTokenizer, seed: int = 0) -> Heads:
        """Fresh heads, the same for the same seed. Raises ValueError where the model has no vision tower."""
        if model.vision is None:
            raise ValueError("contrastive learning needs a vision tower, this model has none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = model.config
            quiet = quiet_ids(processor.tokenizer) if self.naming else None
            text_size = 2 * config.decoder.hidden_size
            return Heads(model.vision.encoder.config.hidden_size, text_size, self.width, quiet)

    def begin(self, model: PhiModel) -> None:
        """No reference."""

    def loss(
        self, model: PhiModel, module: Heads, state: None, batch: Batch
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """(sum over pairs and patches, pictures, metrics). `accuracy` counts pictures whose nearest caption is their
        own, `named` filled patches whose nearest word is one of theirs."""
        assert model.vision is not None and batch.crops is not None and batch.crop_masks is not None
        assert len(batch.crops) == len(batch.images) == batch.sequences, (
            "one global view per caption"
        )
        features = model.vision.encoder(batch.crops, batch.crop_masks)
        scores = module(
            model.vision.encoder.pool(features, batch.crop_masks), caption_embeddings(model, batch)
        )
        same = same_caption(batch)
        total = -F.logsigmoid(torch.where(same, scores, -scores)).sum()
        right = same.gather(1, scores.argmax(1, keepdim=True)).sum()
        metrics: dict[str, Any] = {"accuracy": float(right)}
        if module.words is not None and batch.cell_words is not None:
            assert module.quiet is not None
            images, places, words = batch.cell_words.unbind(1)
            # As with captions, a step's words are told apart from each other, without what they share: of the
            # vocabulary a hundred columns.
            used, words = words.unique(return_inverse=True)
            directions = model.decoder.embed_tokens.weight[used].detach().float()
            directions = F.normalize(directions - directions.mean(0), dim=-1)
            quiet = torch.isin(used, used.new_tensor(module.quiet)).nonzero().flatten().tolist()
            named = module.named(features)
            scores = (SHARPNESS * named.flatten(0, 1).float() @ directions.t()).log_softmax(-1)
            named_right, filled = 0.0, 0
            cell = places >= features.shape[1]
            places = images * named.shape[1] + places
            for chosen, weight in ((~cell, 1.0), (cell, CELL_WEIGHT)):
                loss, hits, known = word_loss(scores, places[chosen], words[chosen], quiet)
                total = total + self.naming * weight * loss
                named_right, filled = named_right + hits, filled + known
            metrics["named"] = (named_right, filled)
        return total, batch.sequences, metrics


class Similarity:
    """How well a caption fits a picture: the cosine of their embeddings, by the trained encoder and its heads.

    >>> similarity = Similarity(model, trained, processor, captions)
    >>> similarity(picture, "two red stars")
    0.83

    `trained` holds the heads' tensors, by themselves or as all that the stage trained (`objective.` before their
    names). `captions` (64 different ones at least) say what captions share, which is taken off as in training.
    """

    def __init__(
        self,
        model: PhiModel,
        trained: Mapping[str, Tensor],
        processor: Processor,
        captions: Iterable[str],
    ) -> None:
        if model.vision is None:
            raise ValueError("comparing captions with pictures needs a vision tower, found none")
        known = list(dict.fromkeys(captions))
        if len(known) < LEAST_CAPTIONS:
            raise ValueError(
                f"what captions share shows in {LEAST_CAPTIONS} different ones, found {len(known)}"
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
        texts = torch.cat([self._embedded(caption) for caption in known])
        self._mean, self._spread = texts.mean(0), texts.std(0, unbiased=False) + 1e-3

    def __deepcopy__(self, memo: dict[int, Any]) -> "Similarity":
        """Itself: datatrove copies its steps for each task, and a model needs no copy."""
        return self

    @torch.no_grad()
    def __call__(self, picture: Picture.Image, caption: str) -> float:
        """In [-1, 1]; only the picture's global view is looked at. Raises ValueError for an empty caption."""
        if not caption.strip():
            raise ValueError("a caption needs words, found none")
        encoded = io.BytesIO()
        picture.convert("RGB").save(encoded, "PNG", compress_level=1)
        row = self._processor.row([Message.user(Image(encoded.getvalue()))])
        seen = row.image_input.float_crops()
        assert self._model.vision is not None
        pooled = self._model.vision.encoder.pooled(seen.crops[:1], seen.masks[:1])
        text = (self._embedded(caption) - self._mean) / self._spread
        a = self._heads.picture(pooled.float())
        return float(F.cosine_similarity(a, self._heads.text(text)))

    def _embedded(self, caption: str) -> Float[Tensor, "1 2D"]:
        said = Message("document", (Text(caption),))
        return caption_embeddings(self._model, pack([self._processor.row([said], adapter=None)]))
