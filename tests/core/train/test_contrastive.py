"""Contrastive learning: the loss against its formula, captions without their pictures, equal captions as positives."""

import dataclasses
import io
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from polyphi.data.shards import Sample
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.train import contrastive
from polyphi.train.contrastive import (
    Contrastive,
    Heads,
    Similarity,
    caption_embeddings,
    caption_hashes,
)
from polyphi.types.batch import Batch, pack
from polyphi.types.messages import Message
from polyphi.types.parts import Image, Text


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


def loss_of(
    objective: Contrastive, model: PhiModel, heads: Heads, *packs: Batch
) -> tuple[torch.Tensor, int, dict[str, float]]:
    """Forward and backward of a step: its loss, its images, and the sums of its metrics."""
    total, images, sums = torch.zeros(()), 0, dict.fromkeys(("accuracy", "named", "filled"), 0.0)
    references = objective.compare(model, heads, packs, len(packs))
    for batch, reference in zip(packs, references, strict=True):
        loss, count, metrics = objective.loss(model, heads, reference, batch)
        loss.backward()
        named, filled = metrics["named"]
        for key, value in zip(sums, (metrics["accuracy"], named, filled), strict=True):
            sums[key] += value
        total, images = total + loss.detach(), images + count
    return total, images, sums


def gradients(*modules: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradients of the modules, which are removed from them."""
    every = {}
    for number, module in enumerate(modules):
        every |= {f"{number}.{n}": p.grad for n, p in module.named_parameters() if p.requires_grad}
        module.zero_grad(set_to_none=True)
    return every


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The largest distance of two sets of gradients, relative to the norm of the whole."""
    assert one.keys() == two.keys()
    a, b = (torch.cat([t.flatten() for t in each.values()]).double() for each in (one, two))
    return float((a - b).norm() / b.norm())


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
    total, count, metrics = loss_of(objective, model, heads, batch)

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
    one, two, three = caption_hashes(batch_of(processor, "a cat", "two dogs", "a cat")).tolist()
    assert one == three != two
    assert one == caption_hashes(batch_of(processor, "a cat")).item()


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
            total, count, metrics = loss_of(objective, model, heads, batch)
        optimiser.step()
        optimiser.zero_grad()
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
    texts = caption_embeddings(model, batch)
    images, directions = heads(
        model.vision.encoder.pooled(views.crops, views.masks),
        (texts - texts.mean(0)) / (texts.std(0, unbiased=False) + 1e-3),
    )
    cosines = images @ directions.t()
    trained = {f"objective.{name}": value for name, value in heads.state_dict().items()}
    similarity = Similarity(model, {**trained, "vision.x": torch.ones(1)}, processor, captions)
    for i, j in ((0, 0), (5, 9), (63, 1)):
        picture = Picture.open(io.BytesIO(samples[i].messages[0].parts[0].source))
        assert similarity(picture, captions[j]) == pytest.approx(cosines[i, j].item(), abs=1e-3)
    with pytest.raises(ValueError, match="empty text"):
        similarity(picture, " ")
    with pytest.raises(ValueError, match=r"64 .*found 1"):
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
    assert views.label_ids is not None and views.label_ids[:, 0].unique().tolist() == [0, 1]
    without = batch.with_inputs(dataclasses.replace(views, label_ids=None))
    alone, _, _ = loss_of(plain, model, plain.build(model, processor, seed=3), without)
    gradients(model, heads)
    both, count, metrics = loss_of(objective, model, heads, batch)
    assert count == 2 and metrics["filled"] == 2 * (8 + 2), "patches and cells"
    assert both > alone
    assert all(p.grad is None for p in model.decoder.parameters())
    assert heads.words.weight.grad.abs().sum() > 0 and heads.cells.weight.grad.abs().sum() > 0
    assert model.vision.encoder.patch_embedding.weight.grad.abs().sum() > 0


CAPTIONS = ("a red cat", "two blue dogs", "a red cat", "a cat", "two dogs", "a blue dog", "cats")


def annotated(processor: Processor, objective: Contrastive) -> list[Batch]:
    """Rows with other captions and other named things each."""
    colours = ("red", "blue")
    rows = []
    for i, caption in enumerate(CAPTIONS):
        named = [[(f"{colours[i % 2]} cat", 0.0, 0.0, 0.5, 0.5), (str(i), 0.5, 0.5, 1.0, 1.0)]]
        meta = {"named": named} if i != 3 else {}
        rows += objective.rows(dataclasses.replace(sample(caption, i), meta=meta), processor, 64)
    return rows


@pytest.mark.parametrize("naming", [0.0, 1.0])
def test_packs_give_the_gradients_of_the_whole(
    naming: float, model: PhiModel, processor: Processor
) -> None:
    """Float32, relative 1e-6 of the gradient's norm; the losses and metrics are the same, too."""
    objective = Contrastive(width=16, naming=naming)
    heads = objective.build(model, processor, seed=3)
    rows = annotated(processor, objective)
    whole = loss_of(objective, model, heads, pack(rows))
    expected = gradients(model, heads)
    for sizes in ((3, 4), (1, 1, 1, 1, 3), (1,) * 7):
        starts = np.cumsum([0, *sizes])
        packs = [pack(rows[a:b]) for a, b in itertools.pairwise(starts)]
        parts = loss_of(objective, model, heads, *packs)
        assert parts[0].item() == pytest.approx(whole[0].item(), rel=1e-6)
        assert parts[1:] == whole[1:]
        assert distance(gradients(model, heads), expected) < 1e-6


def test_the_gradient_is_that_of_autograd(
    model: PhiModel, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss written as one graph; logits in tiles of two rows."""
    monkeypatch.setattr(contrastive, "CHUNK_LOGITS", {"cpu": 2 * len(CAPTIONS)})
    objective = Contrastive(width=16)
    heads = objective.build(model, processor, seed=3)
    rows = annotated(processor, objective)
    loss_of(objective, model, heads, pack(rows[:3]), pack(rows[3:]))
    ours = gradients(model, heads)
    batch, views = pack(rows), pack(rows).inputs["image"]
    texts = caption_embeddings(model, batch)
    texts = (texts - texts.mean(0)) / (texts.std(0, unbiased=False) + 1e-3)
    images, directions = heads(model.vision.encoder.pooled(views.crops, views.masks), texts)
    logits = (
        heads.log_temperature.exp() * images @ directions.t() + heads.bias - math.log(len(rows))
    )
    same = torch.tensor([[a == b for a in CAPTIONS] for b in CAPTIONS])
    torch.nn.functional.softplus(torch.where(same, -logits, logits)).sum().backward()
    assert distance(ours, gradients(model, heads)) < 1e-6


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_packs_that_fill_in_count_nothing(model: PhiModel, processor: Processor) -> None:
    """In one thread: with two, one more row makes a product of the head round the others otherwise."""
    objective = Contrastive(width=16)
    heads = objective.build(model, processor, seed=3)
    rows = annotated(processor, objective)
    packs = [pack(rows[:3]), pack(rows[3:]), pack(rows[:1])]
    expected = objective.compare(model, heads, packs[:2], 2)
    references = objective.compare(model, heads, packs, 2)
    assert all(torch.equal(a.losses, b.losses) for a, b in zip(expected, references, strict=False))
    assert all(
        torch.equal(a.by_text, b.by_text) for a, b in zip(expected, references, strict=False)
    )
    loss, _, _ = objective.loss(model, heads, references[2], packs[2])
    loss.backward()
    assert loss.item() == 0 and not any(g.any() for g in gradients(heads).values())
