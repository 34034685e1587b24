"""Trainable parameters: named by a stage's `learn`, checked after the first step; frozen ones are proven by hashes.

What no glob of `learn` matches is frozen. Every frozen tensor has one SHA-256 before the stage and the same one after
it.
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
    """All parameters by name, `objective.` before those of the auxiliary head."""
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
    """All frozen tensors: parameters that aren't trained, and buffers."""
    fixed = {n: p for n, p in parameters.items() if not p.requires_grad}
    return fixed | {
        n: t for n, t in model.state_dict(keep_vars=True).items() if n not in parameters
    }


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor, of a shard that of the whole."""
    return checkpoint.digests((name, parallel.whole(t)) for name, t in tensors.items())


def check_gradients(stage: Stage, parameters: dict[str, Tensor], device: torch.device) -> None:
    """After the first backward: raise RuntimeError where a trained group has no gradient or a frozen tensor has one."""
    by_glob = groups(stage, parameters)
    found = [any(parallel.has_gradient(parameters[n]) for n in names) for names in by_glob.values()]
    for (glob, names), good in zip(
        by_glob.items(), distributed.any_rank(*found, device=device), strict=True
    ):
        if not good:
            raise RuntimeError(
                f"{stage.name}: {glob!r} is to be learned, but its {len(names)} tensors got no gradient in the first "
                "step; does the mix bring what reaches them?"
            )
    if leaks := [n for n, p in parameters.items() if p.grad is not None and not p.requires_grad]:
        raise RuntimeError(f"{stage.name}: frozen tensors got gradients: {', '.join(leaks[:5])}")


def trainable_rows(
    stage: Stage, budget: Budget, parameters: dict[str, Tensor], origins: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row per glob of `learn`, and one for all frozen parameters: number of parameters, peak learning rate, stages
    that their weights came from. The manifest holds them under `who_learns`."""
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
    """The rows of `trainable_rows` as a table to print."""
    table = Table("trainable", "parameters", "peak lr", "weights from", box=None, padding=(0, 2))
    for r in rows:
        rate = f"{r['rate']:.1e}" if r["rate"] else "frozen"
        table.add_row(r["module"], f"{r['parameters']:,}", rate, ", ".join(r["from"]))
    return table
