"""ONE loop for every stage.

    for each step: rows from the mix -> loss of every pack -> backward
                   divide by the global count of supervised tokens -> clip -> AdamW
                   once in a while: log, checkpoint, watch

Before it: freeze what the stage doesn't name, say who learns, hash what is frozen. After it: hash again, write what
was learned and a manifest. A finished stage is a folder with `manifest.json`; an unfinished one goes on from its
latest checkpoint, and ends with the very numbers of a run that was never stopped.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import platform
import signal
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import rich
import torch
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

from polyphi import dist, logs
from polyphi.batch import Batch
from polyphi.data.loader import Loader, Step
from polyphi.data.packing import Pack, deal
from polyphi.model.multimodal import PhiModel
from polyphi.train import checkpoint, parallel
from polyphi.train.optim import groups, optimiser, set_rate
from polyphi.train.stage import Budget, Stage, claim

MANIFEST, TRAINED, METRICS, CHECKPOINTS = (
    "manifest.json",
    "trained.safetensors",
    "metrics.jsonl",
    "checkpoints",
)
COUNTED = ("tokens", "supervised", "crops", "frames")
Tell = Callable[[Any], None]


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
    shard: bool = False,
    origins: Mapping[str, str] | None = None,
    checkpoint_seconds: float = 60.0,
    watch: Callable[[PhiModel], Mapping[str, float]] | None = None,
    watch_steps: int = 0,
    tell: Tell = rich.print,
) -> dict[str, Any]:
    """Run a stage from the start weights in `model` and leave it trained; returns the manifest, which `out` then
    holds.

    `data` holds the corpora of the mix, `origins` says for each tensor which stage its start weights came from.
    `micro_tokens` bounds a pack and `shard` spreads the decoder's layers over processes: memory, never the result's
    meaning. `watch(model)` is measured every `watch_steps` steps. A finished stage in `out` is only loaded.

    Raises ValueError if `out` belongs to another run; RuntimeError if the loss stops being finite, a named group gets
    no gradient or a frozen tensor changes; KeyboardInterrupt after Ctrl-C, with a checkpoint of the last whole step.
    """
    dist.start()
    first = dist.rank() == 0
    tell = tell if first else _silence
    device = next(model.parameters()).device
    out.mkdir(parents=True, exist_ok=True)
    module = stage.objective.build(model, processor, seed=seed)
    module = module.to(device) if module is not None else None
    parameters = _freeze(stage, model, module)
    loader = Loader(
        stage.data.weights,
        data,
        _row_maker(stage, budget, model, processor),
        batch_tokens=budget.batch_tokens,
        seed=seed,
        curriculum=stage.data.curriculum,
        late=stage.data.late,
    )
    identity = _identity(stage, budget, seed, precision, loader)
    if (out / MANIFEST).exists():
        return _finished(out, identity, parameters)

    reference = stage.objective.begin(model)
    if shard:
        for sharded in (model, reference):
            if isinstance(sharded, PhiModel):
                parallel.shard(sharded, precision)
        parameters = _named(model, module)
    learned = {name: p for name, p in parameters.items() if p.requires_grad}
    adamw = optimiser(stage, parameters, budget.rate)
    frozen = _digests(_frozen(model, parameters))
    table = who_learns(stage, budget, parameters, origins or {})
    past = _Past()
    if (stored := checkpoint.load(out / CHECKPOINTS)) is not None:
        past = _resume(stored, out, identity=identity, frozen=frozen, learned=learned, adamw=adamw)
        loader.restore(past.draws)
        stored = None  # its memory
        tell(f"  goes on from step {past.step} of {budget.steps}")
    else:
        tell(_as_table(table))

    def save() -> None:
        tensors = {f"parameter/{name}": p for name, p in learned.items()}
        tensors |= checkpoint.optimiser_tensors(adamw, {id(p): name for name, p in learned.items()})
        tensors = {name: parallel.whole(t) for name, t in tensors.items()}  # all processes together
        if first:
            extra = {"identity": identity, "frozen": frozen, **dataclasses.asdict(past)}
            checkpoint.save(out / CHECKPOINTS, past.step, tensors, extra)

    model.train()
    metrics = logs.Metrics(out / METRICS, until=past.step) if first else None
    clock = last_save = time.monotonic()
    with (
        _Interruptible() as interrupted,
        logs.progress(stage.name, budget.steps, past.step, quiet=not first) as advance,
        contextlib.closing(_steps(loader, budget.steps - past.step, device)) as steps,
    ):
        for number, step in enumerate(steps, start=past.step):
            past.tell_skipped(step, tell)
            torch.manual_seed(
                zlib.crc32(f"{seed} {stage.name} {number} {dist.rank()}".encode())
            )  # dropout
            packs = deal(
                step.samples,
                micro_tokens,
                dist.rank(),
                dist.world(),
                getattr(stage.objective, "together", False),
            )
            record = _gradients(
                stage, (model, module, reference), packs, precision=precision, device=device
            )
            _must_be_finite("loss", record["loss"], stage, number, step)
            parallel.sum_gradients(list(learned.values()))
            if number == 0:
                _check_gradients(stage, parameters, device)
            norm = parallel.clip_gradients(
                list(learned.values()), 1 / max(1, record["count"]), stage.clip_norm
            ).item()
            _must_be_finite("gradient norm", norm, stage, number, step)
            rate = set_rate(adamw, stage.schedule.factor(number, budget.steps))
            adamw.step()
            adamw.zero_grad(set_to_none=True)

            seconds, clock = time.monotonic() - clock, time.monotonic()
            past.count(step, record, seconds)
            record |= {
                "rate": rate,
                "gradient_norm": norm,
                "tokens_per_second": round(record["tokens"] / seconds, 1),
            }
            record |= {"skipped": len(step.skipped), "ids": step.fingerprint()}
            if watch is not None and watch_steps and past.step % watch_steps == 0:
                record["watch"] = _watched(watch, model)
            if metrics is not None:
                metrics.write({"step": number, **record})
            advance(past.step, f"loss {record['loss']:.3f}")
            due = first and time.monotonic() - last_save > checkpoint_seconds
            stop, due = dist.anyone(interrupted(), due, device=device)
            if stop or due:
                save()
                last_save = time.monotonic()
            if stop:
                raise KeyboardInterrupt
    model.eval()

    after = _digests(_frozen(model, parameters))
    if changed := [name for name in frozen if after[name] != frozen[name]]:
        raise RuntimeError(
            f"{stage.name} changed frozen tensors: {', '.join(changed[:5])} ({len(changed)} in all)"
        )
    trained = {name: parallel.whole(p) for name, p in learned.items()}
    records = logs.read_metrics(out / METRICS) if first else []
    manifest = {
        **identity,
        "code": code_revision(),
        "parents": dict(Counter((origins or {}).values())),
        "who_learns": table,
        "steps": budget.steps,
        "seconds": round(past.seconds, 1),
        "counters": past.counters,
        "loss": {
            "first": records[0]["loss"] if records else None,
            "last": _mean([r["loss"] for r in records[-10:]]),
        },
        "frozen": {name: [frozen[name], after[name]] for name in frozen},
        "trained": checkpoint.digests(trained.items()),
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(device),
            "processes": dist.world(),
            "threads": torch.get_num_threads(),
        },
    }
    if metrics is not None:
        metrics.close()
        checkpoint.write_tensors(
            out / TRAINED, trained, {"stage": stage.name, "code": manifest["code"]}
        )
        logs.plot_loss(records, out / "loss.png", stage.name)
        checkpoint.write_json(out / MANIFEST, manifest)
        checkpoint.drop(out / CHECKPOINTS)
    dist.wait()
    return manifest


def _steps(loader: Loader, count: int, device: torch.device) -> Generator[Step, None, None]:
    """The next steps: made ahead by a thread while a GPU trains. On a CPU there is no core to spare for it, and two
    threads that wait for Python's one lock take turns of 5 ms: training took half as long again."""
    return (loader.step() for _ in range(count)) if device.type == "cpu" else loader.ahead(count)


