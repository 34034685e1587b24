"""A run's data: which corpora of a stage give fresh samples, and which ones."""

from pathlib import Path

import pytest
from rich.console import Console

from polyphi_recipe import stages
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.raw import packages


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A micro run on a machine that can download nothing."""

    def refuse(*_: object) -> None:
        raise packages.Unavailable("no network")

    monkeypatch.setattr(packages, "_fill", refuse)
    monkeypatch.setenv("POLYPHI_CACHE", str(tmp_path / "cache"))
    return Run("micro", tmp_path / "run", console=Console(quiet=True))


def test_fresh_samples_are_those_of_the_size_the_stage_and_the_seed(run: Run) -> None:
    text, vision = stages.load("text_3_post"), stages.load("vision_3_generative")
    first = run.corpora.generated(text)["instructions"]
    assert set(run.corpora.generated(text)) == set(run.recipe.size.fresh) & set(text.data.weights)
    assert "image_qa" in run.corpora.generated(vision)
    assert run.corpora.generated(text)["instructions"].fingerprint == first.fingerprint
    others = [
        run.corpora.generated(stages.load("text_1_pretrain"))["instructions"],
        run.corpora.generated(text, seed=1)["instructions"],
    ]
    assert len({f.fingerprint for f in (first, *others)}) == 3
    assert len({f.sample(0).messages for f in (first, *others)}) == 3
    assert run.corpora.generated(stages.load("speech_1_pretrain")) == {}
