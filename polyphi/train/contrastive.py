"""Contrastive learning of the image encoder with the frozen language model's text embedding as teacher
(vision_0_encoder; LLM2CLIP, report 2.2.1), by SigLIP's sigmoid loss.

Every image of a batch is compared with every caption of it; z is +1 where they belong together, else -1::

                 "a cat"   "two dogs"   "a cat"
    cat photo      +1         -1          +1        the same caption twice: both are positives
    dogs photo     -1         +1          -1
    cat photo      +1         -1          +1

    loss = sum over images i and captions j of
           -log sigmoid(z_ij (temperature * cos(image_i, caption_j) + bias - log(captions)))

Nothing but these embeddings has to be in memory for all images of a step at once (GradCache, arXiv 2101.06983)::

    first pass    pack by pack, without gradients: the embeddings of images and captions
    compare       all images with all captions, in tiles: the losses, and their gradients by the embeddings
    second pass   pack by pack: the embeddings again, and backward from these gradients

[ours] A caption's embedding is the mean of the language model's last hidden states, concatenated with the mean of its
token embeddings: the hidden states of "the digit 3" and "the digit 7" differ by less than a hundredth, the embeddings
by a third. The mean over the captions of a step is subtracted, and the rest is divided by the standard deviation:
without this, accuracy on digits stays at chance after 9,000 images; with it, it is 44 % after 4,500. Both embeddings
pass a small auxiliary head; an image's embedding is that of its global view alone.
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image as Picture
from torch import Tensor, nn

from polyphi.data.sample import Sample, Unfit
from polyphi.model.multimodal import PhiModel
from polyphi.processing.label_grids import cells, covered
from polyphi.processing.processor import Processor
from polyphi.runtime import distributed
from polyphi.runtime.steps import result_of
from polyphi.train.alignment import empty_ids, fills_crops, word_loss, word_pairs
from polyphi.train.loss import CHUNK_LOGITS
from polyphi.train.stage import HasTokenizer
from polyphi.types.batch import Batch, pack
from polyphi.types.inputs.image import ImageInput, ImageLayout
from polyphi.types.messages import Message, media
from polyphi.types.parts import Image, Text

Total = Callable[[Tensor], Tensor]
"""A sum of a tensor over processes."""
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
        self, images: Float[Tensor, "s P"], texts: Float[Tensor, "s 2D"]
    ) -> tuple[Float[Tensor, "s W"], Float[Tensor, "s W"]]:
        """Directions of images and captions in the common space, float32."""
        pair = self.picture(images), self.text(texts)
        one, two = (F.normalize(x.float(), dim=-1) for x in pair)
        return one, two

    def word_embeddings(self, features: Float[Tensor, "S p P"]) -> Float[Tensor, "S slots D"]:
        """Predicted word embeddings of all patches and then of all cells, of two by two patches as the projector
        averages them."""
        assert self.words is not None and self.cells is not None
        side = math.isqrt(features.shape[1])
        averages = F.avg_pool2d(features.mT.unflatten(2, (side, side)), 2).flatten(2).mT
        return torch.cat([self.words(features), self.cells(averages)], dim=1)


def _read(image: Image, processor: Processor) -> ImageInput:
    """The crops of an image without a conversation around it."""
    item = processor.placeholder(image, None)
    steps = processor.images.inputs([item], range(item.tokens), (ImageInput.NAME,))
    return result_of(steps).ready()


def _views(batch: Batch) -> ImageInput:
    """The global views of a pack, one per caption."""
    images = batch.of(ImageInput)
    assert images is not None
    views = images.ready()
    assert len(views.crops) == len(views.layouts) == batch.sequences, "one global view per caption"
    return views


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


def caption_hashes(batch: Batch) -> Int[Tensor, " s"]:
    """A hash of each caption's token ids, 63 bits: equal captions have equal hashes, in every process."""
    ids = batch.ids.tolist()
    digests = [
        hashlib.sha256(str(ids[a:b]).encode()).digest() for a, b in pairwise(batch.cu_seqlens)
    ]
    return torch.tensor([int.from_bytes(digest[:8], "big") >> 1 for digest in digests])


@dataclass(frozen=True)
class Compared:
    """A pack after the comparison of its step: `losses` and `hits` (whether the nearest caption is their own) of its
    images; the gradients of the step's whole loss by the directions of its images and captions, and of its images'
    losses by the logarithm of the temperature and the bias. `texts` are the captions' normalized embeddings; `words`
    are the ids of all words of the step (None without the `naming` loss). `graph` holds the encoder's features and
    pooled vectors, from which gradients flow into the encoder; None if the first pass computed none."""

    losses: Float[Tensor, " s"]
    hits: Float[Tensor, " s"]
    by_image: Float[Tensor, "s W"]
    by_text: Float[Tensor, "s W"]
    by_temperature: Float[Tensor, " s"]
    by_bias: Float[Tensor, " s"]
    texts: Float[Tensor, "s 2D"]
    words: Int[Tensor, " u"] | None = None
    graph: tuple[Float[Tensor, "s p P"], Float[Tensor, "s P"]] | None = None


