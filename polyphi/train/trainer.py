"""Train a stage: one page, in the order in which things happen.

    set up    processes, model, trainable parameters, data, precision -> the run's identity -> reference, shards,
              optimizer, checkpoint to resume from
    loop      steps; once in a while: evaluate, return free memory, write a checkpoint
    step      next samples -> packs -> forward and backward of each, sums over units -> sums over processes
              -> means, clipped -> optimizer step, unless the guard rejects it -> record
    end       the frozen tensors haven't changed -> trained tensors, loss plot, manifest

A finished stage is a folder with `manifest.json`; an unfinished one resumes from its latest checkpoint and gives
exactly the results of a run that was never stopped.
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import time
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyphi.data import workers
from polyphi.data.loader import Loader, ReaderGroup, StepRows
from polyphi.data.packing import Capacity, Pack, pack_step
from polyphi.devices.precision import products
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.linear import frozen_copies
from polyphi.prepared.prepare import prepare
from polyphi.processing.processor import Processor
from polyphi.runtime import distributed, progress
from polyphi.runtime.files import remove, rename, write_json
from polyphi.runtime.heap import give_back, reuse_freed_blocks
from polyphi.train import checkpoint, evaluation, parallel
from polyphi.train.checkpoint import MANIFEST, TRAINED
from polyphi.train.context import RunContext
from polyphi.train.evaluation import EVALUATIONS, EvalRows
from polyphi.train.features import cached_features
from polyphi.train.freeze import (
    as_table,
    check_gradients,
    freeze,
    frozen_hashes,
    hashes,
    named,
    trainable_rows,
)
from polyphi.train.interrupt import Interruptible
from polyphi.train.loss import NextToken
from polyphi.train.memory import activations
from polyphi.train.optimizer import make_optimizer, set_lr
from polyphi.train.options import TrainOptions
from polyphi.train.preference import DPO, PAIR_METRICS, REFERENCE, References
from polyphi.train.stage import Budget, Comparing, Stage
from polyphi.train.stage_loss import StageLoss
from polyphi.train.state import (
    CHECKPOINTS,
    METRICS,
    QUARANTINE,
    REASON,
    TrainState,
    checkpoint_tensors,
    choose_precision,
    code_revision,
    earlier_model,
    earlier_steps,
    finished,
    identity_of,
    must_continue,
    restore,
    with_steps,
)
from polyphi.types.batch import Batch, pack

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
    context: RunContext = RunContext(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Train a stage in place, starting from the weights in `model`; returns the manifest, which is also written to
    `out`.

    `data`, a folder or an address (data/shards.py), holds the corpora of the mix, except those in `context.generated`.
    If `out` holds the finished stage, its tensors are loaded into `model`; an unfinished one is resumed.

    Raises ValueError if `out` belongs to another run or the options don't fit the stage; Diverged if losses aren't
    finite or spike repeatedly; RuntimeError if a trained group gets no gradient or a frozen tensor changes;
    KeyboardInterrupt after Ctrl-C, with a checkpoint of the last whole step.
    """
    trainer = Trainer(stage, budget, model, processor, data, out, options, context)
    if (out / MANIFEST).exists() and not trainer.extends():
        return finished(out, trainer.identity, trainer.parameters)
    trainer.start()
    trainer.loop()
    return trainer.finish()


