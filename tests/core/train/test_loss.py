"""The chunked loss and its gradients are those of plain cross-entropy, and no logits are stored."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image as Picture
from torch import Tensor

from polyphi.data.shards import Sample, Shards, document
from polyphi.train import loss
from polyphi.train.loss import NextToken, token_loss_sum, token_losses
from polyphi.types.batch import IGNORE, pack
from polyphi.types.messages import Message
from polyphi.types.parts import Image
from tests.core.train.small import make_model, make_processor


def problem(frozen: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(50, 16, requires_grad=True)
    head = (0.3 * torch.randn(300, 16)).requires_grad_(not frozen)
    return hidden, head, torch.randint(0, 300, (50,))


@pytest.mark.parametrize("logits", [1 << 20, 7 * 300, 1])
@pytest.mark.parametrize("frozen", [False, True])
def test_both_ways_are_cross_entropy(
    logits: int, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", {"cpu": logits})
    monkeypatch.setattr(loss, "CHUNK_ROWS", 1)
    hidden, head, labels = problem(frozen)
    inputs = [hidden] if frozen else [hidden, head]
    weights = torch.linspace(0.5, 2, 50)
    plain = F.cross_entropy(F.linear(hidden, head), labels, reduction="none")
    each = token_losses(hidden, head, labels)
    torch.testing.assert_close(each, plain)
    both = zip(
        torch.autograd.grad((each * weights).sum(), inputs),
        torch.autograd.grad((plain * weights).sum(), inputs, retain_graph=True),
        strict=True,
    )
    for ours, theirs in both:
        torch.testing.assert_close(ours, theirs)

    total = token_loss_sum(hidden, head, labels)[0]
    torch.testing.assert_close(total, plain.sum())
    both = zip(
        torch.autograd.grad(3 * total, inputs),
        torch.autograd.grad(3 * plain.sum(), inputs),
        strict=True,
    )
    for ours, theirs in both:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_autocast_stays_near() -> None:
    hidden, head, labels = problem()
    exact = torch.autograd.grad(token_loss_sum(hidden, head, labels)[0], [hidden, head])
    with torch.autocast("cpu", torch.bfloat16):
        total = token_loss_sum(hidden, head, labels)[0]
    for ours, theirs in zip(torch.autograd.grad(total, [hidden, head]), exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.01 * theirs.norm()  # 8 bits of mantissa


def test_without_gradient_none_is_computed() -> None:
    hidden, head, labels = problem()
    with torch.no_grad():
        assert not token_loss_sum(hidden, head, labels)[0].requires_grad


def test_logits_are_never_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", {"cpu": 5 * 300})
    monkeypatch.setattr(loss, "CHUNK_ROWS", 1)
    hidden, head, labels = problem(frozen=True)
    saved_sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved_sizes.append(t.numel()) or t, lambda t: t
    ):
        token_loss_sum(hidden, head, labels)[0]
    assert max(saved_sizes) == hidden.numel(), "only the gradient of the hidden states"


def test_packed_equals_one_by_one(corpora: Path) -> None:
    """Also with pictures and clips, and gradients."""
    processor = make_processor()
    model = make_model(processor)
    objective = NextToken()
    samples = [
        Shards(corpora / name / "train")[i]
        for i in range(2)
        for name in ("documents", "pictures", "sounds")
    ]
    rows = [row for sample in samples for row in objective.rows(sample, processor, 120)]

    def gradients() -> list[Tensor]:
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return grads

    total, count, _ = objective.loss(model, None, None, pack(rows))
    total.backward()
    packed = gradients()
    alone = [objective.loss(model, None, None, row) for row in rows]
    assert count == sum(n for _, n, _ in alone)
    torch.testing.assert_close(total, sum(t for t, _, _ in alone))
    sum(t for t, _, _ in alone).backward()
    for ours, theirs in zip(packed, gradients(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_rows_cut_documents_and_refuse_samples_without_supervised_tokens(corpora: Path) -> None:
    processor = make_processor()
    long = document("x", "one two three " * 50, "", "")
    (row,) = NextToken().rows(long, processor, 30)
    assert len(row) == 30 and len(row.supervised) == 29
    conversation = Shards(corpora / "questions" / "train")[0]
    with pytest.raises(ValueError, match="context holds 4"):
        NextToken().rows(conversation, processor, 4)
    with pytest.raises(ValueError, match="supervised"):
        NextToken().rows(Sample("x", conversation.messages[:1], "", ""), processor, 100)
    (row,) = NextToken().rows(conversation, processor, 100)
    (whole,) = NextToken(supervise="all").rows(conversation, processor, 100)
    assert len(whole.supervised) == len(whole) - 1 > len(row.supervised)
    assert (row.labels != IGNORE).sum() == len(row.supervised)
    assert NextToken(max_crops=3) == replace(NextToken(), max_crops=3)


def test_alignment_is_added_for_annotated_samples() -> None:
    """Without annotations the loss is the plain one; with words of its cells an image's tokens have a loss."""
    processor = make_processor()
    model = make_model(processor)
    picture = io.BytesIO()
    Picture.new("RGB", (processor.images.crop_size,) * 2, "red").save(picture, "PNG")
    annotated = Sample(
        "1",
        (Message.user(Image(picture.getvalue()), "What?"), Message.assistant("red")),
        "polyphi",
        "",
        {"named": [[("red", 0.0, 0.0, 0.5, 0.5)]]},
    )
    plain, aligned = NextToken(), NextToken(align=0.5)
    module = aligned.build(model, processor)
    (bare,), (row,) = (o.rows(annotated, processor, 200) for o in (plain, aligned))
    assert bare.inputs["image"].label_ids is None and row.inputs["image"].label_ids is not None
    expected, count, _ = plain.loss(model, None, None, bare)
    same, _, _ = aligned.loss(model, module, None, bare)
    torch.testing.assert_close(same, expected)
    total, units, metrics = aligned.loss(model, module, None, row)
    assert units == count and total > expected and metrics["named"][1] == 2


def test_the_sample_may_limit_training_to_its_last_answer() -> None:
    processor = make_processor()
    turns = [Message.user("one"), Message.assistant("two")]
    sample = Sample("a", (*turns, Message.user("three"), Message.assistant("four")), "", "")
    for meta, expected in (
        ({}, "two<|end|>four<|end|>"),
        ({"supervise": "last answer"}, "four<|end|>"),
    ):
        (row,) = NextToken().rows(replace(sample, meta=meta), processor, 200)
        assert row.labels is not None and row.supervised is not None
        assert processor.tokenizer.decode(row.labels[row.supervised].tolist()) == expected
        assert (row.labels >= 0).sum() == len(row.supervised)
