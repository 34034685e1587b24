"""Evaluations change nothing of a training; early stopping returns the best step, also after an interruption."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from polyphi.data.packing import Capacity
from polyphi.data.shards import Shards
from polyphi.runtime.progress import read_metrics
from polyphi.train import trainer
from polyphi.train.evaluation import EVALUATIONS, SPLIT, EvalOptions, EvalRows
from polyphi.train.stage import Schedule
from tests.core.train import small
from tests.core.train.small import BUDGET, EVERYTHING, Fails, run, trajectory

CORPORA = list(EVERYTHING.data.weights)
WORSE = replace(
    EVERYTHING,
    trainable={glob: 30 * rate for glob, rate in EVERYTHING.trainable.items()},
    schedule=Schedule(decay="constant"),
)
"""Its evaluation loss falls for two steps and then rises for two."""
EIGHT = replace(BUDGET, steps=8)
STOPS = EvalOptions(CORPORA, every=1, patience=2)


def evaluations(out: Path) -> list[dict[str, Any]]:
    return read_metrics(out / EVALUATIONS)


def test_training_is_the_same_with_and_without_evaluations(corpora: Path, tmp_path: Path) -> None:
    answers = EvalOptions(CORPORA, every=2, answers=lambda model: [str(torch.rand(1).item())])
    plain, evaluated = tmp_path / "plain", tmp_path / "evaluated"
    run(plain, corpora, dropout=0.3)
    run(evaluated, corpora, dropout=0.3, evaluation=answers)
    assert trajectory(plain) == trajectory(evaluated)
    one, two = (load_file(f / "trained.safetensors") for f in (plain, evaluated))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    assert [r["step"] for r in evaluations(evaluated)] == [0, 2, 4]
    assert all(len(r["answers"]) == 1 for r in evaluations(evaluated))


def test_the_loss_is_that_of_the_rows_one_by_one(corpora: Path, tmp_path: Path) -> None:
    run(tmp_path, corpora, evaluation=EvalOptions(CORPORA, every=4))
    processor = small.make_processor()
    model = small.make_model(processor).eval()
    rows = trainer.row_maker(EVERYTHING, BUDGET, model, processor)
    total = count = 0
    with torch.no_grad():
        for corpus in CORPORA:
            for sample in Shards(corpora / corpus / SPLIT):
                for row in rows(corpus, sample):
                    loss, number, _ = EVERYTHING.objective.loss(model, None, None, row)
                    total, count = total + float(loss), count + number
    first = evaluations(tmp_path)[0]
    assert first["supervised"] == count
    assert first["loss"] == pytest.approx(total / count, rel=1e-5)


def test_processes_share_the_rows(corpora: Path) -> None:
    processor = small.make_processor()
    rows = trainer.row_maker(EVERYTHING, BUDGET, small.make_model(processor), processor)
    shares = [
        list(EvalRows(corpora, CORPORA, rows, Capacity(100), rank, 2).packs()) for rank in (0, 1)
    ]
    alone = list(EvalRows(corpora, CORPORA, rows, Capacity(100)).packs())
    assert len(shares[0]) == len(shares[1]) == -(-len(alone) // 2)
    used = [pack.batch.ids.tolist() for share in shares for pack in share if pack.share]
    assert sorted(used) == sorted(pack.batch.ids.tolist() for pack in alone)


def test_early_stopping_returns_the_best_step(corpora: Path, tmp_path: Path) -> None:
    manifest = run(tmp_path, corpora, WORSE, EIGHT, evaluation=STOPS)
    losses = [r["loss"] for r in evaluations(tmp_path)]
    best = losses.index(min(losses))
    assert 0 < best == len(losses) - 3 and manifest["steps"] == best + 2 < 8, losses
    result = manifest["evaluation"]
    assert result["stopped_early"] and result["exported_step"] == best
    assert result["best"] == {"step": best, "loss": min(losses)}
    processor = small.make_processor()
    model = small.make_model(processor)
    model.load_state_dict(load_file(tmp_path / "trained.safetensors"), strict=False)
    again = tmp_path / "again"
    stage = replace(WORSE, trainable=dict.fromkeys(WORSE.trainable, 0.0))
    run(again, corpora, stage, BUDGET, model=model, evaluation=EvalOptions(CORPORA, every=4))
    assert evaluations(again)[0]["loss"] == min(losses)


def test_an_interrupted_run_stops_at_the_same_step(corpora: Path, tmp_path: Path) -> None:
    straight, half = tmp_path / "straight", tmp_path / "half"
    packs = Fails(0)  # counts the losses of a whole run
    object.__setattr__(packs, "action", lambda: None)
    whole = replace(WORSE, objective=packs)
    run(straight, corpora, whole, EIGHT, evaluation=STOPS, checkpoint_seconds=0.0)
    steps = len(trajectory(straight))
    for losses in (-packs.losses_left // 2, 3):
        with pytest.raises(RuntimeError, match="bad luck"):
            stage = replace(WORSE, objective=Fails(losses))
            run(half, corpora, stage, EIGHT, evaluation=STOPS, checkpoint_seconds=0.0)
    with pytest.raises(ValueError, match="early_stopping"):
        run(half, corpora, WORSE, EIGHT, checkpoint_seconds=0.0)
    run(half, corpora, WORSE, EIGHT, evaluation=STOPS, checkpoint_seconds=0.0)
    assert len(trajectory(half)) == steps and trajectory(half) == trajectory(straight)
    assert evaluations(half) == evaluations(straight)
    one, two = (load_file(f / "trained.safetensors") for f in (straight, half))
    assert all(torch.equal(one[n], two[n]) for n in one)
    manifests = [json.loads((f / "manifest.json").read_text()) for f in (straight, half)]
    assert manifests[0]["evaluation"] == manifests[1]["evaluation"]


def test_averages_are_what_is_evaluated(corpora: Path, tmp_path: Path) -> None:
    stage = replace(EVERYTHING, ema=0.5)
    run(tmp_path / "one", corpora, stage, evaluation=EvalOptions(CORPORA, every=4))
    model = small.make_model(small.make_processor())
    model.load_state_dict(load_file(tmp_path / "one" / "trained.safetensors"), strict=False)
    frozen = replace(EVERYTHING, trainable=dict.fromkeys(EVERYTHING.trainable, 0.0))
    two = tmp_path / "two"
    run(two, corpora, frozen, model=model, evaluation=EvalOptions(CORPORA, every=4))
    assert evaluations(two)[0]["loss"] == evaluations(tmp_path / "one")[-1]["loss"]


def test_what_can_not_be_evaluated_is_refused(corpora: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Contrastive"):
        run(tmp_path, corpora, small.CONTRAST, evaluation=EvalOptions(["pictures"], every=1))
    short = replace(BUDGET, context=4)
    with pytest.raises(ValueError, match=r"5 .*too long"):
        run(tmp_path, corpora, EVERYTHING, short, evaluation=EvalOptions(["sounds"], every=1))
    with pytest.raises(ValueError, match="patience"):
        EvalOptions(["sounds"], every=1, patience=0)
