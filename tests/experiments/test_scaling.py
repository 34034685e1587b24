"""The law of the peak learning rate: a planted law is found, its interval is honest, a sweep resumes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import scaling
from experiments.scaling import EXPONENT, Law, Point, fit, sweep
from polyphi.data.generated import GeneratedSamples
from polyphi.train import state, trainer
from polyphi.train.stage import Mix
from tests.core.train.small import (
    BUDGET,
    LANGUAGE,
    fresh_question,
    make_model,
    make_processor,
    write_corpora,
)


def planted(
    exponent: float,
    noise: float = 0.0,
    seed: int = 0,
    *,
    scatter: float = 0.0,
    seeds: int = 2,
    steps: int = 2,
) -> list[Point]:
    """Losses that are parabolas around `0.1 * D ** exponent`, each length off it by a factor of 1 + `scatter` or so."""
    random = np.random.default_rng(seed)
    points = []
    for tokens in (1000, 2000, 4000, 8000):
        middle = 0.1 * tokens**exponent * math.exp(scatter * random.standard_normal())
        for step in range(-steps, steps + 1):
            for s in range(seeds):
                rate = middle * 1.1 * math.sqrt(2) ** step
                loss = 3 + s + 0.4 * math.log(rate / middle) ** 2 + noise * random.standard_normal()
                points.append(Point(tokens, rate, s, loss))
    return points


@pytest.mark.parametrize("exponent", [EXPONENT, -0.6, 0.0])
def test_a_planted_law_is_found(exponent: float) -> None:
    result = fit(planted(exponent), tokens=64_000)
    assert result["free"]["exponent"] == pytest.approx(exponent, abs=1e-6)
    assert result["free"]["factor"] == pytest.approx(0.1, rel=1e-5)
    assert result["at"]["free"]["rate"] == pytest.approx(0.1 * 64_000**exponent, rel=1e-5)
    assert [b["rate"] for b in result["best"]] == pytest.approx(
        [0.1 * d**exponent for d in (1000, 2000, 4000, 8000)], rel=1e-5
    )
    if exponent == EXPONENT:
        assert result["law"]["factor"] == pytest.approx(0.1, rel=1e-5)
    through = Law(result["through"]["factor"], result["through"]["exponent"])
    assert through.rate(8000) == pytest.approx(result["best"][-1]["rate"], rel=1e-5)
    assert through.rate(16_000) == pytest.approx(2**EXPONENT * through.rate(8000))
    json.dumps(result)


@pytest.mark.parametrize("scatter", [0.0, 0.3])
def test_intervals_have_about_their_nominal_coverage(scatter: float) -> None:
    fits = [fit(planted(EXPONENT, 0.02, seed, scatter=scatter), 64_000) for seed in range(60)]
    assert sum(f["exponent_holds"] for f in fits) >= 0.88 * 60
    inside = [f["law"]["factor_interval"] for f in fits]
    assert sum(low <= 0.1 <= high for low, high in inside) >= 0.88 * 60


def test_a_wrong_exponent_is_detected() -> None:
    assert not fit(planted(0.2, 0.01), 64_000)["exponent_holds"]


def test_a_law_with_the_report_s_exponent_falls_by_a_fifth_per_doubling() -> None:
    law = Law(3e-4 * 1e13**-EXPONENT)
    assert law.rate(1e13) == pytest.approx(3e-4)
    assert law.rate(2e13) / law.rate(1e13) == pytest.approx(2**EXPONENT)


def test_diverged_runs_are_ignored_and_too_few_refused() -> None:
    points = planted(EXPONENT)
    broken = [replace(p, loss=math.inf) if p.rate > 0.02 else p for p in points]
    assert fit(broken, 64_000)["runs"][0][3] is not None
    with pytest.raises(ValueError, match="at least two lengths"):
        fit([p for p in points if p.tokens == 1000], 64_000)
    with pytest.raises(ValueError, match="three rates"):
        fit(planted(EXPONENT, steps=0), 64_000)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora with a test split: here the same rows."""
    folder = write_corpora(tmp_path_factory.mktemp("scaling"))
    for name in ("documents", "questions"):
        (folder / name / "test").symlink_to(folder / name / "train")
    return folder


STAGE = replace(LANGUAGE, data=Mix({"documents": 2.0, "questions": 1.0}, late={"documents": 4}))


def run(data: Path, out: Path, **options) -> tuple[list[Point], list[str]]:
    processor, lines = make_processor(), []
    points = sweep(
        STAGE,
        replace(BUDGET, steps=8),
        lambda seed: make_model(processor, text=True),
        processor,
        data,
        out,
        tokens=(400, 800),
        precision="fp32",
        report=lines.append,
        **options,
    )
    return points, lines


def test_a_sweep_brackets_the_best_rate_and_is_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "HELD_OUT_TOKENS", 400)
    fresh = {"fresh": lambda seed: {"questions": GeneratedSamples(fresh_question, f"seed {seed}")}}
    points, lines = run(data, tmp_path, seeds=1, **fresh)
    assert len(lines) == len(points)
    for size in (400, 800):
        mine = sorted((p for p in points if p.tokens == size), key=lambda p: p.rate)
        best = min(range(len(mine)), key=lambda i: mine[i].loss)
        assert scaling.REACH <= best < len(mine) - scaling.REACH
    # The corpus with a late start begins after the same share of a shorter run.
    manifest = json.loads((next(tmp_path.glob("400_*")) / "manifest.json").read_text())
    assert manifest["late"] == {"documents": 1}
    assert manifest["data"]["questions"] == {"fresh": "seed 0"}

    steps: list[int] = []
    monkeypatch.setattr(trainer.Loader, "step", lambda self: steps.append(1))
    monkeypatch.setattr(scaling, "_held_out", lambda *_: lambda model: {})
    again, _ = run(data, tmp_path, seeds=1, **fresh)
    assert again == points and not steps


def test_a_run_that_diverges_counts_as_infinitely_bad(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "HELD_OUT_TOKENS", 400)
    plain = scaling.train

    def diverges(stage, budget, *rest, **options):
        if budget.lr_factor > BUDGET.lr_factor:
            raise state.Diverged("the loss is nan")
        return plain(stage, budget, *rest, **options)

    monkeypatch.setattr(scaling, "train", diverges)
    points, _ = run(data, tmp_path, seeds=1)
    assert {p.rate > STAGE.trainable["decoder.*"] for p in points if math.isinf(p.loss)} == {True}


def test_a_fit_is_drawn(tmp_path: Path) -> None:
    scaling.draw(fit(planted(EXPONENT, 0.02), 64_000), tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
