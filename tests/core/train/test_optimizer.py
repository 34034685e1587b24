"""Groups of the optimizer follow `trainable`; Muon steps as torch's own, in one optimizer with AdamW; default learning
rates of adapters fall with the rank."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from polyphi.model.config import AdapterConfig
from polyphi.train.loss import NextToken
from polyphi.train.optimizer import (
    MAX_RATE,
    Muon,
    default_lr,
    groups,
    make_optimizer,
    orthogonal,
    set_lr,
    with_default_lrs,
)
from polyphi.train.stage import Budget, Mix, Stage
from tests.core.train.small import EVERYTHING

DOCS = Path(__file__).parents[3] / "docs" / "finetune_reference.md"
ADAPTERS = {"vision": AdapterConfig(4, 8.0), "mine": AdapterConfig(64, 128.0)}


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
    param_groups = make_optimizer(
        stage(trainable), PARAMETERS, Budget(1, 1, 1, lr_factor=2.0)
    ).param_groups
    assert [(g["glob"], g["peak"], g["weight_decay"], len(g["params"])) for g in param_groups] == [
        ("vision.*", 2e-4, 0.1, 1),
        ("vision.*", 2e-4, 0.0, 1),
        ("vision.projector.*", 2e-3, 0.1, 1),
    ]
    assert param_groups[0]["params"][0] is PARAMETERS["vision.encoder.weight"]


def test_rates_are_shares_of_the_peaks() -> None:
    adamw = make_optimizer(
        stage({"vision.*": 1e-4, "decoder.*": 1e-5}), PARAMETERS, Budget(1, 1, 1)
    )
    assert set_lr(adamw, 0.5) == pytest.approx(5e-5)
    assert {g["glob"]: g["lr"] for g in adamw.param_groups} == pytest.approx(
        {"vision.*": 5e-5, "decoder.*": 5e-6}
    )


def test_a_glob_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"vision\.projector\.weight"):
        make_optimizer(stage({"vision.projecter.*": 1e-3}), PARAMETERS, Budget(1, 1, 1))


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 8, 8)])
def test_singular_values_come_close_to_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.min() > 0.5 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = (orthogonal(matrices) * (u @ v)).sum() / (u @ v).square().sum()
    assert cosine > 0.8  # the direction is that of the nearest orthogonal matrix


def test_it_steps_as_torchs_own() -> None:
    """torch multiplies in bfloat16: both are rounded alike where ours does, too (measured: 0.0 to 4e-4 of 0.02)."""
    ours, theirs = (
        [nn.Parameter(torch.linspace(-1, 1, r * c).view(r, c).sin()) for r, c in ((6, 6), (12, 6))]
        for _ in range(2)
    )
    mine = Muon([{"params": ours, "lr": 0.02}], dtype=torch.bfloat16)
    peer = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0, adjust_lr_fn="original")
    for step in range(4):
        generator = torch.manual_seed(step)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        peer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


def parameters() -> dict[str, nn.Parameter]:
    return {
        "decoder.embed_tokens.weight": nn.Parameter(torch.randn(8, 4)),
        "decoder.layers.0.weight": nn.Parameter(torch.randn(4, 6)),
        "decoder.norm.weight": nn.Parameter(torch.ones(4)),
        "vision.layers.0.weight": nn.Parameter(torch.randn(4, 6)),
        "objective.ctc.weight": nn.Parameter(torch.randn(8, 4)),
    }


STAGE = Stage(
    name="s",
    start={},
    trainable={"decoder.*": 1e-3, "vision.*": 1e-4, "objective.*": 1e-3},
    data=Mix({"a": 1}),
    objective=NextToken(),
)


def test_matrices_of_layers_go_to_muon_and_all_else_to_adamw() -> None:
    named = parameters()
    both = make_optimizer(STAGE, named, Budget(1, 1, 1, lr_factor=2.0, muon_lr_factor=5.0))
    names = {id(p): name for name, p in named.items()}
    peaks = {names[id(p)]: g["peak"] for g in both.param_groups for p in g["params"]}
    assert peaks == pytest.approx(
        {
            "decoder.layers.0.weight": 5e-3,
            "vision.layers.0.weight": 5e-4,
            "decoder.embed_tokens.weight": 2e-3,
            "decoder.norm.weight": 2e-3,
            "objective.ctc.weight": 2e-3,
        }
    )
    before = {name: p.detach().clone() for name, p in named.items()}
    for p in named.values():
        p.grad = torch.randn_like(p)
    set_lr(both, 0.5)
    both.step()
    both.zero_grad()
    assert all(not torch.equal(p, before[name]) for name, p in named.items())
    assert all(p.grad is None for p in named.values())
    state = {names[id(p)]: set(values) for p, values in both.state.items()}
    assert state["decoder.layers.0.weight"] == {"momentum"}
    assert state["decoder.norm.weight"] == {"step", "exp_avg", "exp_avg_sq"}


def test_without_a_rate_there_is_adamw_alone() -> None:
    assert type(make_optimizer(STAGE, parameters(), Budget(1, 1, 1))) is torch.optim.AdamW


def test_the_table_of_the_docs() -> None:
    ranks, rates = (
        re.search(rf"(?m)^\| {name} \|([^\n]*\d)\ \|$", DOCS.read_text())[1].split("|")
        for name in ("rank", "rate")
    )
    assert [default_lr(int(rank)) for rank in ranks] == [float(rate) for rate in rates]


def test_a_higher_rank_has_a_lower_rate() -> None:
    rates = [default_lr(rank) for rank in (1, 8, 16, 64, 256, 1024)]
    assert rates == sorted(rates, reverse=True) and rates[0] == rates[1] == MAX_RATE
    assert default_lr(64) == pytest.approx(2 * default_lr(256))


def test_auto_is_replaced() -> None:
    trainable = {"decoder.*.lora.mine.*": "auto", "vision.projector.*": 1e-5}
    resolved = with_default_lrs(replace(EVERYTHING, trainable=trainable), ADAPTERS)
    assert resolved.trainable == {"decoder.*.lora.mine.*": 2.2e-4, "vision.projector.*": 1e-5}


@pytest.mark.parametrize(
    "glob", ["vision.projector.*", "decoder.*.lora.other.*", "decoder.*.lora.*", "*"]
)
def test_auto_for_anything_else_is_refused(glob: str) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(glob)}.*vision, mine"):
        with_default_lrs(replace(EVERYTHING, trainable={glob: "auto"}), ADAPTERS)
    with pytest.raises(ValueError, match="automatic"):
        with_default_lrs(
            replace(EVERYTHING, trainable={"decoder.*.lora.mine.*": "automatic"}), ADAPTERS
        )
