"""`Trainer`: the training step of a stage, top to bottom.

next samples -> packs -> forward and backward of each, sums over units -> sums over processes
             -> means, clipped -> optimizer step, unless the guard rejects it (guard.py) -> record
"""

import math
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich
import torch
from torch import Tensor, nn

from polyphi.batch import Batch, pack
from polyphi.data.fresh import Fresh
from polyphi.data.loader import Loader, StepRows
from polyphi.data.packing import Capacity, Pack, pack_step, single_pack
from polyphi.model.attention import padding
from polyphi.model.multimodal import PhiModel
from polyphi.runtime import distributed, progress
from polyphi.runtime.precision import Choice
from polyphi.train import checkpoint, evaluation, parallel, resume
from polyphi.train.evaluation import EVALUATIONS, EvalOptions, EvalRows
from polyphi.train.freeze import check_gradients
from polyphi.train.guard import nonfinite_samples
from polyphi.train.interrupt import Interruptible
from polyphi.train.objective import Objective
from polyphi.train.optim import optimiser, set_lr
from polyphi.train.options import TrainOptions
from polyphi.train.reference import References
from polyphi.train.resume import METRICS, QUARANTINE
from polyphi.train.stage import Budget, Stage
from polyphi.train.state import COUNTED, TrainState, checkpoint_tensors, restore

FRAMES_PER_SECOND = 100
"""Log-mel frames (report 2.2.1)."""


Report = Callable[[Any], None]
"""Prints a line of text or a rich table."""


@dataclass(frozen=True)
class Caller:
    """What the program that trains a stage adds to the options of a user.

    `precision` is a choice that it made and reported itself. `fresh` maps corpora to generators of new samples
    (data/fresh.py), which replace their shards. `origins` names for each tensor the stage that its start weights come
    from. `evaluation`: rows of the split `eval` of some corpora are evaluated (None: none). `title` is the run's name
    in trackers, by default the stage's. `watch(model)` is evaluated every `watch_every` steps. `flops(pack)` counts
    the FLOPs of a pack and `peak_flops` is a process's peak per second: records then hold the FLOPs and the
    utilisation. A checkpoint is written every `checkpoint_seconds` seconds. `report` prints messages of the first
    process.
    """

    precision: Choice | None = None
    fresh: Mapping[str, Fresh] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    evaluation: EvalOptions | None = None
    title: str | None = None
    watch: Callable[[PhiModel], Mapping[str, float]] | None = None
    flops: Callable[[Batch], float] | None = None
    peak_flops: float | None = None
    checkpoint_seconds: float = 60.0
    report: Report = rich.print


@dataclass(frozen=True)
class StageLoss:
    """The loss of a stage: its objective, the model (or its view of a part of each pack), the objective's auxiliary
    head and reference. `precision` "bf16" runs under autocast."""

    objective: Objective
    model: PhiModel | parallel.Context
    head: nn.Module | None
    reference: Any
    precision: str

    def __call__(self, batch: Batch) -> tuple[Batch, Tensor, int, dict[str, Any]]:
        """(this process's part of a pack, sum of losses over its units, number of units, metrics)."""
        if isinstance(self.model, parallel.Context):
            batch = self.model.part(batch)
        with self.autocast(batch.ids.device):
            total, count, metrics = self.objective.loss(
                self.model, self.head, self.reference, batch
            )
        return batch, total, count, metrics

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which batches pass the model."""
        return torch.autocast(device.type, torch.bfloat16, self.precision == "bf16")

    def accumulate(
        self, packs: Iterable[Pack], flops: Callable[[Batch], float] | None = None
    ) -> dict[str, Any]:
        """Forward and backward of a step's packs: gradients are sums over units. Without gradients (`torch.no_grad`)
        there is no backward. The record holds sums over all processes and, for losses and metrics, means over units or
        over a metric's own count."""
        device = self.model.decoder.device
        parts = self.model.mesh.size() if isinstance(self.model, parallel.Context) else 1
        sums: defaultdict[tuple[str, int], Any] = defaultdict(float)
        for item in packs:
            batch, loss, count, metrics = self(item.batch.to(device))
            if torch.is_grad_enabled():
                (loss if item.share == 1 else loss * item.share).backward()
            values = {"loss": loss.detach().double(), "count": count, "tokens": len(batch)}
            values |= metrics
            values["blank"] = (item.blank, 1)
            sums["empty", 0] += item.empty  # of packs that only fill in, too
            sums["empty", 1] += 1
            if flops is not None:
                values["flops"] = flops(item.batch) / parts
            if device.type == "cpu":
                padded = padding(batch.cu_seqlens)
                values["padding"] = (padded, padded + len(batch))
            values["crops"] = batch.crop_count
            for key, tensor in (("supervised", batch.supervised), ("frames", batch.mels)):
                values[key] = 0 if tensor is None else len(tensor)
            for key, value in values.items():  # a pair is a sum and its own count
                for part, number in enumerate(value if isinstance(value, tuple) else (value,)):
                    sums[key, part] += item.share * number
        keys = sorted(sums)  # the same in every process: each has at least one pack
        local = [torch.as_tensor(sums[key], dtype=torch.float64).to(device) for key in keys]
        totals = dict(zip(keys, distributed.total(torch.stack(local)).tolist(), strict=True))
        units = max(1, round(totals["count", 0]))
        record = {}
        for (key, part), value in totals.items():
            if part == 0:
                number = totals.get((key, 1), units)
                if key in ("count", "flops", *COUNTED):
                    record[key] = round(value)
                elif number:
                    record[key] = value / number
        return record