def compare(
    images: Float[Tensor, "s W"],
    texts: Float[Tensor, "S W"],
    own: Int[Tensor, " s"],
    every: Int[Tensor, " S"],
    log_temperature: float,
    bias: float,
) -> tuple[Tensor, ...]:
    """Compare this process's images with the captions of all processes, in tiles of a bounded number of logits; `own`
    and `every` are the hashes of the images' captions and of all captions. With l = z * logit, the loss of a pair is
    -log sigmoid(l), and its gradient by the logit is -z * sigmoid(-l).

    Returns the values of `Compared` from `losses` to `by_bias`; `by_text`, [S W], is that of these images' losses
    alone."""
    count = len(every)
    scale, shift = math.exp(log_temperature), bias - math.log(count)
    by_image, by_text = torch.zeros_like(images), torch.zeros_like(texts)
    losses, hits, by_temperature, by_bias = images.new_zeros(4, len(images))
    rows = max(1, CHUNK_LOGITS.get(images.device.type, 1 << 22) // count)
    for start in range(0, len(images), rows):
        tile = slice(start, start + rows)
        cosines = scale * images[tile] @ texts.t()
        same = own[tile, None] == every
        nearest = cosines.argmax(1, keepdim=True)
        hits[tile] = same.gather(1, nearest)[:, 0].float()
        sign = torch.where(same, 1.0, -1.0)
        agreement = sign * (cosines + shift)
        losses[tile] = -F.logsigmoid(agreement).sum(1)
        gradient = -sign * torch.sigmoid(-agreement)
        by_temperature[tile] = (gradient * cosines).sum(1)
        by_bias[tile] = gradient.sum(1)
        by_image[tile] = scale * gradient @ texts
        by_text.addmm_(gradient.t(), images[tile], alpha=scale)
    return losses, hits, by_image, by_text, by_temperature, by_bias


def _collectives(together: bool) -> tuple[Total, Callable[[Tensor], tuple[Tensor, int]]]:
    """The sum of a tensor, and the rows of a tensor with the first one of this process: of all processes, or alone."""
    if together:
        return distributed.total, distributed.rows
    return (lambda value: value), (lambda value: (value, 0))


def _normalized(texts: Float[Tensor, "n 2D"], count: int, total: Total) -> Float[Tensor, "n 2D"]:
    """Embeddings of captions without the mean of all captions of the step, which doesn't distinguish them, and divided
    by their spread; of this process's the first `count` belong to the step."""
    number = total(texts.new_tensor(float(count)))
    mean = total(texts[:count].sum(0)) / number
    variance = total((texts[:count] - mean).square().sum(0)) / number
    return (texts - mean) / (variance.sqrt() + 1e-3)


def _words(model: PhiModel, packs: Sequence[Batch], total: Total) -> Int[Tensor, " u"]:
    """Ids of the words of a step's images, in order."""
    weight = model.decoder.embed_tokens.weight
    used = torch.zeros(len(weight), device=weight.device)
    for batch in packs:
        if (words := _views(batch).label_ids) is not None:
            used[words[:, 2].to(used.device)] = 1
    return total(used).nonzero().flatten()


def _naming(
    model: PhiModel,
    head: Heads,
    features: Float[Tensor, "s p P"],
    words: Int[Tensor, "n 3"],
    used: Int[Tensor, " u"],
) -> tuple[Tensor, float, int]:
    """(sum of the losses of patches and cells, hits, filled ones) with the words `used` in the step."""
    assert head.empty_ids is not None
    images, slots, ids = words.unbind(1)
    # As with captions, the mean of a step's words is subtracted; only their columns are needed, about a hundred of
    # the vocabulary.
    directions = model.decoder.embed_tokens.weight[used].detach().float()
    directions = F.normalize(directions - directions.mean(0), dim=-1)
    columns = torch.searchsorted(used, ids.contiguous())
    empty = torch.isin(used, used.new_tensor(head.empty_ids)).nonzero().flatten().tolist()
    predicted = head.word_embeddings(features)
    log_probs = (LOGIT_SCALE * predicted.flatten(0, 1).float() @ directions.t()).log_softmax(-1)
    cell = slots >= features.shape[1]
    slots = images * predicted.shape[1] + slots
    total, hits, filled = log_probs.new_zeros(()), 0.0, 0
    for chosen, weight in ((~cell, 1.0), (cell, CELL_WEIGHT)):
        loss, correct, count = word_loss(log_probs, slots[chosen], columns[chosen], empty)
        total, hits, filled = total + weight * loss, hits + correct, filled + count
    return total, hits, filled


@dataclass(frozen=True)
class Contrastive:
    """The contrastive objective. `width`: size of the space in which images and captions are compared. `naming` is the
    weight of a second loss [ours]: each patch of an image predicts the words of the thing that covers it, and each cell
    those of the thing that has its middle there, as the projector's tokens later do (alignment.py). From it a fresh
    encoder learns where things are, which captions hardly describe."""

    width: int = 256
    naming: float = 0.0

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
        image_input = _read(images[0], processor)
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
            label_ids=words,
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
        """Return None: the objective has no reference."""

    def limits(self, model: PhiModel, micro_tokens: int) -> dict[str, int]:
        """The maximum number of global views in a pack: as many as would have `micro_tokens` tokens, because those of a
        caption's row have none."""
        assert model.vision is not None
        return {ImageInput.NAME: max(1, micro_tokens // model.vision.encoder.config.cells**2)}

    def compare(
        self,
        model: PhiModel,
        head: Heads,
        packs: Sequence[Batch],
        counted: int,
        together: bool = True,
    ) -> list[Compared]:
        """The references of the packs: what each pack's `loss` needs of the others (`Comparing`). A step of one pack
        keeps its graph, and needs no second pass."""
        assert model.vision is not None
        total, rows = _collectives(together)
        encoder, device = model.vision.encoder, model.decoder.device
        keep = len(packs) == 1 and torch.is_grad_enabled()
        graphs: list[tuple[Tensor, Tensor] | None] = []
        vectors, captions = [], []
        with torch.set_grad_enabled(keep):
            for batch in (batch.to(device) for batch in packs):  # on the device one at a time
                views = _views(batch)
                features = encoder(views.crops, views.masks)
                pooled = encoder.pool(features, views.masks)
                vectors.append(pooled.detach())
                captions.append(caption_embeddings(model, batch))
                graphs.append((features, pooled) if keep else None)
        sizes = [batch.sequences for batch in packs]
        number = sum(sizes[:counted])
        with torch.no_grad():
            texts = _normalized(torch.cat(captions), number, total)
            images, directions = head(torch.cat(vectors), texts)
            hashes = torch.cat([caption_hashes(batch) for batch in packs]).to(device)
            every, start = rows(hashes[:number])
            all_texts, _ = rows(directions[:number])
            with torch.autocast(images.device.type, enabled=False):
                losses, hits, by_image, by_text, by_temperature, by_bias = compare(
                    images[:number],
                    all_texts,
                    hashes[:number],
                    every,
                    head.log_temperature.item(),
                    head.bias.item(),
                )
            by_text = total(by_text)[start : start + number]
        words = _words(model, packs, total) if head.words is not None else None
        values = (losses, hits, by_image, by_text, by_temperature, by_bias)
        fill = sum(sizes) - number
        rows_of = [F.pad(x, (0, 0) * (x.ndim - 1) + (0, fill)).split(sizes) for x in values]
        columns = (*rows_of, texts.split(sizes), [words] * len(packs), graphs)
        return [Compared(*of_pack) for of_pack in zip(*columns, strict=True)]

    def loss(
        self, model: PhiModel, head: Heads, reference: Compared | None, batch: Batch
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """(sum of losses over pairs and patches, number of images, metrics). `accuracy` counts images whose nearest
        caption is their own, `named` filled patches and cells whose most probable word is one of theirs. `reference` is
        the pack's in `compare`; the total has the value of the losses, and its gradient is theirs by the chain rule."""
        assert model.vision is not None and reference is not None
        views, encoder = _views(batch), model.vision.encoder
        if reference.graph is None:
            features = encoder(views.crops, views.masks)
            pooled = encoder.pool(features, views.masks)
        else:
            features, pooled = reference.graph
        images, texts = head(pooled, reference.texts)
        linear = (images * reference.by_image).sum() + (texts * reference.by_text).sum()
        linear = linear + head.log_temperature * reference.by_temperature.sum()
        linear = linear + head.bias * reference.by_bias.sum()
        total = reference.losses.sum() + (linear - linear.detach())
        named, filled = 0.0, 0
        if reference.words is not None and views.label_ids is not None:
            naming, named, filled = _naming(model, head, features, views.label_ids, reference.words)
            total = total + self.naming * naming
        hits = float(reference.hits.sum())
        return total, batch.sequences, {"accuracy": hits, "named": (named, filled)}


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
        """Return this object: datatrove copies its steps for each task, but a model needs no copy."""
        return self

    @torch.no_grad()
    def __call__(self, picture: Picture.Image, caption: str) -> float:
        """The cosine, in [-1, 1]; only the image's global view is encoded. Raises ValueError for an empty caption."""
        if not caption.strip():
            raise ValueError("expected a caption, found an empty text")
        encoded = io.BytesIO()
        picture.convert("RGB").save(encoded, "PNG", compress_level=1)
        image_input = _read(Image(encoded.getvalue()), self._processor)
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
