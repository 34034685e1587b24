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
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rich
import torch

from polyphi import dist, logs
from polyphi.batch import Batch
from polyphi.data import workers as processes
from polyphi.data.fresh import Fresh
from polyphi.data.loader import Loader
from polyphi.data.packing import Room
from polyphi.model.multimodal import PhiModel
from polyphi.runtime.heap import give_back
from polyphi.runtime.precision import Choice, Requested, products
from polyphi.train import checkpoint, parallel, resume
from polyphi.train.alignment import in_words
from polyphi.train.features import kept_features
from polyphi.train.freeze import (
    as_table,
    freeze,
    frozen,
    hashes,
    named,
    who_learns,
)
from polyphi.train.guard import Guard
from polyphi.train.interrupt import Interruptible
from polyphi.train.loss import NextToken
from polyphi.train.memory import Activations, activations
from polyphi.train.reference import REFERENCE, References
from polyphi.train.resume import CHECKPOINTS, MANIFEST, METRICS, TRAINED
from polyphi.train.run import Run, Tell
from polyphi.train.stage import Budget, Stage

TRIM_SECONDS = 5
"""Time between two returns of free heap to the system. Without them text 3 of the nano size took 2.4 GB after 450
steps, with one every 20 s 1.5 to 1.85 GB; one takes 60 ms (LOG.md)."""


def train(
    stage: Stage,
    budget: Budget,
    model: PhiModel,
    processor: Any,
    data: Path | str,
    out: Path,
    *,
    fresh: Mapping[str, Fresh] = {},
    seed: int = 0,
    precision: Requested | Choice = "auto",
    micro_tokens: int = 8192,
    micro_crops: int | None = None,
    micro_frames: int | None = None,
    workers: int | None = None,
    shard: int = 1,
    context: int = 1,
    keep: Activations = "keep",
    features: Path | None = None,
    deterministic: bool = False,
    protect: Guard = Guard(),  # noqa: B008 - frozen
    origins: Mapping[str, str] | None = None,
    checkpoint_seconds: float = 60.0,
    background: bool = False,
    watch: Callable[[PhiModel], Mapping[str, float]] | None = None,
    watch_steps: int = 0,
    trackers: Sequence[logs.Tracker] = (),
    flops: Callable[[Batch], float] | None = None,
    peak_flops: float | None = None,
    tell: Tell = rich.print,
) -> dict[str, Any]:
    """Run a stage from the start weights in `model` and leave it trained; returns the manifest, which `out` then
    holds.

    `data`, a folder or an address (data/shards.py), holds the corpora of the mix but for those that are `fresh`
    (data/fresh.py); `origins` says for each tensor which stage its start weights came from. `precision` "auto" keeps
    that of the stage in `out`, or takes what this machine is fast in (runtime/precision.py); a `Choice` is one that the
    caller has made and reported. `micro_tokens`, `micro_crops` and `micro_frames` bound a pack, `shard` cuts the
    decoder's layers into so many parts over processes and `context` each pack of a language model, `keep` says what
    becomes of activations: memory, never the result's meaning. `workers` processes make the rows (None: none on a CPU,
    some beside a GPU). `features` is a folder where outputs of encoders that rest are kept from one epoch to the next.
    `deterministic` has torch choose only kernels that give the same bits every time, where a GPU has others. `protect`
    says what happens when a step goes wrong, `background` writes checkpoints beside the training. `watch(model)` is
    measured every `watch_steps` steps; `trackers` get every record. `flops(pack)` counts a pack's FLOPs, of which a
    process can do `peak_flops` a second: then records say how many were done, and at which share of the peak. A
    finished stage in `out` is only loaded.

    Raises ValueError if `out` belongs to another run; Diverged if steps go wrong again and again; RuntimeError if a
    named group gets no gradient or a frozen tensor changes; KeyboardInterrupt after Ctrl-C, with a checkpoint of the
    last whole step.
    """
    dist.start()
    _must_spread(stage, context)
    tell = tell if dist.rank() == 0 else _silence
    out.mkdir(parents=True, exist_ok=True)
    module = stage.objective.build(model, processor, seed=seed)
    module = module.to(next(model.parameters()).device) if module is not None else None
    parameters = freeze(stage, model, module)
    apart = not getattr(stage.objective, "together", False)
    loader = Loader(
        stage.data.weights,
        data,
        row_maker(stage, budget, model, processor),
        batch_tokens=budget.batch_tokens,
        seed=seed,
        curriculum=stage.data.curriculum,
        late=stage.data.late,
        fresh=fresh,
        workers=processes.default(next(model.parameters()).device) if workers is None else workers,
        rank=dist.rank() // context if apart else 0,
        world=dist.world() // context if apart else 1,
        exchange=lambda said: dist.everyones(said)[::context],
    )
    choice = resume.choose_precision(
        precision,
        out,
        next(model.parameters()).device,
        lambda: products((p.shape, p.requires_grad) for p in model.parameters()),
        min(micro_tokens, budget.batch_tokens),
    )
    identity = resume.identity(stage, budget, seed, choice.precision, loader)
    if (out / MANIFEST).exists():
        return resume.finished(out, identity, parameters)

    reference = stage.objective.begin(model)
    if isinstance(reference, References):
        if protect.then == "roll-back":
            raise ValueError(
                f"{stage.name} reads the pairs that its reference was asked about, and no others, as a step back would "
                "have it; let wrong steps be skipped"
            )
        asked_of = {**identity, "start": hashes(parameters)}
    if shard > 1:
        parallel.shard(model, choice.precision, shard)
        parameters = named(model, module)
    run = Run(
        stage,
        budget,
        (parallel.spread(model, context), module, reference),
        parameters,
        loader,
        out,
        seed=seed,
        precision=choice,
        room=Room(micro_tokens, micro_crops, micro_frames),
        flops=flops,
        peak_flops=peak_flops,
        tell=tell,
    )
    if isinstance(reference, References):
        run.look_ahead(reference, asked_of)
    resting = hashes(frozen(model, parameters))
    table = who_learns(stage, budget, parameters, origins or {})
    if run.resume(checkpoint.Checkpoints(out / CHECKPOINTS, background), identity, resting):
        tell(f"  goes on from step {run.past.step} of {budget.steps}")
    else:
        tell(as_table(table))
    if choice is not precision:
        tell(f"  precision {choice}")

    model.train()
    clock = last_save = last_trim = time.monotonic()
    with (
        run,
        Interruptible() as interrupted,
        _reproducible(deterministic),
        activations(model, keep),
        kept_features(model, features, choice.precision),
        logs.progress(stage.name, budget.steps, run.past.step, dist.rank() > 0) as advance,
    ):
        while run.past.step < budget.steps:
            step = run.next_step()
            if (record := run.take(step, protect)) is None:  # it went wrong
                if protect.then == "roll-back":
                    run.roll_back()
                continue
            seconds, clock = time.monotonic() - clock, time.monotonic()
            record |= run.count(step, record, seconds)
            if watch is not None and watch_steps and run.past.step % watch_steps == 0:
                record["watch"] = _watched(watch, model)
            run.write(record, trackers)
            advance(run.past.step, f"loss {record['loss']:.3f}")
            if clock - last_trim > TRIM_SECONDS:
                give_back()
                last_trim = clock
            due = time.monotonic() - last_save > checkpoint_seconds
            stop, due = dist.anyone(interrupted(), due, device=run.device)
            if stop or due:
                run.save()
                last_save = time.monotonic()
            if stop:
                run.checkpoints.wait()
                raise KeyboardInterrupt
        run.checkpoints.wait()
        asked = interrupted()  # too late for the loop: the stage is finished first
    model.eval()
    run.hand_on()
    after = hashes(frozen(model, parameters))
    if changed := [name for name in resting if after[name] != resting[name]]:
        raise RuntimeError(
            f"{stage.name} changed frozen tensors: {', '.join(changed[:5])} ({len(changed)} in all)"
        )
    trained = {name: parallel.whole(p) for name, p in run.learned.items()}
    records = logs.read_metrics(out / METRICS) if dist.rank() == 0 else []
    manifest = {
        **identity,
        resume.REASON: choice.reason,
        "code": code_revision(),
        "parents": dict(Counter((origins or {}).values())),
        "who_learns": table,
        "steps": budget.steps,
        "seconds": round(run.past.seconds, 1),
        "counters": run.past.counters,
        "set_aside": run.past.set_aside,
        "wrong_steps": run.past.wrong_steps,
        "rolled_back": run.past.rolled_back,
        "loss": {
            "first": records[0]["loss"] if records else None,
            "last": _mean([r["loss"] for r in records[-10:]]),
        },
        "frozen": {name: [resting[name], after[name]] for name in resting},
        "trained": checkpoint.digests(trained.items()),
        "environment": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "device": str(run.device),
            "processes": dist.world(),
            "threads": torch.get_num_threads(),
            "deterministic": deterministic,
        },
    }
    if dist.rank() == 0:
        checkpoint.write_tensors(
            out / TRAINED, trained, {"stage": stage.name, "code": manifest["code"]}
        )
        logs.plot_loss(records, out / "loss.png", stage.name)
        checkpoint.write_json(out / MANIFEST, manifest)
        run.checkpoints.drop()
        (out / REFERENCE).unlink(missing_ok=True)
    dist.wait()
    if asked:
        raise KeyboardInterrupt
    return manifest


