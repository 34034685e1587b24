"""Who learns and who rests: named by a stage's `learn`, checked after the first step, proven by hashes.

`learn` says what is trained; everything else is frozen by module name. Every frozen tensor has one SHA-256 before the
stage and the same one after it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from polyphi.model.multimodal import PhiModel
from polyphi.runtime import distributed
from polyphi.train import checkpoint, parallel
from polyphi.train.optim import groups
from polyphi.train.stage import Budget, Stage, claim


def named(model: PhiModel, module: nn.Module | None) -> dict[str, Tensor]:
    """All parameters by name, `objective.` before the throw-away module's."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if module is not None:
        parameters |= {f"objective.{name}": p for name, p in module.named_parameters()}
    return parameters


def freeze(stage: Stage, model: PhiModel, module: nn.Module | None) -> dict[str, Tensor]:
    """All parameters by name; only what `learn` names requires gradients."""
    parameters = named(model, module)
    chosen = claim(stage.learn, parameters)
    for name, p in parameters.items():
        p.requires_grad_(name in chosen)
        p.grad = None
    return parameters


def frozen(model: PhiModel, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything a stage must not touch: parameters it doesn't learn, and buffers."""
    resting = {n: p for n, p in parameters.items() if not p.requires_grad}
    return resting | {
        n: t for n, t in model.state_dict(keep_vars=True).items() if n not in parameters
    }


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return checkpoint.digests((name, parallel.whole(t)) for name, t in tensors.items())


def check_gradients(stage: Stage, parameters: dict[str, Tensor], device: torch.device) -> None:
    """After the first backward: every group that learns has a gradient, nothing else has one."""
    by_glob = groups(stage, parameters)
    found = [any(parallel.has_gradient(parameters[n]) for n in names) for names in by_glob.values()]
    for (glob, names), good in zip(
        by_glob.items(), distributed.anyone(*found, device=device), strict=True
    ):
        if not good:
            raise RuntimeError(
                f"{stage.name}: {glob!r} is to be learned, but its {len(names)} tensors got no gradient in the first "
                "step; does the mix bring what reaches them?"
            )
    if leaks := [n for n, p in parameters.items() if p.grad is not None and not p.requires_grad]:
        raise RuntimeError(f"{stage.name}: frozen tensors got gradients: {', '.join(leaks[:5])}")


def who_learns(
    stage: Stage, budget: Budget, parameters: dict[str, Tensor], origins: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row per glob of `learn`, and one for all that rests: parameters, peak rate, where the weights came from."""
    rows = []
    chosen = groups(stage, parameters)
    taken = {name for names in chosen.values() for name in names}
    for glob, names in [*chosen.items(), ("(frozen)", [n for n in parameters if n not in taken])]:
        sources = sorted({origins.get(n, "fresh") for n in names})
        rate = stage.learn[glob] * budget.rate if glob in stage.learn else 0.0
        rows.append(
            {
                "module": glob,
                "parameters": sum(parameters[n].numel() for n in names),
                "rate": rate,
                "from": sources,
            }
        )
    return rows


def as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("who learns", "parameters", "peak rate", "weights from", box=None, padding=(0, 2))
    for r in rows:
        rate = f"{r['rate']:.1e}" if r["rate"] else "rests"
        table.add_row(r["module"], f"{r['parameters']:,}", rate, ", ".join(r["from"]))
    return table