@dataclasses.dataclass
class _Past:
    """What a run has behind it: steps, draws, seconds, counters (tokens, samples, crops ... and samples left out by
    corpus)."""

    step: int = 0
    draws: int = 0
    seconds: float = 0.0
    counters: dict[str, int] = dataclasses.field(default_factory=dict)

    def count(self, step: Step, record: Mapping[str, Any], seconds: float) -> None:
        """A step is done."""
        self.step += 1
        self.seconds += seconds
        self.draws = step.draws
        found = Counter({key: record[key] for key in COUNTED})
        found.update({"samples": len(step.ids), "skipped": len(step.skipped)})
        found.update(f"skipped {corpus}" for corpus, _ in step.skipped)
        for key, value in found.items():
            self.counters[key] = self.counters.get(key, 0) + value

    def tell_skipped(self, step: Step, tell: Tell) -> None:
        """The first sample of each corpus that is left out is worth a line."""
        for corpus, reason in {corpus: reason for corpus, reason in reversed(step.skipped)}.items():
            if f"skipped {corpus}" not in self.counters:
                tell(f"  samples of {corpus} are left out, the first: {reason}")


# ------------------------------------------------------------------------------ one step


def _gradients(
    stage: Stage,
    learners: tuple[PhiModel, nn.Module | None, Any],
    packs: Iterable[Pack],
    *,
    precision: str,
    device: torch.device,
) -> dict[str, Any]:
    """Forward and backward of a step's packs (`learners`: model, throw-away module, reference): gradients are sums
    over units, the record holds sums over all processes and, for losses and the objective's metrics, means over
    units."""
    sums: defaultdict[str, Any] = defaultdict(float)
    for pack in packs:
        batch, share = pack.batch.to(device), pack.share
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss, count, extra = stage.objective.loss(*learners, batch)
        (loss if share == 1 else loss * share).backward()
        found = {"loss": loss.detach().double(), "count": count, "tokens": len(batch), **extra}
        for key, field in (
            ("supervised", batch.supervised),
            ("crops", batch.crops),
            ("frames", batch.mels),
        ):
            found[key] = 0 if field is None else len(field)
        for key, value in found.items():
            sums[key] += share * value
    keys = sorted(sums)  # the same in every process: each has at least one pack
    values = torch.stack(
        [torch.as_tensor(sums[key], dtype=torch.float64).to(device) for key in keys]
    )
    whole = dict(zip(keys, dist.total(values).tolist(), strict=True))
    count = max(1, round(whole["count"]))
    return {
        key: round(value) if key in ("count", *COUNTED) else value / count
        for key, value in whole.items()
    }


