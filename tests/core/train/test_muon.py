"""Muon: torch's own in float32, orthogonal updates, one optimizer with AdamW."""

import pytest
import torch
from torch import nn

from polyphi.train.loss import NextToken
from polyphi.train.muon import Muon, orthogonal
from polyphi.train.optim import optimiser, set_lr
from polyphi.train.stage import Budget, Mix, Stage


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
    both = optimiser(STAGE, named, Budget(1, 1, 1, lr_factor=2.0, muon_lr_factor=5.0))
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
    assert type(optimiser(STAGE, parameters(), Budget(1, 1, 1))) is torch.optim.AdamW
