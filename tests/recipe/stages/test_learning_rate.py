"""The committed fits of the peak learning rate follow from the runs next to them."""

import json
import math
from pathlib import Path

import pytest

from experiments.scaling import EXPONENT, Law, Point, fit
from polyphi_recipe import stages
from polyphi_recipe.stages import sizes

FITS = json.loads(Path(sizes.__file__).with_name("learning_rate.json").read_text())


@pytest.mark.parametrize("size", sorted(FITS))
def test_a_fit_follows_from_its_runs(size: str) -> None:
    stored_fit = FITS[size]
    points = [
        Point(d, r, s, math.inf if loss is None else loss) for d, r, s, loss in stored_fit["runs"]
    ]
    again = fit(points, stored_fit["at"]["tokens"])
    for law in ("law", "free", "through"):
        assert again[law].keys() == stored_fit[law].keys()
        for key, value in stored_fit[law].items():
            assert again[law][key] == pytest.approx(value, rel=1e-6), (law, key)


@pytest.mark.parametrize("size", sorted(FITS))
def test_text_1_takes_its_rate_from_the_fit(size: str) -> None:
    stored_fit, stage = FITS[size], stages.load("text_1_pretrain")
    budget = sizes.load(size).budget(stage)
    law = Law(stored_fit["through"]["factor"], EXPONENT)
    assert max(stage.trainable.values()) * budget.lr_factor == pytest.approx(
        law.rate(budget.steps * budget.batch_tokens)
    )


@pytest.mark.parametrize("size", sorted(FITS))
def test_its_runs_are_those_of_the_size(size: str) -> None:
    stored_fit, table = FITS[size], sizes.load(size)
    lengths = sorted({run[0] for run in stored_fit["runs"]})
    assert tuple(lengths) == table.sweep
    assert lengths[-1] >= 8 * lengths[0]
    budget = table.budgets["text_1_pretrain"]
    assert stored_fit["at"]["tokens"] == budget.steps * budget.batch_tokens
    assert stored_fit["law"]["exponent"] == EXPONENT