def _must_spread(stage: Stage, context: int) -> None:
    """Raise ValueError where packs can't be cut over so many processes."""
    if context > 1 and not isinstance(stage.objective, NextToken):
        raise ValueError(
            f"{stage.name} compares whole rows: its packs can't be cut over processes; leave --context at 1"
        )
    if dist.world() % context:
        raise ValueError(f"{dist.world()} processes can't be cut into groups of {context}")


def _watched(watch: Callable[[PhiModel], Mapping[str, float]], model: PhiModel) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        found = dict(watch(model))
    model.train()
    return found


# ------------------------------------------------------------------------------ rows, interruption


def row_maker(
    stage: Stage, budget: Budget, model: PhiModel, processor: Any
) -> Callable[[str, Any], list[Batch]]:
    """Rows as the objective makes them; an adapter that the model lacks as yet (vision_1, speech_1) is none."""
    known = model.config.adapters

    def rows(corpus: str, sample: Any) -> list[Batch]:
        adapter = stage.data.adapter.get(corpus, "auto")
        made = stage.objective.rows(sample, processor, budget.context, adapter)
        if corpus in stage.data.in_words:
            made = [in_words(row, sample, processor) for row in made]
        return [
            dataclasses.replace(
                row, adapters=tuple(a if a in known else None for a in row.adapters)
            )
            for row in made
        ]

    return rows


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


@contextlib.contextmanager
def _reproducible(wanted: bool) -> Iterator[None]:
    """Meanwhile torch chooses only kernels that give the same bits every time, and says so where it has none."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
