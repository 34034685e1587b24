"""Groups of the optimiser follow `trainable`."""

import pytest
import torch
from torch import nn

from polyphi.train.loss import NextToken
from polyphi.train.optim import groups, optimiser, set_lr
from polyphi.train.stage import Budget, Mix, Stage


def stage(trainable: dict[str, float]) -> Stage:
    return Stage(
        name="s",
        start={},
        trainable=trainable,
        data=Mix({"a": 1}),
        objective=NextToken(),
        weight_decay=0.1,
    )


PARAMETERS = {
    "vision.encoder.weight": nn.Parameter(torch.ones(2, 2)),
    "vision.encoder.bias": nn.Parameter(torch.ones(2)),
    "vision.projector.weight": nn.Parameter(torch.ones(2, 2)),
    "decoder.weight": nn.Parameter(torch.ones(2, 2)),
}


def test_the_longest_glob_wins_and_only_matrices_decay() -> None:
    trainable = {"vision.*": 1e-4, "vision.projector.*": 1e-3}
    assert groups(stage(trainable), PARAMETERS) == {
        "vision.*": ["vision.encoder.weight", "vision.encoder.bias"],
        "vision.projector.*": ["vision.projector.weight"],
    }
    param_groups = optimiser(
        stage(trainable), PARAMETERS, Budget(1, 1, 1, lr_factor=2.0)
    ).param_groups
    assert [(g["glob"], g["peak"], g["weight_decay"], len(g["params"])) for g in param_groups] == [
        ("vision.*", 2e-4, 0.1, 1),
        ("vision.*", 2e-4, 0.0, 1),
        ("vision.projector.*", 2e-3, 0.1, 1),
    ]
    assert param_groups[0]["params"][0] is PARAMETERS["vision.encoder.weight"]


def test_rates_are_shares_of_the_peaks() -> None:
    adamw = optimiser(stage({"vision.*": 1e-4, "decoder.*": 1e-5}), PARAMETERS, Budget(1, 1, 1))
    assert set_lr(adamw, 0.5) == pytest.approx(5e-5)
    assert {g["glob"]: g["lr"] for g in adamw.param_groups} == pytest.approx(
        {"vision.*": 5e-5, "decoder.*": 5e-6}
    )


def test_a_glob_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"vision\.projector\.weight"):
        optimiser(stage({"vision.projecter.*": 1e-3}), PARAMETERS, Budget(1, 1, 1))
