"""ONE loop for every stage.

    for each step: rows from the mix -> loss of every pack -> backward
                   divide by the global count of supervised tokens -> clip -> AdamW
                   once in a while: log, checkpoint

Before it: freeze what the stage doesn't name, say who learns, hash what is frozen. After it: hash again, write what was learned
and a manifest. A finished stage is a folder with `manifest.json`; an unfinished one goes on from its latest checkpoint, and ends
with the very numbers of a run that was never stopped.
"""

import hashlib
import math
import platform
import signal
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor, nn

from polyphi import dist, logs
from polyphi.batch import Batch
from polyphi.data.loader import Loader, Step
from polyphi.data.packing import deal, split
from polyphi.data.shards import Sample
from polyphi.model.multimodal import PhiModel
from polyphi.train import checkpoint
from polyphi.train.optim import groups, optimiser, set_rate
from polyphi.train.parallel import sum_gradients
from polyphi.train.stage import Budget, Stage, claim

MANIFEST, TRAINED, METRICS = "manifest.json", "trained.safetensors", "metrics.jsonl"


def train(
    stage: Stage,
    budget: Budget,
    model: PhiModel,
    processor: Any,
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    precision: Literal["bf16", "fp32"] = "bf16",
    micro_tokens: int = 8192,
    origins: Mapping[str, str] | None = None,
    checkpoint_seconds: float = 60.0,
    tell: Callable[[Any], None] = print,
) -> dict[str, Any]:
    """Run a stage from the start weights in `model` and leave it trained; returns the manifest in `out`.

    `data` holds the corpora of the mix, `origins` says for each tensor which stage its start weights came from,
    `micro_tokens` bounds a pack (memory, never the result's meaning). Raises ValueError if a checkpoint in `out` belongs to another
    run, RuntimeError if the loss stops being finite, if a named group gets no gradient or a frozen tensor changes.
    """
    device = next(model.parameters()).device
    out.mkdir(parents=True, exist_ok=True)
    objective = stage.objective
    state = objective.begin(model)
    module = objective.build(model, processor, seed=seed)
    parameters = _freeze(stage, model, module)
    learned = {name: p for name, p in parameters.items() if p.requires_grad}
    names = {id(p): name for name, p in learned.items()}
    adamw = optimiser(stage, parameters, budget.rate)
    frozen = checkpoint.digests(_frozen(model, learned))
    table = who_learns(stage, budget, parameters, origins or {})

    def stream(start: int) -> Loader:
        rows = _row_maker(stage, budget, model, processor)
        return Loader(stage.data.weights, data, rows, batch_tokens=budget.batch_tokens, seed=seed, start=start)

    loader = stream(0)
    identity = _identity(stage, budget, seed, precision, loader)

    done, seconds, counters = 0, 0.0, Counter[str]()
    if (stored := checkpoint.load(out / "checkpoints")) is not None:
        tensors, before = stored
        _same_run(identity, frozen, before, out)
        done, seconds, counters = before["step"], before["seconds"], Counter(before["counters"])
        with torch.no_grad():
            for name, p in learned.items():
                p.copy_(tensors[f"parameter/{name}"])
        checkpoint.restore_optimiser(adamw, names, tensors)
        loader = stream(before["draws"])
        tell(f"  goes on from step {done} of {budget.steps}")
    else:
        tell(_as_table(table))

    def save(step: int, draws: int) -> None:
        if dist.rank() == 0:
            tensors = {f"parameter/{name}": p for name, p in learned.items()}
            tensors |= checkpoint.optimiser_tensors(adamw, names)
            extra = {"draws": draws, "seconds": seconds + time.monotonic() - started, "counters": dict(counters)}
            checkpoint.save(out / "checkpoints", step, tensors, {"identity": identity, "frozen": frozen, **extra})

    model.train()
    metrics = logs.Metrics(out / METRICS, until=done)
    started = last_save = time.monotonic()
    with _Interruptible() as interrupted, logs.progress(stage.name, budget.steps, done) as advance:
        for number, step in enumerate(loader.ahead(budget.steps - done), start=done):
            torch.manual_seed(zlib.crc32(f"{seed} {stage.name} {number} {dist.rank()}".encode()))  # dropout
            record = _step(stage, model, module, state, step, precision, micro_tokens, device)
            if number == done:
                _check_gradients(stage, parameters)
            record |= _update(stage, adamw, learned, stage.schedule.factor(number, budget.steps), record.pop("count"))
            counters.update({k: record[k] for k in ("tokens", "supervised", "crops", "frames", "skipped")})
            counters["samples"] += len(step.ids)
            if not math.isfinite(record["loss"]):
                raise RuntimeError(f"{stage.name}: the loss is {record['loss']} at step {number}; its samples: {step.ids[:8]}")
            metrics.write({"step": number, **record})
            advance(number + 1, f"loss {record['loss']:.3f}")
            if interrupted() or time.monotonic() - last_save > checkpoint_seconds:
                save(number + 1, step.draws)
                last_save = time.monotonic()
            if interrupted():
                raise KeyboardInterrupt
    seconds += time.monotonic() - started
    metrics.close()
    model.eval()

    after = checkpoint.digests(_frozen(model, learned))
    if changed := [name for name in frozen if after[name] != frozen[name]]:
        raise RuntimeError(f"{stage.name} changed frozen tensors: {', '.join(changed[:5])} ({len(changed)} in all)")
    records = logs.read_metrics(out / METRICS)
    manifest = {
        **identity,
        "code": code_revision(),
        "parents": dict(Counter((origins or {}).values())),
        "who_learns": table,
        "steps": budget.steps,
        "seconds": round(seconds, 1),
        "counters": dict(counters),
        "loss": {"first": records[0]["loss"] if records else None, "last": _mean([r["loss"] for r in records[-10:]])},
        "frozen": {name: [frozen[name], after[name]] for name in frozen},
        "trained": checkpoint.digests(learned.items()),
        "environment": {"torch": torch.__version__, "python": platform.python_version(), "processes": dist.world()},
    }
    if dist.rank() == 0:
        checkpoint.write_tensors(out / TRAINED, learned, {"stage": stage.name, "code": manifest["code"]})
        logs.plot_loss(records, out / "loss.png", stage.name)
        checkpoint.write_json(out / MANIFEST, manifest)
        checkpoint.drop(out / "checkpoints")
    return manifest


