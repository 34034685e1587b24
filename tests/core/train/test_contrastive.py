"""Contrastive learning: the loss against its formula, captions without their pictures, equal captions as positives."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from polyphi.batch import Batch, pack
from polyphi.data.shards import Sample
from polyphi.messages import Image, Message, Text
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.train.contrastive import Contrastive, Similarity, caption_embeddings, same_caption


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(
        Tokenizer.train(["a red cat, two blue dogs"] * 8, 512),
        crop_size=56,
        patch_size=14,
        max_crops=4,
    )


@pytest.fixture
def model(tiny_config: ModelConfig) -> PhiModel:
    model = PhiModel(tiny_config)
    model.initialise(0)
    model.requires_grad_(False)
    model.vision.encoder.requires_grad_(True)
    return model


def sample(caption: str, seed: int, size: tuple[int, int] = (56, 56)) -> Sample:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Picture.fromarray(pixels).save(out, "PNG")
    return Sample(
        str(seed),
        (Message.user(Image(out.getvalue()), "Describe it."), Message.assistant(caption)),
        "polyphi",
        "",
    )


def batch_of(processor: Processor, *captions: str) -> Batch:
    return pack(
        [
            row
            for i, c in enumerate(captions)
            for row in Contrastive().rows(sample(c, i), processor, 64)
        ]
    )


def test_a_row_is_a_caption_with_a_global_view(processor: Processor) -> None:
    (row,) = Contrastive().rows(sample("a red cat", 0, (112, 56)), processor, 64, adapter="vision")
    assert processor.tokenizer.decode(row.ids.tolist()) == "a red cat<|endoftext|>"
    assert row.adapters == (None,) and row.labels is None and row.inputs["image"].slots is None
    views = row.inputs["image"]
    assert len(views.crops) == len(views.masks) == views.size == 1
    with pytest.raises(ValueError, match="one image, found 0"):
        Contrastive().rows(
            Sample("x", (Message("document", (Text("a cat"),)),), "", ""), processor, 64
        )


def test_loss_is_the_formula(model: PhiModel, processor: Processor) -> None:
    batch = batch_of(processor, "a red cat", "two blue dogs", "a red cat", "a cat")
    objective = Contrastive(width=16)
    heads = objective.build(model, processor, seed=3)
    with torch.no_grad():
        heads.bias.fill_(-1.0)
    total, count, metrics = objective.loss(model, heads, objective.begin(model), batch)
    total.backward()

    with torch.no_grad():
        texts = []
        for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            ids = batch.ids[start:end]
            alone = Batch(ids, torch.arange(len(ids)), (0, len(ids)), (len(ids),), (None,))
            states = (model(alone), model.decoder.embed_tokens.weight[ids])
            normed = [
                (x - x.mean(1, keepdim=True))
                / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
                for x in states
            ]
            texts.append(torch.cat(normed, 1).mean(0))
        states = torch.stack(texts)
        spread = (states - states.mean(0)).pow(2).mean(0).sqrt()
        texts = [heads.text((t - states.mean(0)) / (spread + 1e-3)) for t in texts]
        texts = [t / t.norm() for t in texts]
        expected, right, views = 0.0, 0, batch.inputs["image"]
        same = [(i, j) for i in range(4) for j in range(4) if i == j or {i, j} == {0, 2}]
        for i in range(4):
            picture = heads.picture(
                model.vision.encoder.pooled(views.crops[i : i + 1], views.masks[i : i + 1])[0]
            )
            scores = [
                10 * float(picture @ text / picture.norm()) - 1 - math.log(4) for text in texts
            ]
            expected += sum(
                math.log1p(math.exp(-s if (i, j) in same else s)) for j, s in enumerate(scores)
            )
            right += (i, scores.index(max(scores))) in same
    assert count == 4
    assert total.item() == pytest.approx(expected, rel=1e-4)
    assert metrics["accuracy"] == right
    missing = [
        n
        for n, p in [*model.vision.encoder.named_parameters(), *heads.named_parameters()]
        if p.grad is None
    ]
    assert not missing
    assert model.decoder.embed_tokens.weight.grad is None


def test_equal_captions_are_positives(processor: Processor) -> None:
    same = same_caption(batch_of(processor, "a cat", "two dogs", "a cat"))
    assert same.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_captions_dont_see_pictures(model: PhiModel, processor: Processor) -> None:
    a, b = (Contrastive().rows(sample("a cat", seed), processor, 64)[0] for seed in (1, 2))
    assert not torch.equal(*(row.inputs["image"].crops for row in (a, b)))
    assert torch.equal(caption_embeddings(model, a), caption_embeddings(model, b))


def test_learns_under_autocast(model: PhiModel, processor: Processor) -> None:
    batch = batch_of(processor, "a red cat", "two blue dogs", "a cat")
    objective = Contrastive(width=16)
    heads = objective.build(model, processor)
    again = objective.build(model, processor)
    assert all(
        torch.equal(a, b) for a, b in zip(heads.parameters(), again.parameters(), strict=True)
    )
    optimiser = torch.optim.Adam([*model.vision.encoder.parameters(), *heads.parameters()], 3e-3)
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            total, count, metrics = objective.loss(model, heads, None, batch)
        optimiser.zero_grad()
        (total / count).backward()
        optimiser.step()
        losses.append(total.item() / count)
    assert losses[-1] < losses[0] / 2
    assert metrics["accuracy"] == 3


def test_a_similarity_is_what_training_compared(model: PhiModel, processor: Processor) -> None:
    """With the captions of a batch as those that say what captions share, it is the score's cosine."""
    captions = [f"{n} red cats and {m} blue dogs" for n in range(8) for m in range(8)]
    heads = Contrastive(16).build(model, processor, seed=3)
    samples = [sample(caption, i) for i, caption in enumerate(captions)]
    batch = pack([r for s in samples for r in Contrastive().rows(s, processor, 64)])
    views = batch.inputs["image"]
    scores = heads(
        model.vision.encoder.pooled(views.crops, views.masks), caption_embeddings(model, batch)
    )
    cosines = (scores - heads.bias + math.log(64)) / heads.log_temperature.exp()
    trained = {f"objective.{name}": value for name, value in heads.state_dict().items()}
    similarity = Similarity(model, {**trained, "vision.x": torch.ones(1)}, processor, captions)
    for i, j in ((0, 0), (5, 9), (63, 1)):
        picture = Picture.open(io.BytesIO(samples[i].messages[0].parts[0].source))
        assert similarity(picture, captions[j]) == pytest.approx(cosines[i, j].item(), abs=1e-3)
    with pytest.raises(ValueError, match="found an empty text"):
        similarity(picture, " ")
    with pytest.raises(ValueError, match="64 different captions, found 1"):
        Similarity(model, trained, processor, ["a"] * 100)
    with pytest.raises(ValueError, match="expected the heads'"):
        Similarity(model, {"vision.x": torch.ones(1)}, processor, captions)