class Trainer:
    """A stage in training. `parameters` are all of the model and the auxiliary head by name; those that require
    gradients are trained. Used as a context manager, it writes metrics and quarantine to `out`."""

    def __init__(
        self,
        stage: Stage,
        budget: Budget,
        loss: StageLoss,
        parameters: dict[str, Tensor],
        loader: Loader,
        out: Path,
        precision: Choice,
        *,
        options: TrainOptions,
        caller: Caller,
        capacity: Capacity,
        eval_rows: EvalRows | None = None,
    ) -> None:
        self.stage, self.budget, self.loss = stage, budget, loss
        self.parameters, self.loader, self.out = parameters, loader, out
        self.options, self.caller, self.eval_rows = options, caller, eval_rows
        self._capacity = capacity
        self.model = loss.model.model if isinstance(loss.model, parallel.Context) else loss.model
        self.device = next(iter(parameters.values())).device
        self.trained = {name: p for name, p in parameters.items() if p.requires_grad}
        self.averages = (
            {n: p.detach().clone() for n, p in self.trained.items()} if stage.ema else {}
        )
        self.patience = caller.evaluation.patience if caller.evaluation else None
        self.best = (
            {n: p.detach().clone() for n, p in self.trained.items()} if self.patience else {}
        )
        products = torch.bfloat16 if precision.precision == "bf16" else torch.float32
        self.optimizer = optimiser(stage, parameters, budget, products)
        self.state = TrainState()
        self._trackers = [
            progress.tracker(name, out / name, caller.title or stage.name) for name in options.track
        ]
        self._precision_reason = precision.reason
        self._data: Generator[StepRows, None, None] | None = None
        self._clock = time.monotonic()

    # ---------------------------------------------------------------- the step

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
        if self.options.machine.guard.rejects(norm, self.state.norms):
            self._reject(data, norm)
            self._skip(data)
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
                self.caller.report(f"  skips samples of {corpus}, the first: {first}")
        for skipped in data.skipped:
            if skipped.category == "corrupt":
                self._write_quarantine(id=skipped.name, reason=skipped.reason)
        return data.without(self.state.quarantined)

    def _gradients(self, data: StepRows) -> tuple[dict[str, Any], float]:
        """Forward and backward: gradients become means over the units of all processes and are clipped. Returns the
        step's record and the gradient norm before clipping, NaN where the loss isn't finite."""
        seeds = f"{self.options.seed} {self.stage.name} {self.state.step} {distributed.rank()}"
        torch.manual_seed(zlib.crc32(seeds.encode()))  # dropout
        record = self.loss.accumulate(self._packs(data), self.caller.flops)
        trained = list(self.trained.values())
        parallel.sum_gradients(trained)
        if not math.isfinite(record["loss"]):
            return record, math.nan
        if self.state.step == 0:
            check_gradients(self.stage, self.parameters, self.device)
        scale = 1 / max(1, record["count"])
        return record, parallel.clip_gradients(trained, scale, self.stage.clip_norm).item()

    def _packs(self, data: StepRows) -> list[Pack]:
        """This process's packs of a step."""
        if self.stage.objective.whole_step:
            return single_pack(data.samples, distributed.world())
        return pack_step(data.samples, self._capacity, data.other_sizes(), data.spare_rows())

    def _log(self, data: StepRows, record: dict[str, Any]) -> dict[str, Any]:
        """Complete a step's record with its speeds and evaluation, and write it to the metrics and trackers."""
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        number = self.state.step
        self.state.advance(data)
        self.state.count(data, record, seconds)
        record = {**record, "ids": data.fingerprint(), **self._speeds(data, record, seconds)}
        record |= {"skipped": len(data.skipped), "cut": data.cut}
        watch, every = self.caller.watch, self.options.watch_every
        if watch and every and self.state.step % every == 0:
            self.model.eval()
            with torch.no_grad():
                record["watch"] = dict(watch(self.model))
            self.model.train()
        if self._metrics is not None:
            self._metrics.write({"step": number, **record})
            for tracker in self._trackers:
                tracker(number, record)
        return record

    def _speeds(
        self, data: StepRows, record: Mapping[str, Any], seconds: float
    ) -> dict[str, float]:
        """A step's throughput per second, and its utilisation."""
        amounts = {"tokens": record["tokens"], "samples": len(data.ids), "crops": record["crops"]}
        amounts["audio_seconds"] = record["frames"] / FRAMES_PER_SECOND
        amounts["flops"] = record.get("flops", 0)
        speeds = {f"{what}_per_second": round(n / seconds, 2) for what, n in amounts.items() if n}
        if self.caller.peak_flops and amounts["flops"]:
            speeds["utilisation"] = (
                amounts["flops"] / seconds / self.caller.peak_flops / distributed.world()
            )
        return speeds

    # ---------------------------------------------------------------- evaluation

    def evaluate(self) -> None:
        """Evaluate the weights on the evaluation rows, if there are any and an evaluation is due: before the first
        step, every `every` steps, and after the last one."""
        options, state = self.caller.evaluation, self.state
        if options is None or self.eval_rows is None or state.evaluated_step == state.step:
            return
        if state.step % options.every and state.step != self.budget.steps:
            return
        self.model.eval()
        with torch.no_grad(), evaluation.replaced(self.trained, self.averages):
            result = self.loss.accumulate(self.eval_rows.packs())
            losses = {key: value for key, value in result.items() if key.startswith("loss")}
            record = {"step": state.step, **losses, "supervised": result["supervised"]}
            # Layers that are sharded can't be run by one process alone.
            if options.answers and distributed.rank() == 0 and self.options.machine.fsdp == 1:
                with self.loss.autocast(self.device):
                    record["answers"] = list(options.answers(self.model))
            if state.evaluated(record["loss"]):
                for name, tensor in self.best.items():
                    tensor.copy_(self.trained[name])
        self.model.train()
        self.caller.report(evaluation.line(record, state.best_step))
        if self._evaluations is not None:
            self._evaluations.write(record)
            for tracker in self._trackers:
                tracker(state.step, {f"eval_{key}": value for key, value in losses.items()})
        self._clock = time.monotonic()

    @property
    def stopped_early(self) -> bool:
        """Whether the last evaluations had no lower loss than one before them."""
        return self.patience is not None and self.state.evaluations_since_best >= self.patience

    # ---------------------------------------------------------------- rejected steps

    def _skip(self, data: StepRows) -> None:
        """Advance to the next samples without a change of the weights, after a rollback if the guard is set so."""
        self.state.advance(data)
        if self.options.machine.guard.on_spike == "roll-back":
            self._roll_back()

    def _reject(self, data: StepRows, norm: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.state.reject(data, norm, self.stage.name)
        self.caller.report(f"  step {self.state.step} is rejected: its gradient norm is {norm:.3g}")
        self._write_quarantine(id=data.ids, reason=f"the gradient norm is {norm:.3g}")

    def _without_nonfinite(self, data: StepRows) -> StepRows:
        """The step without the samples whose own loss isn't finite, which are quarantined."""
        self.optimizer.zero_grad(set_to_none=True)

        def loss_of(rows: list[Batch]) -> float:
            with torch.no_grad():
                return float(self.loss(pack(rows).to(self.device))[1])

        ids = nonfinite_samples(data, loss_of)
        for name in ids:
            self.caller.report(f"  {name} is quarantined: its loss isn't finite")
            self._write_quarantine(id=name, reason="its loss isn't finite")
        self.state.quarantine(ids, self.stage.name)
        return data.without(ids)

    def _roll_back(self) -> None:
        """Restore the latest checkpoint, if there is one, and continue with the samples that come next."""
        self.checkpoints.wait()
        if (stored := self.checkpoints.find()) is None:
            return
        before = self.state
        self.state = before.rolled_back(self._restored(stored))
        self.caller.report(f"  rolls back from step {before.step} to step {self.state.step}")
        self.loader.restore(self.state.draws, self.state.corrupt)
        self._close()
        self._open()

    # ---------------------------------------------------------------- files

    def resume(
        self,
        checkpoints: checkpoint.Checkpoints,
        identity: Mapping[str, Any],
        frozen: Mapping[str, str],
    ) -> bool:
        """Restore the latest checkpoint; returns whether there is one. `frozen` are hashes of the frozen tensors.
        Raises ValueError where the checkpoint is of another run or started from other weights."""
        self.checkpoints = checkpoints
        self._identity = {
            "identity": identity,
            "frozen": frozen,
            resume.REASON: self._precision_reason,
        }
        stored = checkpoints.find()
        if stored is not None:
            resume.must_continue(stored, self.out, identity, frozen)
            self.state = self._restored(stored)
            self.loader.restore(self.state.draws, self.state.corrupt)
        return stored is not None

    def _restored(self, stored: checkpoint.Stored) -> TrainState:
        return restore(stored, self.trained, self.averages, self.best, self.optimizer)

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = checkpoint_tensors(self.trained, self.averages, self.best, self.optimizer)
        self.checkpoints.save(self.state.step, tensors, {**self._identity, **self.state.to_json()})

    def __enter__(self) -> "Trainer":
        self._open()
        self._clock = time.monotonic()
        return self

    def _open(self) -> None:
        """Open metrics and quarantine, and drop their records of steps after the latest checkpoint."""
        self._metrics, self._quarantine = (
            progress.Metrics(self.out / name, until=self.state.step)
            if distributed.rank() == 0
            else None
            for name in (METRICS, QUARANTINE)
        )
        # The evaluation after the last step of a checkpoint was before it was written.
        self._evaluations = (
            progress.Metrics(self.out / EVALUATIONS, until=self.state.evaluated_step + 1)
            if distributed.rank() == 0 and self.eval_rows is not None
            else None
        )

    def __exit__(self, *_: object) -> None:
        self._close()
        self.checkpoints.close()

    def _close(self) -> None:
        for file in (self._metrics, self._quarantine, self._evaluations):
            if file is not None:
                file.close()
        if self._data is not None:
            self._data.close()
            self._data = None

    def _write_quarantine(self, **fields: Any) -> None:
        if self._quarantine is not None:
            self._quarantine.write({"step": self.state.step, **fields})

    # ---------------------------------------------------------------- before and after

    def precompute_reference(self, reference: References, start: Mapping[str, Any]) -> None:
        """Compute the reference log-probabilities of all rows of the stage with the current weights, which `start`
        identifies."""

        def log_probs(data: StepRows) -> dict[str, float]:
            by_key: dict[str, float] = {}
            for item in self._packs(data):
                batch = item.batch.to(self.device)
                with torch.no_grad(), self.loss.autocast(self.device):
                    by_key |= reference.log_probs(self.model, batch)
            return by_key

        self.model.eval()
        with (
            Interruptible() as interrupted,
            progress.progress(
                f"{self.stage.name}, reference", self.budget.steps, 0, distributed.rank() > 0
            ) as advance,
        ):
            reference.precompute(
                self.loader,
                self.budget.steps,
                log_probs,
                self.out,
                start,
                advance=advance,
                stopped=interrupted,
            )

    def apply_result(self) -> None:
        """Replace the trained parameters by those with the lowest evaluation loss, where the run has a patience, or by
        their averages, where the stage has `ema`."""
        with torch.no_grad():
            for name, tensor in (self.best or self.averages).items():
                self.trained[name].copy_(tensor)
