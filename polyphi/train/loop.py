"""The training loop, the same for every stage.

    for each step: rows from the mix -> loss of every pack -> backward
                   divide by the global count of supervised tokens -> clip -> AdamW      (trainer.py)
                   once in a while: log, checkpoint, watch

Before it: freeze all parameters that the stage doesn't name, print the trainable ones, hash the frozen ones. After it:
hash them again, write the trained tensors and a manifest. A finished stage is a folder with `manifest.json`; an
unfinished one resumes from its latest checkpoint and gives exactly the results of a run that was never stopped.
"""

import contextlib
import dataclasses
import hashlib
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyphi.batch import Batch
from polyphi.data import workers as processes
from polyphi.data.loader import Loader, ReaderGroup
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare
from polyphi.processing.processor import Processor
from polyphi.runtime import distributed, progress
from polyphi.runtime.files import write_json
from polyphi.runtime.heap import give_back
from polyphi.runtime.precision import products
from polyphi.train import checkpoint, parallel, resume
from polyphi.train.alignment import in_words
from polyphi.train.evaluation import EvalRows
from polyphi.train.features import cached_features
from polyphi.train.freeze import as_table, freeze, frozen_hashes, hashes, named, trainable_rows
from polyphi.train.interrupt import Interruptible
from polyphi.train.loss import NextToken
from polyphi.train.memory import activations
from polyphi.train.options import MachineOptions, TrainOptions
from polyphi.train.reference import REFERENCE, References
from polyphi.train.resume import CHECKPOINTS, MANIFEST, METRICS, TRAINED
from polyphi.train.stage import Budget, Stage
from polyphi.train.trainer import StageLoss, Trainer

TRIM_SECONDS = 5
"""Time between two returns of free heap to the system. Without them text 3 of the nano size took 2.4 GB after 450
steps, with one every 20 s 1.5 to 1.85 GB; one takes 60 ms (LOG.md)."""


