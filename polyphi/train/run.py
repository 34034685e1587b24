"""A stage in training: what it has behind it, and how a step is taken.

samples of a step -> packs -> loss and backward of each, sums over units -> sums over processes
                  -> means, clipped -> AdamW, or not where it went wrong (guard.py)
"""

import dataclasses
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyphi.batch import Batch, pack
from polyphi.data.loader import Loader, Step
from polyphi.data.packing import Pack, Room, deal, whole
from polyphi.model.attention import padding
from polyphi.model.multimodal import PhiModel
from polyphi.runtime import distributed, progress
from polyphi.runtime.precision import Choice
from polyphi.train import checkpoint, guard, parallel, resume
from polyphi.train.freeze import (
    check_gradients,
)
from polyphi.train.guard import Guard
from polyphi.train.interrupt import Interruptible
from polyphi.train.optim import optimiser, set_rate
from polyphi.train.reference import References
from polyphi.train.resume import COUNTED, METRICS, QUARANTINE, Past
from polyphi.train.stage import Budget, Stage

Tell = Callable[[Any], None]
FRAMES_PER_SECOND = 100
"""Log-mel frames (report 2.2.1)."""


class Run:
    """A stage in training: who learns, what is behind it, and how a step is taken."""

    def __init__(
        self,
        stage: Stage,
        budget: Budget,
        learners: "Learners",
        parameters: dict[str, Tensor],
        loader: Loader,
        out: Path,
        *,
        seed: int,
        precision: Choice,
        room: Room,
        flops: Callable[[Batch], float] | None,
        peak_flops: float | None,
        tell: Tell,
    ) -> None:
        self.stage, self.budget, self.learners = stage, budget, learners
        self.parameters, self.loader, self.out, self.tell = parameters, loader, out, tell
        self.seed, self.precision, self.room = seed, precision.precision, room
        self._precision_reason = precision.reason
        self.flops, self.peak_flops = flops, peak_flops
        self.device = next(iter(parameters.values())).device
        self.learned = {name: p for name, p in parameters.items() if p.requires_grad}
        self.averages = (
            {n: p.detach().clone() for n, p in self.learned.items()} if stage.ema else {}
        )
        narrow = torch.bfloat16 if precision.precision == "bf16" else torch.float32
        self.optimizer = optimiser(stage, parameters, budget, narrow)
        self.past = Past()
        self._steps: Generator[Step, None, None] | None = None

    # ---------------------------------------------------------------- files

    def resume(
        self,
        checkpoints: checkpoint.Checkpoints,
        identity: Mapping[str, Any],
        resting: Mapping[str, str],
    ) -> bool:
        """Go on from the latest checkpoint, if there is one."""
        self.checkpoints = checkpoints
        self._state = {
            "identity": identity,
            "frozen": resting,
            resume.REASON: self._precision_reason,
        }
        stored = checkpoints.find()
        if stored is not None:
            resume.must_continue(stored, self.out, identity, resting)
            self._restore(stored)
            self.loader.restore(self.past.draws, self.past.corrupt)
        return stored is not None

    def _restore(self, stored: checkpoint.Stored) -> None:
        self.past = resume.restore(stored, self.learned, self.averages, self.optimizer)

    def __enter__(self) -> "Run":
        self._open()
        return self

    def _open(self) -> None:
        """Metrics and quarantine, without what a run wrote that went on after its last checkpoint."""
        first = distributed.rank() == 0
        self._metrics, self._quarantine = (
            progress.Metrics(self.out / name, until=self.past.step) if first else None
            for name in (METRICS, QUARANTINE)
        )

    def __exit__(self, *_: object) -> None:
        self._close()
        self.checkpoints.close()

    def _close(self) -> None:
        for file in (self._metrics, self._quarantine):
            if file is not None:
                file.close()
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def save(self) -> None:
        """A checkpoint of this very moment."""
        tensors = resume.tensors(self.learned, self.averages, self.optimizer)
        self.checkpoints.save(
            self.past.step, tensors, {**self._state, **dataclasses.asdict(self.past)}
        )

    def write(self, record: Mapping[str, Any], trackers: Sequence[progress.Tracker]) -> None:
        """A step's record to the metrics and to all trackers, with its number."""
        if self._metrics is not None:
            number = self.past.step - 1
            self._metrics.write({"step": number, **record})
            for tracker in trackers:
                tracker(number, record)

    # ---------------------------------------------------------------- steps

    def look_ahead(self, reference: References, start: Mapping[str, Any]) -> None:
        """What the model says, as it is now, of all that the stage will read."""
        model = self.learners[0]
        assert isinstance(model, PhiModel)

        def answers(step: Step) -> dict[str, float]:
            said: dict[str, float] = {}
            for dealt in self._packs(step):
                batch = dealt.batch.to(self.device)
                with torch.no_grad(), _autocast(batch, self.precision):
                    said |= reference.ask(model, batch)
            return said

        model.eval()
        with (
            Interruptible() as interrupted,
            progress.progress(
                f"{self.stage.name}, its reference", self.budget.steps, 0, distributed.rank() > 0
            ) as advance,
        ):
            reference.look_ahead(
                self.loader,
                self.budget.steps,
                answers,
                self.out,
                start,
                advance=advance,
                stopped=interrupted,
            )

    def next_step(self) -> Step:
        """The samples that come next: made ahead by a thread while a GPU trains. On a CPU there is no core to spare
        for it, and two threads that wait for Python's one lock take turns of 5 ms: training took half as long again."""
        if self._steps is None:
            self._steps = self.loader.steps(
                self.budget.steps - self.past.step, ahead=self.device.type != "cpu"
            )
        step = next(self._steps)
        self.past.tell_skipped(step, self.tell)
        for skipped in step.skipped:
            if skipped.kind == "corrupt":
                self._note(id=skipped.name, reason=skipped.reason)
        return step.without(self.past.set_aside)

    def take(self, step: Step, protect: Guard) -> dict[str, Any] | None:
        """Learn from a step, and give its record; None where it went wrong and nothing was learned."""
        if not step.ids:
            self._pass_over(step)
            return None
        record, norm = self._gradients(step)
        if not math.isfinite(norm):
            step = self._without_guilty(step)
            if not step.ids:
                self._pass_over(step)
                return None
            record, norm = self._gradients(step)
        rate = set_rate(
            self.optimizer, self.stage.schedule.factor(self.past.step, self.budget.steps)
        )
        if protect.is_wrong(norm, self.past):
            self.optimizer.zero_grad(set_to_none=True)
            guard.wrong_step(self.past, step, norm, self.stage.name)
            self.tell(f"  step {self.past.step} isn't taken: its gradient norm is {norm:.3g}")
            self._note(id=step.ids, reason=f"the gradient norm is {norm:.3g}")
            self._pass_over(step)
            return None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.averages:
            torch._foreach_lerp_(
                list(self.averages.values()), list(self.learned.values()), 1 - self.stage.ema
            )
        guard.remember(self.past, norm)
        return record | {"rate": rate, "gradient_norm": norm, "ids": step.fingerprint()}

    def _pass_over(self, step: Step) -> None:
        self.past.step += 1
        self.past.draws, self.past.corrupt = step.draws, step.corrupt

    def count(self, step: Step, record: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """A step is done: what it did per second, and what was left out."""
        self.past.count(step, record, seconds)
        done = {"tokens": record["tokens"], "samples": len(step.ids), "crops": record["crops"]}
        done["audio_seconds"] = record["frames"] / FRAMES_PER_SECOND
        done["flops"] = record.get("flops", 0)
        speeds = {f"{what}_per_second": round(n / seconds, 2) for what, n in done.items() if n}
        if self.peak_flops and done["flops"]:
            speeds["utilisation"] = done["flops"] / seconds / self.peak_flops / distributed.world()
        return {**speeds, "skipped": len(step.skipped), "cut": step.cut}

    def roll_back(self) -> None:
        """To the latest checkpoint, if there is one, and on with the samples that come next."""
        self.checkpoints.wait()
        if (stored := self.checkpoints.find()) is None:
            return
        before = self.past
        self._restore(stored)
        self.tell(f"  goes back from step {before.step} to step {self.past.step}")
        self.past = dataclasses.replace(
            self.past,
            draws=before.draws,
            corrupt=before.corrupt,
            set_aside=before.set_aside,
            wrong_steps=before.wrong_steps,
            rolled_back=before.rolled_back + 1,
        )
        self.loader.restore(self.past.draws, self.past.corrupt)
        self._close()
        self._open()

    def _gradients(self, step: Step) -> tuple[dict[str, Any], float]:
        """Everyone's gradients of a step, means over its units and clipped; its record and their norm (NaN where the
        loss isn't finite)."""
        seeds = f"{self.seed} {self.stage.name} {self.past.step} {distributed.rank()}"
        torch.manual_seed(zlib.crc32(seeds.encode()))  # dropout
        record = accumulate(
            self.stage, self.learners, self._packs(step), self.precision, self.device, self.flops
        )
        learned = list(self.learned.values())
        parallel.sum_gradients(learned)
        if not math.isfinite(record["loss"]):
            return record, math.nan
        if self.past.step == 0:
            check_gradients(self.stage, self.parameters, self.device)
        scale = 1 / max(1, record["count"])
        return record, parallel.clip_gradients(learned, scale, self.stage.clip_norm).item()

    def _packs(self, step: Step) -> list[Pack]:
        """This process's packs of a step."""
        if getattr(self.stage.objective, "together", False):
            return whole(step.samples, distributed.world())
        return deal(step.samples, self.room, step.others(), step.spare())

    def _without_guilty(self, step: Step) -> Step:
        """The step without the samples that make its loss NaN, which are noted; they are not learned from again."""
        self.optimizer.zero_grad(set_to_none=True)

        def alone(rows: list[Batch]) -> float:
            with torch.no_grad():
                batch = pack(rows).to(self.device)
                return float(_loss(self.stage, self.learners, batch, self.precision)[1])

        guilty = guard.blame(step, alone)
        for name in guilty:
            self.tell(f"  {name} is set aside: its loss isn't finite")
            self._note(id=name, reason="its loss isn't finite")
        guard.set_aside(self.past, guilty, self.stage.name)
        return step.without(guilty)

    def _note(self, **what: Any) -> None:
        if self._quarantine is not None:
            self._quarantine.write({"step": self.past.step, **what})

    def hand_on(self) -> None:
        """What was learned is what the average says, where there is one."""
        with torch.no_grad():
            for name, average in self.averages.items():
                self.learned[name].copy_(average)


Learners = tuple[PhiModel | parallel.Context, nn.Module | None, Any]
"""Model (or its view of a part of each pack), throw-away module, and what the objective remembers of the start."""


def accumulate(
    stage: Stage,
    learners: Learners,
    packs: Sequence[Pack],
    precision: str,
    device: torch.device,
    flops: Callable[[Batch], float] | None = None,
) -> dict[str, Any]:
    """Forward and backward of a step's packs: gradients are sums over units. The record holds sums over all processes
    and, for losses and the objective's metrics, means over units or over a number of their own."""
    sums: defaultdict[tuple[str, int], Any] = defaultdict(float)
    parts = learners[0].mesh.size() if isinstance(learners[0], parallel.Context) else 1
    for dealt in packs:
        batch, loss, count, extra = _loss(stage, learners, dealt.batch.to(device), precision)
        (loss if dealt.share == 1 else loss * dealt.share).backward()
        found = {"loss": loss.detach().double(), "count": count, "tokens": len(batch), **extra}
        found["blank"] = (dealt.blank, 1)
        sums["empty", 0] += dealt.empty  # packs that only fill in, too
        sums["empty", 1] += 1
        if flops is not None:
            found["flops"] = flops(dealt.batch) / parts
        if device.type == "cpu":
            padded = padding(batch.bounds)
            found["padding"] = (padded, padded + len(batch))
        found["crops"] = batch.crop_count
        for key, field in (("supervised", batch.supervised), ("frames", batch.mels)):
            found[key] = 0 if field is None else len(field)
        for key, value in found.items():  # a pair is a sum and a number of its own
            for part, number in enumerate(value if isinstance(value, tuple) else (value,)):
                sums[key, part] += dealt.share * number
    keys = sorted(sums)  # the same in every process: each has at least one pack
    values = torch.stack(
        [torch.as_tensor(sums[key], dtype=torch.float64).to(device) for key in keys]
    )
    everyone = dict(zip(keys, distributed.total(values).tolist(), strict=True))
    units = max(1, round(everyone["count", 0]))
    record = {}
    for (key, part), value in everyone.items():
        if part == 0:
            number = everyone.get((key, 1), units)
            if key in ("count", "flops", *COUNTED):
                record[key] = round(value)
            elif number:
                record[key] = value / number
    return record


def _loss(
    stage: Stage, learners: Learners, batch: Batch, precision: str
) -> tuple[Batch, Tensor, int, dict[str, Any]]:
    """This process's part of a pack, and what the objective makes of it."""
    if isinstance(learners[0], parallel.Context):
        batch = learners[0].part(batch)
    with _autocast(batch, precision):
        loss, count, extra = stage.objective.loss(*learners, batch)
    return batch, loss, count, extra


def _autocast(batch: Batch, precision: str) -> torch.autocast:
    return torch.autocast(batch.ids.device.type, torch.bfloat16, precision == "bf16")
