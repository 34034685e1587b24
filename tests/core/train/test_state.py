"""`TrainState`: what `state.json` holds, what a rollback restores."""

import json
from dataclasses import replace

import pytest

from polyphi.train import state
from polyphi.train.options import StepGuard
from polyphi.train.state import Diverged, TrainState


def test_the_state_is_stored_by_its_fields() -> None:
    state = TrainState(step=7, draws=31, counters={"tokens": 900}, quarantined=["questions/3"])
    stored = json.loads(json.dumps(state.to_json()))
    assert TrainState.from_json({**stored, "identity": {}, "names": []}) == state


def test_a_rollback_continues_after_the_samples_that_were_drawn() -> None:
    stored = TrainState(step=4, draws=10, norms=[1.0], rejected_in_a_row=0)
    before = TrainState(step=6, draws=20, corrupt=2, quarantined=["a"], rejected_steps=1)
    after = before.rolled_back(stored)
    assert after == replace(
        stored, draws=20, corrupt=2, quarantined=["a"], rejected_steps=1, rollbacks=1
    )


def test_the_quarantine_has_a_bound() -> None:
    full = TrainState()
    full.quarantine([str(i) for i in range(state.MAX_QUARANTINED)], "stage")
    with pytest.raises(Diverged, match=r"21 samples .* and 1 more"):
        full.quarantine(["one too many"], "stage")


def test_a_spike_is_measured_against_the_median() -> None:
    norms = [1.0, 2.0, 3.0] * 4
    assert StepGuard(spike=2.0).rejects(4.1, norms) and not StepGuard(spike=2.0).rejects(4.0, norms)
    assert not StepGuard(spike=2.0).rejects(9.0, norms[:9]) and not StepGuard().rejects(9.0, norms)
    assert StepGuard().rejects(float("nan"), [])