def _must_be_finite(what: str, value: float, stage: Stage, number: int, step: Step) -> None:
    if not math.isfinite(value):
        few = ", ".join(step.ids[:20]) + (
            f" and {len(step.ids) - 20} more" if len(step.ids) > 20 else ""
        )
        raise RuntimeError(
            f"{stage.name}: the {what} is {value} at step {number}; lower the rates of `learn`, "
            f"or look at the samples: {few}"
        )


def _watched(watch: Callable[[PhiModel], Mapping[str, float]], model: PhiModel) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        found = dict(watch(model))
    model.train()
    return found


# ------------------------------------------------------------------------------ who learns


def _named(model: PhiModel, module: nn.Module | None) -> dict[str, Tensor]:
    """All parameters by name, `objective.` before the throw-away module's."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if module is not None:
        parameters |= {f"objective.{name}": p for name, p in module.named_parameters()}
    return parameters


def _freeze(stage: Stage, model: PhiModel, module: nn.Module | None) -> dict[str, Tensor]:
    """All parameters by name; only what `learn` names requires gradients."""
    parameters = _named(model, module)
    chosen = claim(stage.learn, parameters)
    for name, p in parameters.items():
        p.requires_grad_(name in chosen)
        p.grad = None
    return parameters


def _frozen(model: PhiModel, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything a stage must not touch: parameters it doesn't learn, and buffers."""
    resting = {n: p for n, p in parameters.items() if not p.requires_grad}
    return resting | {
        n: t for n, t in model.state_dict(keep_vars=True).items() if n not in parameters
    }


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return checkpoint.digests((name, parallel.whole(t)) for name, t in tensors.items())