class Trainer:
    """A stage in training. `parameters` are all of the model and the auxiliary head by name; those that require
    gradients are trained. `identity` is what must be equal for the run to be resumed."""

    # ------------------------------------------------------------------------ set up

    def __init__(
        self,
        stage: Stage,
        budget: Budget,
        model: PhiModel,
        processor: Processor,
        data: Path | str,
        out: Path,
        options: TrainOptions,
        context: RunContext,
    ) -> None:
        machine = options.machine

        # Processes. Those that share a pack read the same rows.
        distributed.start()
        shared = machine.context_parallel
        if shared > 1 and not isinstance(stage.objective, NextToken):
            raise ValueError(
                f"{stage.name} has the objective {type(stage.objective).__name__}, which compares whole rows: expected "
                f"--context-parallel 1, found {shared}"
            )
        if distributed.world() % shared:
            raise ValueError(
                f"--context-parallel {shared} must divide the number of processes, found {distributed.world()}"
            )
        reader, readers = distributed.rank() // shared, distributed.world() // shared
        if distributed.rank() > 0:
            context = dataclasses.replace(context, report=lambda message: None)
        out.mkdir(parents=True, exist_ok=True)

        # Model: this machine's fast modules; freeze all parameters that the stage doesn't name.
        device = next(model.parameters()).device
        prepare(model)
        head = stage.objective.build(model, processor, seed=options.seed)
        head = head.to(device) if head is not None else None
        if shared > 1 and head is not None:
            raise ValueError(
                f"{stage.name} has an auxiliary loss, which needs whole rows: expected --context-parallel 1, "
                f"found {shared}"
            )
        self.parameters = freeze(stage, model, head)

        # Data.
        rows = row_maker(stage, budget, model, processor)
        self.loader = Loader(
            stage.data.weights,
            data,
            rows,
            batch_tokens=budget.batch_tokens,
            seed=options.seed,
            curriculum=stage.data.curriculum,
            late=stage.data.late,
            generated=context.generated,
            workers=workers.default(device) if machine.workers is None else machine.workers,
            group=ReaderGroup(
                reader, readers, lambda draws: distributed.all_gather(draws)[::shared]
            ),
        )
        limits = dict(machine.micro_inputs)
        if isinstance(stage.objective, Comparing):
            limits = {**stage.objective.limits(model, machine.micro_tokens), **limits}
        self.capacity = Capacity(machine.micro_tokens, limits)

        # Precision.
        self.choice = choose_precision(
            context.precision or options.precision,
            out,
            device,
            lambda: products((p.shape, p.requires_grad) for p in model.parameters()),
            min(machine.micro_tokens, budget.batch_tokens),
        )
        if model.quant != options.base:
            raise ValueError(
                f"{stage.name}: the model is quantized to {model.quant}, but `base` is {options.base}; quantize it "
                "with `quantize_frozen` first"
            )
        if model.quant is not None and machine.fsdp > 1:
            raise ValueError(
                f"{stage.name}: a base in {model.quant} can't be sharded; expected --fsdp 1, found {machine.fsdp}"
            )

        # Evaluation rows, and early stopping by their loss.
        self.eval_rows = early_stopping = None
        if context.evaluation is not None:
            if not isinstance(stage.objective, NextToken | DPO):
                raise ValueError(
                    f"{stage.name} has the objective {type(stage.objective).__name__}; evaluation rows need NextToken "
                    "or DPO: leave --eval-data out"
                )
            self.eval_rows = EvalRows(
                data, context.evaluation.corpora, rows, self.capacity, reader, readers
            )
            if context.evaluation.patience:
                early_stopping = {
                    "patience": context.evaluation.patience,
                    "every": context.evaluation.every,
                    "data": self.eval_rows.hashes,
                }
        self.patience = context.evaluation.patience if context.evaluation else None

        self.identity = identity_of(
            stage,
            budget,
            options.seed,
            self.choice.precision,
            self.loader,
            model.quant,
            early_stopping,
        )
        self.stage, self.budget, self.model, self.head = stage, budget, model, head
        self.units = tuple(model.units.values())
        self.out, self.options, self.context, self.device = out, options, context, device

    def start(self) -> None:
        """Shard the model, make the optimizer, precompute the reference, and resume from the latest checkpoint if there
        is one. Raises ValueError where the checkpoint is of another run or started from other weights."""
        stage, model, machine = self.stage, self.model, self.options.machine
        reference = stage.objective.begin(model)
        precomputed = isinstance(reference, References)
        if precomputed:
            if self.options.guard.on_spike == "roll-back":
                raise ValueError(
                    f"{stage.name} precomputes reference log-probs, which works only without rollbacks; expected a "
                    "guard that skips rejected steps, found 'roll-back': leave --on-spike at skip"
                )
            # Not of the number of steps, which may grow: rows of further steps are computed from where it ended.
            start = {**with_steps(self.identity, 0), "start": hashes(self.parameters)}
        if machine.fsdp > 1:
            parallel.shard(model, self.choice.precision, machine.fsdp)
            self.parameters = named(model, self.head)
        context_model = parallel.context_parallel(model, machine.context_parallel)
        self.loss = StageLoss(
            stage.objective, context_model, self.head, reference, self.choice.precision
        )

        self.trained = {name: p for name, p in self.parameters.items() if p.requires_grad}
        self.averages = self._copies() if stage.ema else {}
        self.best = self._copies() if self.patience else {}
        bf16 = self.choice.precision == "bf16"
        self.optimizer = make_optimizer(
            stage, self.parameters, self.budget, torch.bfloat16 if bf16 else torch.float32
        )
        self.state = TrainState()
        self._data: Generator[StepRows, None, None] | None = None
        self._clock = time.monotonic()
        title, first = self.context.title or stage.name, distributed.rank() == 0
        self._trackers = [
            progress.tracker(n, self.out / n, title) for n in self.options.track if first
        ]
        if precomputed:
            self.model.eval()
            reference.precompute(
                self.loader,
                self.budget.steps,
                lambda data: self._reference_log_probs(reference, self._packs(data)),
                self.out,
                start,
                f"{stage.name}, reference",
            )
            if self.eval_rows is not None:
                packs, number = self.eval_rows.packs(), self.eval_rows.packs_each
                quiet = distributed.rank() > 0
                with progress.progress(f"{stage.name}, reference", number, quiet=quiet) as advance:
                    packs = progress.counted(packs, number, advance, "of evaluation rows")
                    reference.add(self._reference_log_probs(reference, packs))

        self.frozen = frozen_hashes(model, self.parameters)
        self.table = trainable_rows(stage, self.budget, self.parameters, self.context.origins)
        self.checkpoints = checkpoint.Checkpoints(self.out / CHECKPOINTS, machine.background)
        stored = self.checkpoints.find()
        if stored is None:
            if (self.out / METRICS).exists():
                self.context.report(
                    f"  the earlier run in {self.out} stopped before its first checkpoint: starts from step 0"
                )
            self.context.report(as_table(self.table))
        else:
            before = self._steps_before(stored.state["identity"])
            must_continue(
                stored,
                self.out,
                with_steps(self.identity, before or self.budget.steps),
                self.frozen,
            )
            self.state = self._restored(stored)
            self.loader.restore(self.state.draws, self.state.corrupt)
            self.context.report(f"  resumes from step {self.state.step} of {self.budget.steps}")
            if before:
                self._report_schedule(before)
        if self.context.precision is None:
            self.context.report(f"  precision {self.choice}")

    def _steps_before(self, identity: Mapping[str, Any]) -> int | None:
        """The steps of an earlier run with this `identity`, where this one is the same with more steps and may be."""
        return None if self.context.exported is None else earlier_steps(self.identity, identity)

    def extends(self) -> bool:
        """Whether the run in the folder is finished and gets more steps now: its manifest is removed, its model renamed
        (`earlier_model`). Raises ValueError where it has no checkpoint to continue from."""
        steps = self._steps_before(json.loads((self.out / MANIFEST).read_text()))
        if steps is None:
            return False
        if not (self.out / CHECKPOINTS).exists():
            raise ValueError(
                f"{self.out} is finished after {steps} steps and has no checkpoint, so it can't get more; train its "
                f"model in another folder: --model {self.out / 'model'}"
            )
        distributed.wait()  # all processes must have read the manifest
        if distributed.rank() == 0:
            assert self.context.exported is not None
            if self.context.exported.exists():
                earlier = earlier_model(self.context.exported)
                remove(earlier)
                rename(self.context.exported, earlier)
                self.context.report(f"  the model of {steps} steps is in {earlier} until then")
            remove(self.out / MANIFEST)
        distributed.wait()
        return True

    def _report_schedule(self, before: int) -> None:
        """Record and report that the learning rate follows another schedule from this step on."""
        step, steps = self.state.step, self.budget.steps
        self.state.schedule_changes = [*self.state.schedule_changes, [step, before]]
        old, new = (self.stage.schedule.factor(step, n) for n in (before, steps))
        self.context.report(
            f"  {steps} steps instead of {before}: from here on the learning rate is that of a run of {steps} "
            f"({new:.2f} of its peak, {old:.2f} until now); a run of {steps} from the start differs"
        )

    def _copies(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.trained.items()}

    def _reference_log_probs(
        self, reference: References, packs: Iterable[Pack]
    ) -> dict[str, float]:
        """Log-probabilities of packs' rows by the current weights, by key."""
        by_key: dict[str, float] = {}
        with torch.no_grad(), self.loss.autocast(self.device):
            for item in packs:
                by_key |= reference.log_probs(self.model, item.batch.to(self.device))
        return by_key

    # ------------------------------------------------------------------------ the loop

    def loop(self) -> None:
        """Train up to the last step, or the one after which evaluations no longer improve. Raises KeyboardInterrupt
        after Ctrl-C."""
        machine, quiet = self.options.machine, distributed.rank() > 0
        self.model.train()
        last_save = last_trim = time.monotonic()
        with (
            self._files(),
            Interruptible() as interrupted,
            _deterministic(machine.deterministic),
            activations(self.model, machine.activations),
            reuse_freed_blocks(),
            frozen_copies(machine.activations == "keep" and machine.fsdp == 1),
            cached_features(self.model, machine.features, self.choice.precision),
            progress.progress(
                self.stage.name, self.budget.steps, self.state.step, quiet
            ) as advance,
        ):
            self.evaluate(advance)
            clock = progress.Clock(self.state.step, self.budget.steps)
            while self.state.step < self.budget.steps and not self.stopped_early:
                record = self.step()
                if message := clock.remaining(self.state.step):
                    self.context.report(message)
                self.evaluate(advance)
                if record is None:
                    continue
                advance(self.state.step, f"loss {record['loss']:.3f}")
                # Once in a while: return free memory to the system.
                if time.monotonic() - last_trim > TRIM_SECONDS:
                    give_back()
                    last_trim = time.monotonic()
                # Once in a while, and before the end after Ctrl-C: write a checkpoint.
                due = time.monotonic() - last_save > self.context.checkpoint_seconds
                stop, due = distributed.any_rank(interrupted(), due, device=self.device)
                if stop or due:
                    self._save()
                    last_save = time.monotonic()
                if stop:
                    self.checkpoints.wait()
                    raise KeyboardInterrupt
            if self.context.exported is not None:  # it may get more steps later
                self._save()
            self.checkpoints.wait()
            # A Ctrl-C after the last step takes effect when the stage is finished.
            self.interrupted_late = interrupted()
        self.model.eval()

    # ------------------------------------------------------------------------ the step

    def step(self) -> dict[str, Any] | None:
        """Take one step and log it; returns its record.

        Returns None without a change of the weights where all samples are quarantined or the guard rejects the gradient
        norm. The next step then uses the next samples, after a rollback if the guard is set so. Raises Diverged where
        that happens too often, RuntimeError where the first step gives a trained group no gradient.
        """
        data = self._next_data()
        if not data.ids:
            self._skip(data)
            return None
        record, norm = self._gradients(data)
        if not math.isfinite(norm):
            data = self._without_nonfinite(data)
            if not data.ids:
                self._skip(data)
                return None
            record, norm = self._gradients(data)
        factor = self.stage.schedule.factor(self.state.step, self.budget.steps)
        lr = set_lr(self.optimizer, factor)
        if self.options.guard.rejects(norm, self.state.norms):
            self._reject(data, norm)
            return None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.averages:
            torch._foreach_lerp_(
                list(self.averages.values()), list(self.trained.values()), 1 - self.stage.ema
            )
        self.state.accept(norm)
        return self._log(data, record | {"lr": lr, "gradient_norm": norm})

    def _next_data(self) -> StepRows:
        """The samples of the next step, without quarantined ones. With a GPU a thread prefetches them. On a CPU there
        is no core to spare for it, and two threads that share Python's lock alternate every 5 ms: training takes half
        as long again."""
        if self._data is None:
            self._data = self.loader.steps(
                self.budget.steps - self.state.step, ahead=self.device.type != "cpu"
            )
        data = next(self._data)
        for corpus, first in {s.corpus: s for s in reversed(data.skipped)}.items():
            if f"skipped {corpus}" not in self.state.counters:
                self.context.report(f"  skips samples of {corpus}, the first: {first}")
        for skipped in data.skipped:
            if skipped.category == "corrupt":
                self._quarantine(skipped.name, skipped.reason)
        return data.without(self.state.quarantined)

    def _gradients(self, data: StepRows) -> tuple[dict[str, Any], float]:
        """Forward and backward: gradients become means over the units of all processes and are clipped. Returns the
        step's record and the gradient norm before clipping, NaN where the loss isn't finite."""
        seeds = f"{self.options.seed} {self.stage.name} {self.state.step} {distributed.rank()}"
        torch.manual_seed(zlib.crc32(seeds.encode()))  # dropout
        record = self.loss.accumulate(self._packs(data), self.context.flops)
        trained = list(self.trained.values())
        parallel.sum_gradients(trained)
        if not math.isfinite(record["loss"]):
            return record, math.nan
        if self.state.step == 0:
            check_gradients(
                self.stage, self.parameters, self.device, self.context.rows_reach_trainable
            )
        scale = 1 / max(1, record["count"])
        return record, parallel.clip_gradients(trained, scale, self.stage.clip_norm).item()

    def _packs(self, data: StepRows) -> list[Pack]:
        """The packs of a step that this process has."""
        return pack_step(data.samples, self.capacity, data.other_sizes(), data.spare_rows())

    def _log(self, data: StepRows, record: dict[str, Any]) -> dict[str, Any]:
        """Complete a step's record with its speeds and evaluation, and write it to the metrics and trackers."""
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        number = self.state.step
        self.state.advance(data)
        self.state.count(data, record, seconds, self.units)
        record = {**record, "ids": data.fingerprint(), **self._speeds(data, record, seconds)}
        record |= {"skipped": len(data.skipped), "cut": data.cut}
        watch, every = self.context.watch, self.options.watch_every
        if watch and every and self.state.step % every == 0:
            self.model.eval()
            with torch.no_grad():
                record["watch"] = dict(watch(self.model))
            self.model.train()
        self._record(METRICS, {"step": number, **record}, record)
        return record

    def _speeds(
        self, data: StepRows, record: Mapping[str, Any], seconds: float
    ) -> dict[str, float]:
        """A step's throughput per second, and its utilisation."""
        counted = ("tokens", *self.units)
        amounts = {what: record[what] for what in counted} | {"samples": len(data.ids)}
        amounts["flops"] = record.get("flops", 0)
        speeds = {f"{what}_per_second": round(n / seconds, 2) for what, n in amounts.items() if n}
        if self.context.peak_flops and amounts["flops"]:
            speeds["utilisation"] = (
                amounts["flops"] / seconds / self.context.peak_flops / distributed.world()
            )
        return speeds

    # ------------------------------------------------------------------------ rejected steps and samples

    def _skip(self, data: StepRows) -> None:
        """Advance to the next samples without a change of the weights, after a rollback if the guard is set so."""
        self.state.advance(data)
        if self.options.guard.on_spike == "roll-back":
            self._roll_back()

    def _reject(self, data: StepRows, norm: float) -> None:
        """Drop the step's gradients and skip its samples. Raises Diverged where that happens too often."""
        self.optimizer.zero_grad(set_to_none=True)
        self.state.reject(data, norm, self.stage.name)
        self.context.report(
            f"  step {self.state.step} is rejected: its gradient norm is {norm:.3g}"
        )
        self._quarantine(data.ids, f"the gradient norm is {norm:.3g}")
        self._skip(data)

    def _without_nonfinite(self, data: StepRows) -> StepRows:
        """The step without the samples whose own loss isn't finite, which are quarantined. Each process computes the
        loss of its own samples. Where all of several samples have such a loss, the weights are the cause, and all
        stay."""
        self.optimizer.zero_grad(set_to_none=True)
        own = list(zip(data.own_ids(), data.samples, strict=True)) or [("", data.spare_rows())]
        nonfinite = []
        for at in range(max(len(own), *map(len, data.other_sizes()), 0)):
            # With sharded layers every forward is a collective: processes with fewer samples repeat their last one.
            name, rows = own[min(at, len(own) - 1)]
            loss = self.loss.alone(pack(rows))
            if not math.isfinite(loss) and name:
                nonfinite.append(name)
        ids = sorted({name for names in distributed.all_gather(nonfinite) for name in names})
        if len(ids) == len(data.ids) > 1:
            ids = []
        for name in ids:
            self.context.report(f"  {name} is quarantined: its loss isn't finite")
            self._quarantine(name, "its loss isn't finite")
        self.state.quarantine(ids, self.stage.name)
        return data.without(ids)

    def _roll_back(self) -> None:
        """Restore the latest checkpoint, if there is one, and continue with the samples that come next."""
        self.checkpoints.wait()
        if (stored := self.checkpoints.find()) is None:
            return
        before = self.state
        self.state = before.rolled_back(self._restored(stored))
        self.context.report(f"  rolls back from step {before.step} to step {self.state.step}")
        self.loader.restore(self.state.draws, self.state.corrupt)
        self._close_data()
        self._begin_records()

    # ------------------------------------------------------------------------ evaluation

    def evaluate(self, advance: progress.Advance) -> None:
        """Evaluate the weights on the evaluation rows, if there are any and an evaluation is due: before the first
        step, every `every` steps, and after the last one. `advance` shows the packs."""
        options, state = self.context.evaluation, self.state
        if options is None or self.eval_rows is None or state.evaluated_step == state.step:
            return
        if state.step % options.every and state.step != self.budget.steps:
            return
        self.model.eval()
        with torch.no_grad(), evaluation.replaced(self.trained, self.averages):
            result = self.loss.accumulate(
                progress.counted(
                    self.eval_rows.packs(), self.eval_rows.packs_each, advance, "evaluation"
                )
            )
            losses = {
                key: value
                for key, value in result.items()
                if key.startswith("loss") or key in PAIR_METRICS
            }
            record = {"step": state.step, **losses, "supervised": result["supervised"]}
            # Layers that are sharded can't be run by one process alone.
            if options.answers and distributed.rank() == 0 and self.options.machine.fsdp == 1:
                with self.loss.autocast(self.device):
                    record["answers"] = list(options.answers(self.model))
            if state.evaluated(record["loss"]):
                for name, tensor in self.best.items():
                    tensor.copy_(self.trained[name])
        self.model.train()
        self.context.report(evaluation.line(record, state.best_step))
        tracked = {f"eval_{key}": value for key, value in losses.items()}
        self._record(EVALUATIONS, record, tracked)
        self._clock = time.monotonic()

    @property
    def stopped_early(self) -> bool:
        """Whether the last evaluations had no lower loss than one before them."""
        return self.patience is not None and self.state.evaluations_since_best >= self.patience

    # ------------------------------------------------------------------------ files

    def _save(self) -> None:
        """Write a checkpoint, with the records of its steps already on the disk."""
        for records in self._records.values():
            records.sync()
        tensors = checkpoint_tensors(self.trained, self.averages, self.best, self.optimizer)
        state = {
            "identity": self.identity,
            "frozen": self.frozen,
            REASON: self.choice.reason,
            **self.state.to_json(),
        }
        self.checkpoints.save(self.state.step, tensors, state)

    def _restored(self, stored: checkpoint.Stored) -> TrainState:
        return restore(stored, self.trained, self.averages, self.best, self.optimizer)

    @contextlib.contextmanager
    def _files(self) -> Iterator[None]:
        """A context with the files of metrics, evaluations and quarantine, which ends the threads of data and
        checkpoints."""
        self._begin_records()
        self._clock = time.monotonic()
        try:
            yield
        finally:
            self._close_data()
            self.checkpoints.close()

    def _begin_records(self) -> None:
        """Drop records of steps after the latest checkpoint from the files of the first process."""
        until = {METRICS: self.state.step, QUARANTINE: self.state.step}
        if self.eval_rows is not None:
            # The evaluation after the last step of a checkpoint was before it was written.
            until[EVALUATIONS] = self.state.evaluated_step + 1
        first = distributed.rank() == 0
        self._records = {
            name: progress.Metrics(self.out / name, step) for name, step in until.items() if first
        }

    def _close_data(self) -> None:
        if self._data is not None:
            self._data.close()
            self._data = None

    def _record(self, file: str, record: dict[str, Any], tracked: Mapping[str, Any] = {}) -> None:
        """Write a record to a file, and to the trackers what they get of it; only the first process does."""
        if distributed.rank() == 0:
            self._records[file].write(record)
            for tracker in self._trackers if tracked else ():
                tracker(record["step"], tracked)

    def _quarantine(self, ids: str | list[str], reason: str) -> None:
        self._record(QUARANTINE, {"step": self.state.step, "id": ids, "reason": reason})

    # ------------------------------------------------------------------------ the end

    def finish(self) -> dict[str, Any]:
        """Write the trained tensors and the manifest, which it returns. Raises RuntimeError where a frozen tensor has
        changed."""
        stage, state, out = self.stage, self.state, self.out
        # The result: with a patience the weights with the lowest loss, with `ema` the averages over the steps.
        with torch.no_grad():
            for name, tensor in (self.best or self.averages).items():
                self.trained[name].copy_(tensor)
        frozen = frozen_hashes(self.model, self.parameters)
        if changed := [name for name, before in self.frozen.items() if frozen[name] != before]:
            raise RuntimeError(
                f"{stage.name} changed frozen tensors: {', '.join(changed[:5])} ({len(changed)} in all)"
            )
        trained = {name: parallel.whole(p) for name, p in self.trained.items()}
        records = progress.read_metrics(out / METRICS) if distributed.rank() == 0 else []
        last = [record["loss"] for record in records[-10:]]
        manifest = {
            **self.identity,
            REASON: self.choice.reason,
            "code": code_revision(),
            "parents": dict(Counter(self.context.origins.values())),
            "trainable": self.table,
            "steps": state.step,
            "seconds": round(state.seconds, 1),
            "counters": state.counters,
            "quarantined": state.quarantined,
            "rejected_steps": state.rejected_steps,
            "rollbacks": state.rollbacks,
            "schedule_changes": state.schedule_changes,
            "loss": {
                "first": records[0]["loss"] if records else None,
                "last": sum(last) / len(last) if last else None,
            },
        }
        if self.eval_rows is not None:
            manifest["evaluation"] = {
                "rows": len(self.eval_rows),
                "left_out": self.eval_rows.skipped,
                "best": {"step": state.best_step, "loss": state.best_loss},
                "stopped_early": self.stopped_early,
                "exported_step": state.best_step if self.best else state.step,
            }
        manifest |= {
            "frozen": {name: [before, frozen[name]] for name, before in self.frozen.items()},
            "trained": checkpoint.digests(trained.items()),
            "environment": {
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "device": str(self.device),
                "processes": distributed.world(),
                "threads": torch.get_num_threads(),
                "deterministic": self.options.machine.deterministic,
            },
        }
        if distributed.rank() == 0:
            metadata = {"stage": stage.name, "code": manifest["code"]}
            checkpoint.write_tensors(out / TRAINED, trained, metadata)
            progress.plot_loss(records, out / "loss.png", stage.name)
            write_json(out / MANIFEST, manifest)
            self.checkpoints.drop(keep_latest=self.context.exported is not None)
            remove(out / REFERENCE)
        distributed.wait()
        if self.interrupted_late:
            raise KeyboardInterrupt
        return manifest


def row_maker(
    stage: Stage, budget: Budget, model: PhiModel, processor: Processor
) -> Callable[[str, Any], list[Batch]]:
    """A function of corpus and sample that returns the objective's rows. An adapter that the model doesn't have yet
    (vision_1, speech_1) becomes none."""
    known = model.config.adapters

    def rows(corpus: str, sample: Any) -> list[Batch]:
        adapter = stage.data.adapter.get(corpus, "auto")
        return [
            dataclasses.replace(
                row, adapters=tuple(a if a in known else None for a in row.adapters)
            )
            for row in stage.objective.rows(sample, processor, budget.context, adapter)
        ]

    return rows


@contextlib.contextmanager
def _deterministic(requested: bool) -> Iterator[None]:
    """A context that restricts torch to deterministic kernels; torch raises where it has none."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if requested:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
