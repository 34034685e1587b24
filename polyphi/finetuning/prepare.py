"""A fine-tune before its weights are loaded: its rows are read, its precision is chosen.

job = check(...)  ->  plan = prepare(job)  ->  plan = choose(plan)  (plan.py, optional)  ->  run(plan)  (run.py)
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from pathlib import Path

import torch

from polyphi.checkpoints.headers import read_config, stored_types
from polyphi.data import user_data
from polyphi.devices import placement
from polyphi.devices.memory import free_memory
from polyphi.devices.precision import Choice, pinned, products
from polyphi.finetuning.job import FinetuneJob, configuration, sketch_of
from polyphi.finetuning.stages import for_rows
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.item_reader import ItemReader
from polyphi.quantization.quantize import frozen_parts
from polyphi.runtime import distributed
from polyphi.runtime.files import locked, remove
from polyphi.train.epochs import RowTokens, check_parts, row_tokens, steps_of
from polyphi.train.evaluation import SPLIT
from polyphi.train.optimizer import with_default_lrs
from polyphi.train.options import FinetuneOptions, MachineOptions, TrainOptions
from polyphi.train.stage import Budget, Stage
from polyphi.train.state import METRICS, choose_precision

CountRows = Callable[[], Mapping[str, RowTokens]]
"""Returns the tokens of the rows of each corpus."""


@dataclass(frozen=True)
class FinetunePlan:
    """A fine-tune whose rows are read and whose weights aren't. `stage` has its learning rates and `config` its
    adapters; `trainable` are the names of the trained parameters. A step between `prepare` and `run` may return a plan
    with another `budget` or `machine`. The first call of `count_rows` counts, further ones don't."""

    job: FinetuneJob
    stage: Stage
    config: ModelConfig
    trainable: Collection[str]
    precision: Choice
    budget: Budget
    machine: MachineOptions
    count_rows: CountRows

    @property
    def options(self) -> TrainOptions:
        """The options of the job, with the plan's use of the machine."""
        return replace(self.job.options, machine=self.machine)


def prepare(job: FinetuneJob) -> FinetunePlan:
    """Read the rows of a job and return its plan, with the length and the use of the machine as requested. All
    processes call this together; the first one reads the rows. Raises ValueError for rows that can't be used."""
    parts = distributed.from_first(lambda: _build_rows(job))
    stage, folder = job.stage, job.checkpoint_folder
    if job.is_built_in:
        stage = for_rows(stage, parts, read_config(folder).adapters)
    sketch = sketch_of(stage, configuration(stage, folder, job.modalities))
    stage = with_default_lrs(stage, sketch.config.adapters)
    trainable = stage.learning_rates(n for n, _ in sketch.named_parameters())
    precision = _precision(job, stage, sketch, trainable)
    if distributed.rank() == 0:
        job.report(f"precision {precision}")
    count_rows = cache(partial(row_tokens, stage, job.processor, job.data))
    budget = distributed.from_first(lambda: budget_of(stage, job.finetuning, count_rows))
    return FinetunePlan(
        job, stage, sketch.config, trainable, precision, budget, job.options.machine, count_rows
    )


@contextmanager
def run_folder(job: FinetuneJob) -> Iterator[None]:
    """Lock the folder of a job while this process prepares and runs it; remove a new one if it fails before its first
    step."""
    with _removed_if_refused(job.out), _alone(job):
        yield


def budget_of(stage: Stage, finetuning: FinetuneOptions, count_rows: CountRows) -> Budget:
    """The budget by these options; what they don't have is the stage's. The rows are counted for a number of epochs
    only."""
    batch = finetuning.batch_tokens or stage.batch_tokens
    steps = finetuning.steps or stage.steps
    if finetuning.epochs is not None:
        steps = steps_of(finetuning.epochs, count_rows(), batch)
    return Budget(steps, batch, stage.context, finetuning.lr_factor)


def _build_rows(job: FinetuneJob) -> Mapping[str, int]:
    """Write the rows of all corpora as shards; returns the numbers of parts by modality in the first corpus."""
    finetuning = job.finetuning
    manifests = [
        user_data.build(
            job.data / corpus,
            sources,
            columns=job.columns[corpus],
            skip_bad=finetuning.skip_bad,
            allowed_media_path=finetuning.allowed_media_path,
            encoding=finetuning.encoding,
            media_dir=finetuning.media_dir,
            split=split,
            readers={m.name: ItemReader(m) for m in job.modalities},
            check=partial(check_parts, job.stage, job.processor),
            report=job.report,
        )
        for split, of_split in (("train", job.sources), (SPLIT, job.eval_sources))
        for corpus, sources in of_split.items()
    ]
    parts: Mapping[str, int] = manifests[0]["parts"]
    return parts


def _precision(
    job: FinetuneJob, stage: Stage, sketch: PhiModel, trainable: Collection[str]
) -> Choice:
    """The precision of the run: float32, which also casts frozen weights, only if these fit into free memory."""
    device, base = distributed.device(), job.options.base
    free = free_memory(device)
    needed = placement.size(stored_types(job.checkpoint_folder), torch.float32)
    quantized = frozen_parts(sketch, base, trainable, device) if base else []
    needed -= sum(4 * prod(part.shape) for part in quantized)
    return choose_precision(
        job.options.precision,
        job.out,
        device,
        lambda: products((p.shape, n in trainable) for n, p in sketch.named_parameters()),
        min(job.options.machine.micro_tokens, job.finetuning.batch_tokens or stage.batch_tokens),
        lambda choice: _fitting_choice(choice, needed, free),
    )


def _fitting_choice(choice: Choice, needed: int, free: int) -> Choice:
    """The choice, or bf16 where the weights don't fit into memory in float32."""
    if choice.precision == "bf16" or needed <= free or pinned() is not None:
        return choice
    return Choice(
        "bf16",
        f"the weights take {needed / 1e9:.1f} GB in float32, and {free / 1e9:.1f} GB are free ({choice.reason})",
    )


@contextmanager
def _alone(job: FinetuneJob) -> Iterator[None]:
    """Wait, with a message, while another process trains in the folder; the first process of a torchrun has the lock
    for all of them."""
    if distributed.rank() > 0:
        yield
        return
    out, report = job.out, job.report
    with locked(
        out / ".lock", report=lambda h: report(f"{out}: waits for {h}, which trains there")
    ):
        yield


@contextmanager
def _removed_if_refused(out: Path) -> Iterator[None]:
    """Remove what a call wrote to a new or empty folder where it fails before its first step, and the folder."""
    absent = [path for path in (out, *out.parents) if not path.exists()]
    is_new = bool(absent) or not any(out.iterdir())
    try:
        yield
    except Exception:
        if is_new and distributed.rank() == 0 and not (out / METRICS).exists():
            for path in out.iterdir() if out.exists() else ():
                remove(path)
            for path in absent:
                with suppress(OSError):
                    path.rmdir()
        raise
