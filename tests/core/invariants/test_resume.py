"""Interrupted and resumed = never stopped: same samples, losses and weights to the last bit. By an exception, by
Ctrl-C, by kill -9, and by nothing but bad luck in the last moment."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polyphi.data.generated import GeneratedSamples
from polyphi.train import checkpoint
from polyphi.train.preference import DPO
from polyphi.train.stage import Mix
from tests.core.train import small
from tests.core.train.small import BUDGET, EVERYTHING, LANGUAGE, Fails, run, trajectory
from tests.fixtures import forked
from tests.fixtures.servers import until

SIX = replace(BUDGET, steps=6)
OFTEN = {"checkpoint_seconds": 0.0, "dropout": 0.3}


@pytest.fixture(scope="module")
def straight(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    run(out, corpora, budget=SIX, **OFTEN)
    return out


def same(straight: Path, out: Path) -> None:
    assert trajectory(out) == trajectory(straight)
    one, two = (load_file(folder / "trained.safetensors") for folder in (straight, out))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def latest(out: Path) -> int:
    return checkpoint.Checkpoints(out / "checkpoints").find().state["step"]


def test_an_exception(straight: Path, corpora: Path, tmp_path: Path) -> None:
    for at in (2, 3):  # twice in a row
        with pytest.raises(RuntimeError, match="bad luck"):
            run(tmp_path, corpora, replace(EVERYTHING, objective=Fails(at)), SIX, **OFTEN)
    assert latest(tmp_path) == 5
    manifest = run(tmp_path, corpora, budget=SIX, **OFTEN)
    same(straight, tmp_path)
    assert manifest["counters"] == json.loads((straight / "manifest.json").read_text())["counters"]


def test_ctrl_c_finishes_the_step_and_saves(straight: Path, corpora: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stage = replace(EVERYTHING, objective=Fails(2, lambda: os.kill(os.getpid(), signal.SIGINT)))
        run(tmp_path, corpora, stage, SIX, dropout=0.3, checkpoint_seconds=1e9)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(trajectory(tmp_path)) == latest(tmp_path) == 3
    run(tmp_path, corpora, budget=SIX, dropout=0.3)
    same(straight, tmp_path)


def test_ctrl_c_after_the_last_step_is_not_forgotten(
    straight: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is too late to stop the stage, which is finished; what called it stops."""
    save = checkpoint.Checkpoints.save

    def interrupted(self, step, *rest):
        save(self, step, *rest)
        if step == SIX.steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, corpora, budget=SIX, **OFTEN)
    same(straight, tmp_path)
    assert (tmp_path / "manifest.json").exists()


def test_a_second_ctrl_c_stops_at_once(corpora: Path, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        stage = replace(EVERYTHING, objective=Fails(2, twice))
        run(tmp_path, corpora, stage, SIX, dropout=0.3, checkpoint_seconds=1e9)
    assert len(trajectory(tmp_path)) == 2, "the step is not finished"
    assert checkpoint.Checkpoints(tmp_path / "checkpoints").find() is None


def test_kill_9(straight: Path, corpora: Path, tmp_path: Path) -> None:
    options = ("--steps", "6", "--dropout", "0.3", "--pause", "0.2")
    process = forked.start(
        "from tests.core.train.small import main; main()",
        *(str(tmp_path), str(corpora), *options),
        environment={"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    until((tmp_path / "checkpoints" / "latest").exists)
    time.sleep(0.3)
    process.kill()
    process.join()
    assert 1 <= latest(tmp_path) < 6
    run(tmp_path, corpora, budget=SIX, **OFTEN)
    same(straight, tmp_path)


def test_killed_between_the_last_step_and_the_manifest(
    straight: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(OSError, match="full"):
            run(tmp_path, corpora, budget=SIX, **OFTEN)
    assert not (tmp_path / "manifest.json").exists()
    run(tmp_path, corpora, budget=SIX, **OFTEN)
    same(straight, tmp_path)


def test_preferences_keep_the_reference_of_the_start(corpora: Path, tmp_path: Path) -> None:
    class Stops(DPO):
        left = 4

        def __repr__(self) -> str:
            return repr(DPO())

        def loss(self, model, head, reference, batch):
            Stops.left -= 1
            if not Stops.left:
                raise RuntimeError("bad luck")
            return super().loss(model, head, reference, batch)

    stage = replace(LANGUAGE, data=Mix({"questions": 1}), objective=DPO())
    run(tmp_path / "straight", corpora, stage, SIX, **OFTEN)
    with pytest.raises(RuntimeError, match="bad luck"):
        run(tmp_path / "half", corpora, replace(stage, objective=Stops()), SIX, **OFTEN)
    run(tmp_path / "half", corpora, stage, SIX, **OFTEN)
    same(tmp_path / "straight", tmp_path / "half")


def test_fresh_samples(corpora: Path, tmp_path: Path) -> None:
    """A run with fresh samples resumes with the next ones; one with another generator is refused."""
    fresh = {"questions": GeneratedSamples(small.fresh_question, "one")}
    options = {**OFTEN, "generated": fresh}
    manifest = run(tmp_path / "straight", corpora, budget=SIX, **options)
    assert manifest["data"]["questions"] == {"fresh": "one"}
    assert isinstance(manifest["data"]["pictures"], list)
    half = tmp_path / "half"
    with pytest.raises(RuntimeError, match="bad luck"):
        run(half, corpora, replace(EVERYTHING, objective=Fails(3)), SIX, **options)
    for other in ({}, {"questions": GeneratedSamples(small.fresh_question, "two")}):
        with pytest.raises(ValueError, match="data"):
            run(half, corpora, budget=SIX, **{**options, "generated": other})
    run(half, corpora, budget=SIX, **options)
    same(tmp_path / "straight", half)


def test_another_run_is_refused(corpora: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run(tmp_path, corpora, replace(EVERYTHING, objective=Fails(2)), SIX, **OFTEN)
    with pytest.raises(ValueError, match=r"seed 0, .*7"):
        run(tmp_path, corpora, budget=SIX, seed=7)
    with pytest.raises(ValueError, match="budget"):
        run(tmp_path, corpora, budget=BUDGET)
    with pytest.raises(ValueError, match=r"stage 'everything', .*'language'"):
        run(tmp_path, corpora, LANGUAGE, SIX)
    other = small.make_model(small.make_processor())
    with torch.no_grad():
        other.decoder.norm.weight.mul_(2)
    with pytest.raises(
        ValueError,
        match=r"1 of \d+ .*decoder.norm.weight",
    ):
        run(tmp_path, corpora, budget=SIX, model=other)
    assert latest(tmp_path) == 2, "refusing loses nothing"
