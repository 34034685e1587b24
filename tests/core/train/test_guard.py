"""Non-finite losses and loss spikes: samples are quarantined and named, a spike is skipped or rolled back, too many of
either end the run; and a run that is stopped meanwhile ends like one that isn't."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polyphi.data import shards
from polyphi.data.shards import Sample
from polyphi.runtime.progress import read_metrics
from polyphi.train import state
from polyphi.train.checkpoint import Checkpoints
from polyphi.train.loss import NextToken
from polyphi.train.options import StepGuard
from polyphi.train.stage import Mix
from polyphi.types.batch import Batch
from polyphi.types.messages import Message
from tests.core.train.small import BUDGET, LANGUAGE, make_processor, run, trajectory

FEW = replace(BUDGET, steps=6, batch_tokens=60)
POISON = "p"  # no other sample has this letter
STAGE = replace(LANGUAGE, data=Mix({"questions": 1}))


@pytest.fixture
def data(corpora: Path, tmp_path: Path) -> Path:
    """Questions, the fourth and the eighth poisoned."""
    folder = tmp_path / "data"
    samples = []
    for i, sample in enumerate(shards.Shards(corpora / "questions" / "train")):
        answer = POISON if i in (3, 7) else "red square"
        samples.append(Sample(sample.id, (*sample.prompt, Message.assistant(answer)), "", ""))
    shards.write(folder / "questions" / "train", samples, pipeline="test")
    return folder


class Poisoned(NextToken):
    """The loss of a pack with a poisoned sample isn't a number."""

    def __repr__(self) -> str:
        return repr(NextToken())

    def loss(self, model: Any, head: Any, reference: Any, batch: Batch) -> Any:
        total, count, extra = super().loss(model, head, reference, batch)
        (poison,) = make_processor().tokenizer.encode(POISON)
        return total * (torch.nan if bool((batch.labels == poison).any()) else 1.0), count, extra


class Spikes(NextToken):
    """The losses with the numbers in `at` are multiplied by a thousand."""

    def __init__(self, *at: int) -> None:
        super().__init__()
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "number", -1)

    def __repr__(self) -> str:
        return repr(NextToken())

    def loss(self, model: Any, head: Any, reference: Any, batch: Batch) -> Any:
        object.__setattr__(self, "number", self.number + 1)
        total, count, extra = super().loss(model, head, reference, batch)
        return total * (1000.0 if self.number in self.at else 1.0), count, extra


def quarantined(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]


def test_a_sample_whose_loss_is_nan_is_quarantined_and_named(data: Path, tmp_path: Path) -> None:
    messages: list[object] = []
    stage = replace(STAGE, objective=Poisoned())
    manifest = run(tmp_path / "out", data, stage, FEW, report=messages.append)
    assert sorted(manifest["quarantined"]) == ["questions/3", "questions/7"]
    assert sorted(line["id"] for line in quarantined(tmp_path / "out")) == manifest["quarantined"]
    assert sum("is quarantined: its loss isn't finite" in str(line) for line in messages) == 2
    records = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(6)) and manifest["rejected_steps"] == 0


def test_the_quarantine_survives_a_stop(data: Path, tmp_path: Path) -> None:
    class Stops(Poisoned):
        losses_left = 7

        def loss(self, model: Any, head: Any, reference: Any, batch: Batch) -> Any:
            Stops.losses_left -= 1
            if not Stops.losses_left:
                raise RuntimeError("bad luck")
            return super().loss(model, head, reference, batch)

    stage = replace(STAGE, objective=Poisoned())
    straight = run(tmp_path / "straight", data, stage, FEW)
    with pytest.raises(RuntimeError, match="bad luck"):
        run(tmp_path / "half", data, replace(stage, objective=Stops()), FEW, checkpoint_seconds=0.0)
    resumed = run(tmp_path / "half", data, stage, FEW)
    assert trajectory(tmp_path / "half") == trajectory(tmp_path / "straight")
    assert resumed["quarantined"] == straight["quarantined"]
    assert quarantined(tmp_path / "half") == quarantined(tmp_path / "straight")


def test_too_many_end_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MAX_QUARANTINED", 1)
    with pytest.raises(RuntimeError, match=r"2 samples .*: questions/\d, questions/\d"):
        run(tmp_path / "out", data, replace(STAGE, objective=Poisoned()), FEW)


MANY = replace(BUDGET, steps=16, batch_tokens=60)


def test_a_spike_is_skipped(data: Path, tmp_path: Path) -> None:
    stage = replace(STAGE, objective=Spikes(12))
    manifest = run(tmp_path / "out", data, stage, MANY, guard=StepGuard(spike=20.0))
    assert manifest["rejected_steps"] == 1 and manifest["rollbacks"] == 0
    steps = [r["step"] for r in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert steps == [n for n in range(16) if n != 12]
    (line,) = quarantined(tmp_path / "out")
    assert line["step"] == 12 and "gradient norm" in line["reason"] and len(line["id"]) > 1


def test_a_spike_is_rolled_back(data: Path, tmp_path: Path) -> None:
    """From the checkpoint before it, with the samples that come after it."""
    stage, often = replace(STAGE, objective=Spikes(12)), {"checkpoint_seconds": 0.0}
    back = StepGuard(spike=20.0, on_spike="roll-back")
    manifest = run(tmp_path / "out", data, stage, MANY, guard=back, **often)
    assert manifest["rollbacks"] == 1 and manifest["rejected_steps"] == 1
    run(tmp_path / "plain", data, STAGE, replace(MANY, steps=17), **often)
    spiked, plain = (trajectory(tmp_path / name) for name in ("out", "plain"))
    assert [r[0] for r in spiked] == list(range(16))
    assert [r[1] for r in spiked] == [r[1] for r in plain if r[0] != 12], "that step's samples only"


def test_too_many_rejected_steps_end_the_run(data: Path, tmp_path: Path) -> None:
    stage = replace(STAGE, objective=Spikes(*range(11, 99)))
    with pytest.raises(RuntimeError, match=r"step 13; 3 .*3 .*questions/"):
        run(
            tmp_path / "out",
            data,
            stage,
            MANY,
            guard=StepGuard(spike=20.0),
            checkpoint_seconds=0.0,
        )
    assert Checkpoints(tmp_path / "out" / "checkpoints").find().state["step"] == 11