def train(
    stage: Stage,
    budget: Budget,
    model: PhiModel,
    processor: Processor,
    data: Path | str,
    out: Path,
    *,
    options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Train a stage in place, starting from the weights in `model`; returns the manifest, which is also written to
    `out`.

    `data`, a folder or an address (data/shards.py), holds the corpora of the mix, except those in `options.fresh`. If
    `out` holds the finished stage, its tensors are loaded into `model`; an unfinished one is resumed.

    Raises ValueError if `out` belongs to another run or the options don't fit the stage; Diverged if losses aren't
    finite or spike repeatedly; RuntimeError if a trained group gets no gradient or a frozen tensor changes;
    KeyboardInterrupt after Ctrl-C, with a checkpoint of the last whole step.
    """
    distributed.start()
    _check_context(stage, machine.context_parallel)
    if distributed.rank() > 0:
        options = dataclasses.replace(options, report=_silence)
    out.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    prepare(model)
    head = stage.objective.build(model, processor, seed=options.seed)
    head = head.to(device) if head is not None else None
    parameters = freeze(stage, model, head)
    rows = row_maker(stage, budget, model, processor)
    loader = _loader(stage, budget, data, rows, options, machine, device)
    choice = resume.choose_precision(
        options.precision,
        out,
        device,
        lambda: products((p.shape, p.requires_grad) for p in model.parameters()),
        min(machine.micro_tokens, budget.batch_tokens),
    )
    if model.quant != options.base:
        raise ValueError(
            f"{stage.name}: the model is quantized to {model.quant}, but `base` is {options.base}; quantize it with "
            "`quantize_frozen` first"
        )
    if model.quant is not None and machine.fsdp > 1:
        raise ValueError(
            f"{stage.name}: a base in {model.quant} can't be sharded; expected --fsdp 1, found {machine.fsdp}"
        )
    eval_rows = _eval_rows(stage, data, rows, options, machine)
    early_stopping = None
    if options.evaluation and options.evaluation.patience and eval_rows:
        early_stopping = {
            "patience": options.evaluation.patience,
            "every": options.evaluation.every,
            "data": eval_rows.hashes,
        }
    identity = resume.identity(
        stage, budget, options.seed, choice.precision, loader, model.quant, early_stopping
    )
    if (out / MANIFEST).exists():
        return resume.finished(out, identity, parameters)

    reference = stage.objective.begin(model)
    if isinstance(reference, References):
        if machine.guard.then == "roll-back":
            raise ValueError(
                f"{stage.name} precomputes reference log-probs, which works only without rollbacks; expected a guard "
                "that skips rejected steps, found 'roll-back': leave --on-spike at skip"
            )
        start = {**identity, "start": hashes(parameters)}
    if machine.fsdp > 1:
        parallel.shard(model, choice.precision, machine.fsdp)
        parameters = named(model, head)
    context_model = parallel.context_parallel(model, machine.context_parallel)
    loss = StageLoss(stage.objective, context_model, head, reference, choice.precision)
    trainer = Trainer(
        stage,
        budget,
        loss,
        parameters,
        loader,
        out,
        choice,
        options=options,
        machine=machine,
        eval_rows=eval_rows,
    )
    if isinstance(reference, References):
        trainer.precompute_reference(reference, start)
    frozen_before = frozen_hashes(model, parameters)
    table = trainable_rows(stage, budget, parameters, options.origins)
    checkpoints = checkpoint.Checkpoints(out / CHECKPOINTS, machine.background)
    if trainer.resume(checkpoints, identity, frozen_before):
        options.report(f"  resumes from step {trainer.state.step} of {budget.steps}")
    else:
        options.report(as_table(table))
    if choice is not options.precision:
        options.report(f"  precision {choice}")

    model.train()
    last_save = last_trim = time.monotonic()
    with (
        trainer,
        Interruptible() as interrupted,
        _deterministic(machine.deterministic),
        activations(model, machine.activations),
        cached_features(model, machine.features, choice.precision),
        progress.progress(
            stage.name, budget.steps, trainer.state.step, distributed.rank() > 0
        ) as advance,
    ):
        trainer.evaluate()
        while trainer.state.step < budget.steps and not trainer.stopped_early:
            record = trainer.step()
            trainer.evaluate()
            if record is None:
                continue
            advance(trainer.state.step, f"loss {record['loss']:.3f}")
            if time.monotonic() - last_trim > TRIM_SECONDS:
                give_back()
                last_trim = time.monotonic()
            due = time.monotonic() - last_save > machine.checkpoint_seconds
            stop, due = distributed.any_rank(interrupted(), due, device=trainer.device)
            if stop or due:
                trainer.save()
                last_save = time.monotonic()
            if stop:
                trainer.checkpoints.wait()
                raise KeyboardInterrupt
        trainer.checkpoints.wait()
        interrupted_late = interrupted()  # after the last step: the stage is finished first
    model.eval()
    trainer.apply_result()
    frozen_after = frozen_hashes(model, parameters)
    if changed := [name for name, before in frozen_before.items() if frozen_after[name] != before]:
        raise RuntimeError(
            f"{stage.name} changed frozen tensors: {', '.join(changed[:5])} ({len(changed)} in all)"
        )
    trained = {name: parallel.whole(p) for name, p in trainer.trained.items()}
    records = progress.read_metrics(out / METRICS) if distributed.rank() == 0 else []
    manifest = {
        **identity,
        resume.REASON: choice.reason,
        "code": code_revision(),
        "parents": dict(Counter(options.origins.values())),
        "trainable": table,
        **_results(trainer, records),
        "frozen": {name: [before, frozen_after[name]] for name, before in frozen_before.items()},
        "trained": checkpoint.digests(trained.items()),
        "environment": _environment(trainer),
    }
    if distributed.rank() == 0:
        checkpoint.write_tensors(
            out / TRAINED, trained, {"stage": stage.name, "code": manifest["code"]}
        )
        progress.plot_loss(records, out / "loss.png", stage.name)
        write_json(out / MANIFEST, manifest)
        trainer.checkpoints.drop()
        (out / REFERENCE).unlink(missing_ok=True)
    distributed.wait()
    if interrupted_late:
        raise KeyboardInterrupt
    return manifest


def _results(trainer: Trainer, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest's fields about the steps."""
    state = trainer.state
    return {
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "counters": state.counters,
        "quarantined": state.quarantined,
        "rejected_steps": state.rejected_steps,
        "rollbacks": state.rollbacks,
        "loss": {
            "first": records[0]["loss"] if records else None,
            "last": _mean([r["loss"] for r in records[-10:]]),
        },
        **_evaluation_results(trainer),
    }


def _evaluation_results(trainer: Trainer) -> dict[str, Any]:
    """The manifest's field about evaluations, if there are any."""
    state, rows = trainer.state, trainer.eval_rows
    if rows is None:
        return {}
    return {
        "evaluation": {
            "rows": len(rows),
            "left_out": rows.skipped,
            "best": {"step": state.best_step, "loss": state.best_loss},
            "stopped_early": trainer.stopped_early,
            "exported_step": state.best_step if trainer.best else state.step,
        }
    }


def _environment(trainer: Trainer) -> dict[str, Any]:
    """The manifest's fields about software and hardware."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": str(trainer.device),
        "processes": distributed.world(),
        "threads": torch.get_num_threads(),
        "deterministic": trainer.machine.deterministic,
    }


def _check_context(stage: Stage, context: int) -> None:
    """Raise ValueError where `context` processes can't share a pack."""
    if context > 1 and not isinstance(stage.objective, NextToken):
        raise ValueError(
            f"{stage.name} has the objective {type(stage.objective).__name__}, which compares whole rows: expected "
            f"--context-parallel 1, found {context}"
        )
    if distributed.world() % context:
        raise ValueError(
            f"--context-parallel {context} must divide the number of processes, found {distributed.world()}"
        )


# ------------------------------------------------------------------------------ rows


def _loader(
    stage: Stage,
    budget: Budget,
    data: Path | str,
    rows: Callable[[str, Any], list[Batch]],
    options: TrainOptions,
    machine: MachineOptions,
    device: torch.device,
) -> Loader:
    """The loader of the stage's steps. Processes that share a pack read the same rows; where a step is one pack, all
    processes do."""
    context = machine.context_parallel
    rank, world = distributed.rank() // context, distributed.world() // context
    if stage.objective.whole_step:
        rank, world = 0, 1
    return Loader(
        stage.data.weights,
        data,
        rows,
        batch_tokens=budget.batch_tokens,
        seed=options.seed,
        curriculum=stage.data.curriculum,
        late=stage.data.late,
        fresh=options.fresh,
        workers=processes.default(device) if machine.workers is None else machine.workers,
        group=ReaderGroup(rank, world, lambda draws: distributed.all_gather(draws)[::context]),
    )


def _eval_rows(
    stage: Stage,
    data: Path | str,
    rows: Callable[[str, Any], list[Batch]],
    options: TrainOptions,
    machine: MachineOptions,
) -> EvalRows | None:
    """The evaluation rows of the run, None for a run without evaluations. Raises ValueError for another objective than
    `NextToken`, whose loss is that of supervised tokens."""
    if options.evaluation is None:
        return None
    if not isinstance(stage.objective, NextToken):
        raise ValueError(
            f"{stage.name} has the objective {type(stage.objective).__name__}; evaluation rows need NextToken: leave "
            "--eval-data out"
        )
    rank, world = (
        distributed.rank() // machine.context_parallel,
        distributed.world() // machine.context_parallel,
    )
    corpora, capacity = options.evaluation.corpora, machine.pack_capacity
    return EvalRows(data, corpora, rows, capacity, rank, world)


def row_maker(
    stage: Stage, budget: Budget, model: PhiModel, processor: Processor
) -> Callable[[str, Any], list[Batch]]:
    """A function of corpus and sample that returns the objective's rows. An adapter that the model doesn't have yet
    (vision_1, speech_1) becomes none."""
    known = model.config.adapters

    def rows(corpus: str, sample: Any) -> list[Batch]:
        adapter = stage.data.adapter.get(corpus, "auto")
        samples_rows = stage.objective.rows(sample, processor, budget.context, adapter)
        if corpus in stage.data.in_words:
            samples_rows = [in_words(row, sample, processor) for row in samples_rows]
        return [
            dataclasses.replace(
                row, adapters=tuple(a if a in known else None for a in row.adapters)
            )
            for row in samples_rows
        ]

    return rows


@cache
def code_revision() -> str:
    """SHA-256 of the sources of polyphi and the packages beside it, which identifies the code behind a result."""
    hasher = hashlib.sha256()
    root = Path(__file__).parents[2]
    for path in sorted(root.glob("polyphi*/**/*.py")):
        hasher.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return hasher.hexdigest()


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _silence(_: Any) -> None:
    """Print nothing: the `report` of all processes but the first."""


@contextlib.contextmanager
def _deterministic(requested: bool) -> Iterator[None]:
    """While active, restrict torch to deterministic kernels; it raises where it has none."""
    if not requested:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
