"""Reference log-probabilities are computed once, before training, and stay what they were, stopped or not."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyphi.data.shards import Shards
from polyphi.runtime.progress import read_metrics
from polyphi.train.options import StepGuard
from polyphi.train.preference import DPO, REFERENCE, References, answer_log_probs, key
from polyphi.train.stage import Mix
from polyphi.types.batch import pack
from tests.core.train.small import BUDGET, LANGUAGE, make_model, make_processor, run, trajectory
from tests.fixtures.variants import few

STAGE = replace(LANGUAGE, data=Mix({"questions": 1}), objective=DPO(nll=0.0))


class Dead(Exception):
    """Stands for the end of a killed process: only its files stay."""


def dies_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def log_probs(self: References, *about: object) -> dict[str, float]:
        calls.append(about)
        if len(calls) > steps:
            raise Dead
        return real(self, *about)

    real = References.log_probs
    monkeypatch.setattr(References, "log_probs", log_probs)


def test_starts_at_log_two_and_leaves_it(corpora: Path, tmp_path: Path) -> None:
    run(tmp_path, corpora, STAGE, replace(BUDGET, steps=12))
    losses = [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.99 * math.log(2)
    assert not (tmp_path / REFERENCE).exists()  # of no use any more


def test_all_rows_are_computed_before_training(corpora: Path, tmp_path: Path, monkeypatch) -> None:
    """Every row of every step, of the model as it starts."""
    monkeypatch.setattr("polyphi.train.trainer.REFERENCE", "nothing")  # so that it stays
    run(tmp_path, corpora, STAGE)
    log_probs = {
        k: v for r in read_metrics(tmp_path / REFERENCE)[1:] for k, v in r["log_probs"].items()
    }
    processor, rows = make_processor(), {}
    for sample in Shards(corpora / "questions" / "train"):
        for row in DPO().rows(sample, processor, 120):
            rows[key(row)] = row
    assert len(log_probs) > 12 and set(log_probs) <= set(rows)
    model = make_model(processor, text=True).eval()
    with torch.no_grad():
        alone = {k: float(answer_log_probs(model, rows[k])) for k in log_probs}
    assert log_probs == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("steps", few([1, 0, 3], 1))
def test_a_stopped_pass_resumes(steps: int, corpora: Path, tmp_path: Path, monkeypatch) -> None:
    run(tmp_path / "whole", corpora, STAGE)
    with monkeypatch.context() as patch:
        dies_after(steps, patch)
        with pytest.raises(Dead):
            run(tmp_path / "out", corpora, STAGE)
    path = tmp_path / "out" / REFERENCE
    path.write_text(path.read_text() + '{"step": 9, "sai')  # killed while writing
    run(tmp_path / "out", corpora, STAGE)
    assert trajectory(tmp_path / "out") == trajectory(tmp_path / "whole")


def test_log_probs_of_another_start_are_not_used(
    corpora: Path, tmp_path: Path, monkeypatch
) -> None:
    other = make_model(make_processor(), text=True)
    with torch.no_grad():
        other.decoder.embed_tokens.weight.mul_(2)
    with monkeypatch.context() as patch:
        dies_after(2, patch)
        with pytest.raises(Dead):
            run(tmp_path, corpora, STAGE, model=other)
    run(tmp_path, corpora, STAGE)
    first = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_rollbacks_are_refused(corpora: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="roll-back"):
        run(tmp_path, corpora, STAGE, guard=StepGuard(on_spike="roll-back"))


def test_media_are_part_of_a_row(corpora: Path) -> None:
    processor = make_processor()
    first, second = (Shards(corpora / "pictures" / "train")[i] for i in (0, 1))
    swapped = replace(
        first,
        messages=(
            replace(
                first.messages[0], parts=(second.messages[0].parts[0], *first.messages[0].parts[1:])
            ),
            first.messages[1],
        ),
    )
    rows = [DPO().rows(sample, processor, 120) for sample in (first, swapped)]
    assert torch.equal(rows[0][0].ids, rows[1][0].ids)
    assert len({row.keys for pair in rows for row in pair}) == 4
    assert pack([row for pair in rows for row in pair]).keys == tuple(
        row.keys[0] for pair in rows for row in pair
    )
