"""DPO: rows in pairs, the loss against its formula written out, an unchanged reference."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyphi.data.shards import Sample
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.progress import read_metrics
from polyphi.train import loss
from polyphi.train.preference import DPO, answer_log_probs
from polyphi.train.stage import Mix
from polyphi.types.batch import pack
from polyphi.types.messages import Message
from tests.core.train.small import BUDGET, EVERYTHING, run
from tests.fixtures.variants import few


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(Tokenizer.train(["May I help you? No, never. Yes, of course I can."] * 8, 512))


@pytest.fixture
def model(tiny_config: ModelConfig) -> PhiModel:
    model = PhiModel(replace(tiny_config, vision=None, audio=None))
    model.initialise(0)
    return model


def sample(
    question: str = "May I?", chosen: str = "Yes, of course.", rejected: str = "No."
) -> Sample:
    return Sample(
        "a", (Message.user(question), Message.assistant(chosen)), "", "", {"rejected": rejected}
    )


def one_by_one(model: PhiModel, row) -> list[float]:
    """Log-probability of every supervised token, position by position."""
    scores = model.logits(model(row)).log_softmax(-1)
    return [float(scores[t, row.labels[t]]) for t in row.supervised.tolist()]


def test_rows_are_chosen_then_rejected(processor: Processor) -> None:
    chosen, rejected = DPO().rows(sample(), processor, 64)
    answers = [
        processor.tokenizer.decode(r.labels[r.supervised].tolist()) for r in (chosen, rejected)
    ]
    assert answers == ["Yes, of course.<|end|>", "No.<|end|>"]


def test_only_the_last_answer_counts(processor: Processor) -> None:
    turns = (Message.user("May I?"), Message.assistant("No."), *sample().messages)
    chosen, rejected = DPO().rows(replace(sample(), messages=turns), processor, 64)
    assert (
        processor.tokenizer.decode(chosen.labels[chosen.supervised].tolist())
        == "Yes, of course.<|end|>"
    )
    assert (
        processor.tokenizer.decode(rejected.labels[rejected.labels >= 0].tolist()) == "No.<|end|>"
    )


def test_refuses_what_is_no_preference(processor: Processor) -> None:
    with pytest.raises(ValueError, match="rejected"):
        DPO().rows(replace(sample(), meta={}), processor, 64)
    with pytest.raises(ValueError, match="context holds 8"):
        DPO().rows(sample(), processor, 8)


@pytest.mark.parametrize("logits", [1 << 24, 3000])
def test_loss_is_the_formula(
    model: PhiModel, processor: Processor, logits: int, monkeypatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", {"cpu": logits})
    monkeypatch.setattr(loss, "CHUNK_ROWS", 1)
    dpo = DPO(beta=0.3, nll=0.2)
    rows = [
        *dpo.rows(sample(), processor, 64),
        *dpo.rows(sample("Can I?", "Yes.", "No, never."), processor, 64),
    ]
    before = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            )
    reward = {"chosen": 0.0, "rejected": 0.0}
    total, count, metrics = dpo.loss(
        model, None, lambda batch: answer_log_probs(before, batch).detach(), pack(rows)
    )
    total.backward()

    expected, right = 0.0, 0
    with torch.no_grad():
        for chosen, rejected in (rows[:2], rows[2:]):
            now, then = [[one_by_one(m, r) for r in (chosen, rejected)] for m in (model, before)]
            margin = 0.3 * ((sum(now[0]) - sum(then[0])) - (sum(now[1]) - sum(then[1])))
            expected += math.log(1 + math.exp(-margin)) - 0.2 * sum(now[0]) / len(now[0])
            right += margin > 0
            for name, new, old in zip(reward, now, then, strict=True):
                reward[name] += 0.3 * (sum(new) - sum(old))
    assert count == 2
    assert total.item() == pytest.approx(expected, rel=1e-4)
    assert metrics["accuracy"] == right
    for name, value in reward.items():
        assert metrics[f"{name}_reward"] == pytest.approx(value, rel=1e-3)
    difference = metrics["chosen_reward"] - metrics["rejected_reward"]
    assert metrics["margin"] == pytest.approx(difference, rel=1e-5)
    assert model.decoder.norm.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("corpus", few(["pictures", "sounds"], 1))
def test_pairs_about_pictures_and_clips(corpus: str, corpora: Path, tmp_path: Path) -> None:
    """Fresh adapters act like none: both references give the same losses, at first and during training."""
    adapter = {"pictures": "vision", "sounds": "speech"}[corpus]
    trainable = {f"decoder.*.lora.{adapter}.*": 3e-2}
    references = ("start", "adapters off")
    for reference in references:
        stage = replace(
            EVERYTHING,
            data=Mix({corpus: 1}),
            trainable=trainable,
            objective=DPO(nll=0.0, reference=reference),
        )
        run(tmp_path / reference, corpora, stage, replace(BUDGET, steps=16))
    start, off = (read_metrics(tmp_path / r / "metrics.jsonl") for r in references)
    assert off[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert off[-1]["loss"] < 0.97 * math.log(2) and max(r["accuracy"] for r in off[-4:]) == 1
    assert [r["loss"] for r in off] == pytest.approx([r["loss"] for r in start], rel=1e-5)