# ---------------------------------------------------------------------------------------------- one step


def _step(
    stage: Stage,
    model: PhiModel,
    module: nn.Module | None,
    state: Any,
    step: Step,
    precision: str,
    micro_tokens: int,
    device: torch.device,
) -> dict[str, Any]:
    """Forward and backward of a step's packs: gradients are sums over units; the record holds sums over all processes."""
    sums: defaultdict[str, float] = defaultdict(float)
    for pack in split(deal(step.samples, dist.rank(), dist.world()), micro_tokens):
        batch = pack.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss, count, extra = stage.objective.loss(model, module, state, batch)
        loss.backward()
        sums["loss"] += loss.item()
        sums["count"] += count
        sums["tokens"] += len(batch)
        sums["supervised"] += 0 if batch.supervised is None else len(batch.supervised)
        sums["crops"] += 0 if batch.crops is None else len(batch.crops)
        sums["frames"] += 0 if batch.mels is None else len(batch.mels)
        for key, value in extra.items():
            sums[key] += float(value)
    if dist.world() > 1:
        keys = sorted(sums)  # the same on every rank only if every rank has packs; a step has more samples than ranks
        values = dist.total(torch.tensor([sums[k] for k in keys], dtype=torch.float64))
        sums.update(zip(keys, values.tolist(), strict=True))
    whole = ("count", "tokens", "supervised", "crops", "frames")
    record = {k: int(v) if k in whole else v / max(1, sums["count"]) for k, v in sums.items()}
    return {**record, "skipped": step.skipped, "ids": step.fingerprint()}


def _update(stage: Stage, adamw: torch.optim.AdamW, learned: dict[str, Tensor], factor: float, count: int) -> dict[str, float]:
    """Gradients of sums become gradients of means, are clipped, and move the weights."""
    parameters = list(learned.values())
    sum_gradients(parameters)
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1 / max(1, count))
    norm = nn.utils.clip_grad_norm_(parameters, stage.clip_norm)
    set_rate(adamw, factor)
    adamw.step()
    adamw.zero_grad(set_to_none=True)
    return {"rate": factor, "gradient_norm": float(norm)}


# ---------------------------------------------------------------------------------------------- who learns