NAMED = [[("red cat", 0.0, 0.0, 0.5, 0.5), ("2", 0.5, 0.5, 1.0, 1.0)]]


def test_cells_name_what_they_show(model: PhiModel, processor: Processor) -> None:
    """The second loss reaches the encoder and leaves the language model alone."""
    objective = Contrastive(width=16, naming=1.0)
    plain = Contrastive(width=16)
    heads = objective.build(model, processor, seed=3)
    rows = []
    for i, caption in enumerate(("a red cat", "two blue dogs")):
        annotated = dataclasses.replace(sample(caption, i), meta={"named": NAMED})
        rows += objective.rows(annotated, processor, 64)
    batch = pack(rows)
    views = batch.inputs["image"]
    assert views.words is not None and views.words[:, 0].unique().tolist() == [0, 1]
    both, count, metrics = objective.loss(model, heads, None, batch)
    alone, _, _ = plain.loss(
        model, heads, None, batch.with_inputs(dataclasses.replace(views, words=None))
    )
    assert count == 2 and metrics["named"][1] == 2 * (8 + 2), "patches and cells"
    assert both > alone
    both.backward()
    assert all(p.grad is None for p in model.decoder.parameters())
    assert heads.words.weight.grad.abs().sum() > 0 and heads.cells.weight.grad.abs().sum() > 0
    assert model.vision.encoder.patch_embedding.weight.grad.abs().sum() > 0
