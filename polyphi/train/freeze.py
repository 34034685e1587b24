"""Trainable and frozen parameters of a stage.

A parameter that no glob of `trainable` matches is frozen. The first step checks that every trainable group has a
gradient; the SHA-256 of every frozen tensor is compared before and after the stage.
"""

import ctypes
import mmap
import os
from bisect import bisect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from polyphi.model.multimodal import PhiModel
from polyphi.quantization.integer_weights import Quantized
from polyphi.runtime import distributed
from polyphi.train import checkpoint, parallel
from polyphi.train.optimizer import groups
from polyphi.train.stage import Budget, Stage

PAGE_OUT = 21
"""The number of MADV_PAGEOUT in Linux."""
READ_BYTES = 64 << 20
"""Bytes of frozen tensors that are hashed before their pages leave memory."""


def named(model: PhiModel, head: nn.Module | None) -> dict[str, Tensor]:
    """All parameters by name, `objective.` before those of the auxiliary head."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if head is not None:
        parameters |= {f"objective.{name}": p for name, p in head.named_parameters()}
    return parameters


def freeze(stage: Stage, model: PhiModel, head: nn.Module | None) -> dict[str, Tensor]:
    """All parameters by name; those that `trainable` matches require gradients, the others don't. Raises ValueError if
    the stage trains nothing, or if a glob matches nothing."""
    parameters = named(model, head)
    chosen = stage.learning_rates(parameters)
    for name, p in parameters.items():
        p.requires_grad_(name in chosen)
        p.grad = None
    return parameters


def frozen(model: PhiModel, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All frozen tensors: parameters that aren't trained, buffers, and quantized weights."""
    frozen_parameters = {n: p for n, p in parameters.items() if not p.requires_grad}
    others = {n: t for n, t in model.state_dict(keep_vars=True).items() if n not in parameters}
    return frozen_parameters | others | quantized_tensors(model)


def quantized_tensors(model: PhiModel) -> dict[str, Tensor]:
    """The stored tensors of a model's quantized weights, by the names of the weights and of their pieces: "....r4" and
    "....row"."""
    result: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for name in ("kernel", "head", "down", "up"):
            weight = getattr(module, name, None)
            if isinstance(weight, Quantized):
                pieces = weight.in_pieces() or {}
                result |= {f"{path}.{name}.{end}": piece for end, piece in pieces.items()}
    return result


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor; of a sharded one, that of the full tensor."""
    return checkpoint.digests((name, parallel.whole(t)) for name, t in tensors.items())


def frozen_hashes(model: PhiModel, parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each frozen tensor. Those that a step on a quantized base rarely reads, which are mapped from the
    checkpoint, leave memory again."""
    result: dict[str, str] = {}
    read: list[Tensor] = []
    for name, tensor in frozen(model, parameters).items():
        result |= hashes({name: tensor})
        read.append(tensor)
        if model.quant is not None and sum(t.nbytes for t in read) > READ_BYTES:
            drop_pages(read)
            read.clear()
    if model.quant is not None:
        drop_pages(read)
    return result


def drop_pages(tensors: Iterable[Tensor]) -> None:
    """Take the pages of tensors that are mapped from files out of memory; they are read again when they are used. For
    large weights that are rarely read. Tensors in other memory are unchanged. Does nothing without Linux."""
    advise = getattr(ctypes.CDLL(None), "madvise", None) if os.name == "posix" else None
    if advise is None or not os.path.exists("/proc/self/maps"):
        return
    mapped = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            limits, _, _, _, inode, *_ = line.split(maxsplit=5)
            if inode != "0":
                mapped.append(tuple(int(limit, 16) for limit in limits.split("-")))
    starts = [start for start, _ in mapped]
    for tensor in tensors:
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        place = bisect(starts, first) - 1
        if place < 0 or last > mapped[place][1] or tensor.device.type != "cpu":
            continue
        first += -first % mmap.PAGESIZE
        if last - first >= mmap.PAGESIZE:
            size = (last - first) // mmap.PAGESIZE * mmap.PAGESIZE
            advise(ctypes.c_void_p(first), ctypes.c_size_t(size), PAGE_OUT)


def check_gradients(
    stage: Stage, parameters: dict[str, Tensor], device: torch.device, reached_later: bool = False
) -> None:
    """Raise RuntimeError after the first backward pass where a frozen tensor has a gradient, or a trained group has
    none, unless rows of later steps are known to reach it."""
    by_glob = groups(stage, parameters)
    has_gradient = [
        any(parallel.has_gradient(parameters[n]) for n in names) for names in by_glob.values()
    ]
    for (glob, names), reached in zip(
        by_glob.items(), distributed.any_rank(*has_gradient, device=device), strict=True
    ):
        if not (reached or reached_later):
            raise RuntimeError(
                f"{stage.name}: {glob!r} is trainable, but its {len(names)} tensors got no gradient in the first step; "
                "add a corpus to the mix that uses them (such as one with audio for the audio encoder)"
            )
    if leaks := [n for n, p in parameters.items() if p.grad is not None and not p.requires_grad]:
        raise RuntimeError(f"{stage.name}: frozen tensors got gradients: {', '.join(leaks[:5])}")


def trainable_rows(
    stage: Stage, budget: Budget, parameters: dict[str, Tensor], origins: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row per glob of `trainable`, and one for all frozen parameters: number of parameters, peak learning rate,
    stages that their weights come from. The manifest holds the rows as `trainable`."""
    rows = []
    chosen = groups(stage, parameters)
    claimed = {name for names in chosen.values() for name in names}
    for glob, names in [*chosen.items(), ("(frozen)", [n for n in parameters if n not in claimed])]:
        sources = sorted({origins.get(n, "fresh") for n in names})
        lr = stage.trainable[glob] * budget.lr_factor if glob in stage.trainable else 0.0
        rows.append(
            {
                "module": glob,
                "parameters": sum(parameters[n].numel() for n in names),
                "lr": lr,
                "from": sources,
            }
        )
    return rows


def as_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of `trainable_rows` as a table to print."""
    table = Table("trainable", "parameters", "peak lr", "weights from", box=None, padding=(0, 2))
    for r in rows:
        lr = f"{r['lr']:.1e}" if r["lr"] else "frozen"
        table.add_row(r["module"], f"{r['parameters']:,}", lr, ", ".join(r["from"]))
    return table