def _freeze(stage: Stage, model: PhiModel, module: nn.Module | None) -> dict[str, Tensor]:
    """All parameters by name, `objective.` before the throw-away module's; only what `learn` names requires gradients."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if module is not None:
        parameters |= {f"objective.{name}": p for name, p in module.named_parameters()}
    chosen = claim(stage.learn, parameters)
    for name, p in parameters.items():
        p.requires_grad_(name in chosen)
        p.grad = None
    return parameters


def _frozen(model: PhiModel, learned: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Everything a stage must not touch: parameters it doesn't learn, and buffers."""
    return [(n, t) for n, t in model.state_dict(keep_vars=True).items() if n not in learned]


def _check_gradients(stage: Stage, parameters: Mapping[str, Tensor]) -> None:
    """After the first backward: every group that learns has a gradient, nothing else has one."""
    for glob, names in groups(stage, dict(parameters)).items():
        if not any(g is not None and bool(g.any()) for g in (parameters[n].grad for n in names)):
            raise RuntimeError(f"{stage.name}: {glob!r} is to be learned, but its {len(names)} tensors got no gradient")
    if leaks := [n for n, p in parameters.items() if p.grad is not None and not p.requires_grad]:
        raise RuntimeError(f"{stage.name}: frozen tensors got gradients: {', '.join(leaks[:5])}")


def who_learns(
    stage: Stage, budget: Budget, parameters: dict[str, Tensor], origins: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row per glob of `learn`, and one for all that rests: parameters, peak rate, where the weights came from."""
    rows = []
    chosen = groups(stage, parameters)
    resting = [n for n in parameters if n not in {m for names in chosen.values() for m in names}]
    for glob, names in [*chosen.items(), ("(frozen)", resting)]:
        sources = sorted({origins.get(n, "fresh") for n in names})
        rate = stage.learn[glob] * budget.rate if glob in stage.learn else 0.0
        rows.append({"module": glob, "parameters": sum(parameters[n].numel() for n in names), "rate": rate, "from": sources})
    return rows


def _as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("who learns", "parameters", "peak rate", "weights from", box=None, padding=(0, 2))
    for r in rows:
        rate = f"{r['rate']:.1e}" if r["rate"] else "rests"
        table.add_row(r["module"], f"{r['parameters']:,}", rate, ", ".join(r["from"]))
    return table


# ---------------------------------------------------------------------------------------------- rows, identity, interruption


def _row_maker(stage: Stage, budget: Budget, model: PhiModel, processor: Any) -> Callable[[str, Sample], list[Batch]]:
    """Rows as the stage's objective makes them; an adapter that the model doesn't have yet (before its stage) is none."""
    known = model.config.adapters

    def rows(corpus: str, sample: Sample) -> list[Batch]:
        made = stage.objective.rows(sample, processor, budget.context, stage.data.adapter.get(corpus, "auto"))
        return [replace(row, adapters=tuple(a if a in known else None for a in row.adapters)) for row in made]

    return rows


def _identity(stage: Stage, budget: Budget, seed: int, precision: str, loader: Loader) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued."""
    return {
        "stage": stage.name,
        "budget": asdict(budget),
        "seed": seed,
        "precision": precision,
        "learn": dict(stage.learn),
        "mix": dict(stage.data.weights),
        "objective": repr(stage.objective),
        "data": {name: [s["sha256"] for s in m["shards"]] for name, m in loader.manifests.items()},
    }


def _same_run(identity: dict[str, Any], frozen: dict[str, str], before: dict[str, Any], out: Path) -> None:
    for key, value in identity.items():
        if before["identity"].get(key) != value:
            raise ValueError(
                f"the checkpoint in {out} was made with {key} {before['identity'].get(key)!r}, now it is {value!r}; "
                "use another folder, or remove the checkpoint to start the stage again"
            )
    if changed := [n for n in frozen if before["frozen"].get(n) != frozen[n]]:
        raise ValueError(f"the checkpoint in {out} started from other weights: {', '.join(changed[:3])} differ ({len(changed)} in all)")


@cache
def code_revision() -> str:
    """SHA-256 of the package's sources: which code made a result."""
    hasher = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        hasher.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return hasher.hexdigest()


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


class _Interruptible:
    """Ctrl-C (and SIGTERM) asks once: the step is finished and saved. A second one stops at once."""

    def __enter__(self) -> Callable[[], bool]:
        self._asked = False
        self._old: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return lambda: self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