def _check_gradients(stage: Stage, parameters: dict[str, Tensor], device: torch.device) -> None:
    """After the first backward: every group that learns has a gradient, nothing else has one."""
    by_glob = groups(stage, parameters)
    found = [any(parallel.has_gradient(parameters[n]) for n in names) for names in by_glob.values()]
    for (glob, names), good in zip(
        by_glob.items(), dist.anyone(*found, device=device), strict=True
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


def _as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("who learns", "parameters", "peak rate", "weights from", box=None, padding=(0, 2))
    for r in rows:
        rate = f"{r['rate']:.1e}" if r["rate"] else "rests"
        table.add_row(r["module"], f"{r['parameters']:,}", rate, ", ".join(r["from"]))
    return table


# ------------------------------------------------------------------------------ rows, identity, interruption


def _row_maker(
    stage: Stage, budget: Budget, model: PhiModel, processor: Any
) -> Callable[[str, Any], list[Batch]]:
    """Rows as the objective makes them; an adapter that the model lacks as yet (vision_1, speech_1) is none."""
    known = model.config.adapters

    def rows(corpus: str, sample: Any) -> list[Batch]:
        adapter = stage.data.adapter.get(corpus, "auto")
        made = stage.objective.rows(sample, processor, budget.context, adapter)
        return [
            dataclasses.replace(
                row, adapters=tuple(a if a in known else None for a in row.adapters)
            )
            for row in made
        ]

    return rows


def _identity(
    stage: Stage, budget: Budget, seed: int, precision: str, loader: Loader
) -> dict[str, Any]:
    """What must be equal for a run to be continued, as JSON gives it back."""
    value = {
        "stage": stage.name,
        "budget": dataclasses.asdict(budget),
        "seed": seed,
        "precision": precision,
        "learn": dict(stage.learn),
        "mix": dict(stage.data.weights),
        "adapter": dict(stage.data.adapter),
        "curriculum": stage.data.curriculum,
        "late": dict(stage.data.late),
        "objective": repr(stage.objective),
        "schedule": dataclasses.asdict(stage.schedule),
        "optimiser": {
            "weight_decay": stage.weight_decay,
            "betas": stage.betas,
            "clip_norm": stage.clip_norm,
        },
        "data": {name: [s["sha256"] for s in m["shards"]] for name, m in loader.manifests.items()},
    }
    if stage.adapters:
        value["adapters"] = {name: repr(a) for name, a in stage.adapters.items()}
    identity: dict[str, Any] = json.loads(json.dumps(value))
    return identity


def _same_run(identity: Mapping[str, Any], before: Mapping[str, Any], out: Path) -> None:
    for key, value in identity.items():
        if before.get(key) != value:
            raise ValueError(
                f"{out} holds a run made with {key} {before.get(key)!r}, now it is {value!r}; "
                "use another folder, or remove that one to start the stage again"
            )


def _resume(
    stored: tuple[dict[str, Tensor], dict[str, Any]],
    out: Path,
    *,
    identity: Mapping[str, Any],
    frozen: Mapping[str, str],
    learned: Mapping[str, Tensor],
    adamw: torch.optim.AdamW,
) -> _Past:
    """Put a checkpoint's tensors in place, if it is of this very run."""
    tensors, before = stored
    _same_run(identity, before["identity"], out)
    names = {*frozen, *before["frozen"]}
    if changed := sorted(n for n in names if before["frozen"].get(n) != frozen.get(n)):
        raise ValueError(
            f"the checkpoint in {out} started from other weights: {len(changed)} of {len(names)} frozen tensors "
            f"differ, such as {', '.join(changed[:3])}; give it its parents back, or remove {out} to start again"
        )
    with torch.no_grad():
        for name, p in learned.items():
            p.copy_(parallel.like(tensors[f"parameter/{name}"], p))
    checkpoint.restore_optimiser(
        adamw, {id(p): name for name, p in learned.items()}, tensors, parallel.like
    )
    return _Past(**{f.name: before[f.name] for f in dataclasses.fields(_Past)})


def _finished(
    out: Path, identity: Mapping[str, Any], parameters: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The manifest of a stage that is done; its tensors are put in place."""
    manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text())
    _same_run(identity, manifest, out)
    with torch.no_grad():
        for name, tensor in load_file(out / TRAINED).items():
            parameters[name].copy_(tensor)
    return manifest


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


def _silence(_: Any) -> None:
    """Processes but the first say nothing."""


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
