"""A fine-tune on this machine: memory and time before its first step, and the length and the settings that suit it.

    rows are read -> tokens of each (train/epochs.py), a few as batches -> amounts of a step (load.py)
    one decoder layer, forward and backward, on this machine             -> FLOP/s
    free memory                                                          -> packs and activations that fit (fit.py)

The settings that were chosen are in `choices.json` of the run's folder: the same command uses them again, so that a
resumed run equals one that was never stopped.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
import torch

from polyphi.data.sample import Unfit
from polyphi.data.shards import Shards
from polyphi.devices.memory import free_memory
from polyphi.finetuning.prepare import FinetunePlan, budget_of
from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost
from polyphi.planning.cost import StageModel, Switches, Work, scaled, work
from polyphi.planning.devices import DEVICES, Device
from polyphi.planning.fit import advice, fitting
from polyphi.planning.load import Load
from polyphi.prepared.prepare import prepare
from polyphi.processing.processor import Processor, TooLong
from polyphi.runtime import distributed
from polyphi.runtime.files import write_json
from polyphi.runtime.progress import duration
from polyphi.train.checkpoint import MANIFEST
from polyphi.train.epochs import RowTokens, epoch_steps, steps_of
from polyphi.train.options import FinetuneOptions, MachineOptions
from polyphi.train.stage import Budget
from polyphi.types.batch import Batch, pack, row

CHOICES_FILE = "choices.json"
DEFAULT_EPOCHS = 3.0
"""[ours] Times that rows are used where a command names neither steps nor epochs; TRL's default, too."""
MAX_DEFAULT_SECONDS = 8 * 3600
"""[ours] Longest run by default: a night. Rows that take longer are used less often, or not all of them."""
SHORT_RUN_STEPS = 100
"""[ours] Steps of a run over few rows or in little time, whose steps are smaller than the stage's."""
MIN_STEP_ROWS = 8
"""[ours] Fewest mean rows of a step that is smaller than the stage's."""
SAMPLED_ROWS = 16
"""Rows of a corpus that are made for the amounts of a mean one."""
PROBE_TOKENS, PROBE_SECONDS = 512, 2.0
"""Tokens of the forward and backward that measure the rate, and about the time that they are repeated for."""
PROBE_VOCABULARY = 64

# ------------------------------------------------------------------------------ amounts of the rows


def load_of(
    target: StageModel, rows: Mapping[str, RowTokens], processor: Processor, data: Path
) -> Load:
    """The load of a run by its own `rows`, whose shards are in the folder `data`. Raises ValueError where none of the
    rows that are tried can be used."""
    amounts_of = partial(_amounts, target, processor, data)
    samples, longest = {}, {}
    for corpus, tokens in rows.items():
        number = min(SAMPLED_ROWS, len(tokens.counted))
        spread = [tokens.index(i * len(tokens.counted) // number) for i in range(number)]
        mean, count = Counter[str](), 0
        for amounts in amounts_of(corpus, spread):
            mean += amounts
            count += 1
        samples[corpus] = scaled(mean, 1 / count)
        # The amounts of a mean row, with the tokens of all rows instead of those that were tried.
        used = [n for n in tokens.counted if n]
        if used:
            samples[corpus] = scaled(
                samples[corpus], sum(used) / len(used) / samples[corpus]["tokens"]
            )
        (longest[corpus],) = amounts_of(corpus, [tokens.index(tokens.longest)])
    return Load.of(target, samples, longest)


def _amounts(
    target: StageModel, processor: Processor, data: Path, corpus: str, indices: Iterable[int]
) -> list[Work]:
    """The amounts of rows that can be used."""
    shards, stage = Shards(data / corpus / "train"), target.stage
    adapter, amounts, reason = stage.data.adapter.get(corpus, "auto"), [], ""
    for index in indices:
        try:
            rows = stage.objective.rows(shards.sample(index), processor, stage.context, adapter)
        except (TooLong, Unfit) as error:
            reason = str(error)
            continue
        amounts.append(work([pack(rows)], target.config))
    if not amounts:
        raise ValueError(f"{corpus}: no row that was tried can be used; the last: {reason}")
    return amounts


# ------------------------------------------------------------------------------ this machine


def measured_rate(target: StageModel, precision: str, device: torch.device) -> float:
    """FLOP/s of this machine in forward and backward of one layer of the model's decoder with a trained adapter, or
    with its own weights where these are trained."""
    trains = target.trains("decoder.norm")
    adapter = next((n for n in target.config.adapters if target.trains(_lora(n))), None)
    decoder = replace(target.config.decoder, num_hidden_layers=1, vocab_size=PROBE_VOCABULARY)
    adapters = {adapter: target.config.adapters[adapter]} if adapter else {}
    config = replace(
        target.config, decoder=decoder, vision=None, audio=None, adapters=adapters, further={}
    )
    model = PhiModel(config)
    model.initialise(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for name, parameter in model.named_parameters():
        learns = ".lora." in name or (trains and "embed" not in name)
        parameter.requires_grad_(learns)
        parameter.data = parameter.data.to(device, torch.float32 if learns else dtype)
    prepare(model.train())
    batch = row([0] * PROBE_TOKENS, adapter=adapter).to(device)
    probe = StageModel(
        target.stage,
        target.budget,
        config,
        dict(model.named_parameters()),
        {"trained": [n for n, p in model.named_parameters() if p.requires_grad]},
    )
    operations = sum(cost.flops(probe, work([batch], config)).values())
    seconds: list[float] = []
    while not seconds or (sum(seconds) < PROBE_SECONDS and len(seconds) < 10):
        seconds.append(_timed(model, batch, precision))
    return operations / min(seconds)


def _lora(adapter: str) -> str:
    return f"decoder.layers.0.mlp.down_proj.lora.{adapter}"


def _timed(model: PhiModel, batch: Batch, precision: str) -> float:
    """Seconds of a forward and a backward."""
    device = batch.ids.device
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, precision == "bf16"):
        x = model.embed(batch).requires_grad_()
        loss = model.decoder(x, batch).float().sum()
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def memory_in_use(device: torch.device) -> int:
    """Bytes that this process has on the device already, which a plan doesn't count."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return psutil.Process().memory_info().rss


# ------------------------------------------------------------------------------ the choice


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run on this machine: bytes of memory with those of the process, of `free` bytes, and
    seconds of a step. `would_fit` lists changes with which it would fit, where it doesn't."""

    memory: float
    free: float
    step_seconds: float
    would_fit: list[str]

    @property
    def fits(self) -> bool:
        return self.memory <= self.free


def report_only(plan: FinetunePlan) -> FinetunePlan:
    """Report memory and time of a run for a stage of the user's file; returns the plan as it is. All processes call
    this together; the first one measures, before the others load weights into the memory that it reports."""
    if not plan.config.further:  # their modules' FLOPs and memory are the user's
        distributed.from_first(lambda: _report_requested(plan))
    return plan


def _report_requested(plan: FinetunePlan) -> None:
    target = cost.stage_model(plan.stage, plan.budget, plan.config)
    load = load_of(target, plan.count_rows(), plan.job.processor, plan.job.data)
    rate = measured_rate(target, plan.precision.precision, _device())
    result = estimate(load, _switches(plan), plan.budget.batch_tokens, rate)
    _report(plan, result)
    if not result.fits:
        plan.job.report(f"  {_too_large(result)}")


def choose(plan: FinetunePlan) -> FinetunePlan:
    """Choose what the options leave open, for a built-in stage: its steps and their tokens by the rows and the time
    that they take here, packs and activations by the free memory; returns the plan with them. The choice is recorded in
    the run's folder and used again there. All processes call this together; the first one chooses. Raises ValueError
    where the run doesn't fit."""
    budget, machine = distributed.from_first(lambda: _chosen(plan))
    return replace(plan, budget=budget, machine=machine)


def _chosen(plan: FinetunePlan) -> tuple[Budget, MachineOptions]:
    """The budget and the use of the machine that `choose` chooses."""
    job, path = plan.job, plan.job.out / CHOICES_FILE
    recorded = _with_recorded(plan)
    if (job.out / MANIFEST).exists() and not _requests_more(recorded):
        return recorded.budget, recorded.machine
    target = cost.stage_model(plan.stage, plan.budget, plan.config)
    load = load_of(target, plan.count_rows(), job.processor, job.data)
    rate = measured_rate(target, plan.precision.precision, _device())
    is_default = not path.exists() and _has_open_length(job.finetuning)
    if path.exists():
        plan = recorded
    else:
        on = _fitting_switches(plan, load, rate)
        budget = _default_budget(plan, lambda batch: estimate(load, on, batch, rate).step_seconds)
        machine = replace(plan.machine, micro_tokens=on.micro_tokens, activations=on.activations)
        plan = replace(plan, budget=budget, machine=machine)
    result = estimate(load, _switches(plan), plan.budget.batch_tokens, rate)
    _report(plan, result, is_default)
    if not result.fits:
        raise ValueError(_too_large(result))
    choices = {
        "steps": plan.budget.steps,
        "batch_tokens": plan.budget.batch_tokens,
        "micro_tokens": plan.machine.micro_tokens,
        "activations": plan.machine.activations,
    }
    write_json(path, choices)
    return plan.budget, plan.machine


def _has_open_length(finetuning: FinetuneOptions) -> bool:
    return finetuning.steps is None and finetuning.epochs is None


def _default_budget(plan: FinetunePlan, seconds_of: Callable[[int], float]) -> Budget:
    """The budget with the tokens of a step and, where neither steps nor epochs are named, the steps: those of
    `DEFAULT_EPOCHS` epochs, or as many as take `MAX_DEFAULT_SECONDS`. `seconds_of` returns the seconds of a step of so
    many tokens."""
    finetuning, rows = plan.job.finetuning, plan.count_rows()
    stage_tokens, run_tokens = plan.stage.batch_tokens, math.inf
    if _has_open_length(finetuning):
        run_tokens = MAX_DEFAULT_SECONDS * stage_tokens / seconds_of(stage_tokens)
    batch = finetuning.batch_tokens or default_batch(rows, stage_tokens, run_tokens)
    finetuning = replace(finetuning, batch_tokens=batch)
    if _has_open_length(finetuning):
        longest = max(1, int(MAX_DEFAULT_SECONDS / seconds_of(batch)))
        finetuning = replace(finetuning, steps=min(longest, steps_of(DEFAULT_EPOCHS, rows, batch)))
    return budget_of(plan.stage, finetuning, plan.count_rows)


def default_batch(
    rows: Mapping[str, RowTokens], stage_tokens: int, run_tokens: float = math.inf
) -> int:
    """Tokens of a step: the stage's, or fewer for few rows or little time, so that a run of `DEFAULT_EPOCHS`, or of at
    most `run_tokens` tokens, has about `SHORT_RUN_STEPS` steps. They hold at least `MIN_STEP_ROWS` mean rows and the
    longest row."""
    total = sum(tokens.total for tokens in rows.values())
    count = sum(tokens.rows for tokens in rows.values())
    longest = max(max(tokens.counted) for tokens in rows.values())
    least = max(longest, math.ceil(MIN_STEP_ROWS * total / count))
    short = math.ceil(min(DEFAULT_EPOCHS * total, run_tokens) / SHORT_RUN_STEPS)
    return min(stage_tokens, max(least, short))


def estimate(load: Load, on: Switches, batch_tokens: int, rate: float) -> Estimate:
    """The estimate of a run of a load with these settings, for steps of `batch_tokens` tokens at this rate."""
    device, world = _device(), distributed.world()
    name, cards = _this_machine(device, rate)
    used, _ = load.fullest(on, world, device.type == "cpu")
    memory = used["peak"] + memory_in_use(device)
    step = scaled(load.mean, batch_tokens / load.mean["tokens"])
    seconds = replace(load, step=step).time(on, world, cards[name], 1.0).seconds
    fits = memory <= cards[name].memory
    options = [] if fits else advice(load, on, world, name, cards)
    return Estimate(memory, cards[name].memory, seconds, options)


def _device() -> torch.device:
    return distributed.device()


def _this_machine(device: torch.device, rate: float) -> tuple[str, dict[str, Device]]:
    """The name of this machine's device in a table of devices with it."""
    name = "cpu" if device.type == "cpu" else "this GPU"
    free = float(free_memory(device) + memory_in_use(device))
    here = Device(free, rate, DEVICES["L4"].inside, DEVICES["L4"].between)
    return name, {**DEVICES, name: here}


def _switches(plan: FinetunePlan) -> Switches:
    """The settings of the options, as the planner's."""
    machine, base = plan.machine, plan.job.options.base
    stored: Literal["bf16", "fp32"] = "bf16" if plan.precision.precision == "bf16" else "fp32"
    activations: Literal["keep", "recompute"] = (
        "keep" if machine.activations == "keep" else "recompute"
    )
    return Switches(
        machine.fsdp, machine.micro_tokens, activations, machine.context_parallel, base or stored
    )


def _fitting_switches(plan: FinetunePlan, load: Load, rate: float) -> Switches:
    """The settings of the options, with smaller packs or recomputed activations where the memory asks for them. Others
    change the result or the machine, and are only suggested."""
    on, device, world = _switches(plan), _device(), distributed.world()
    name, cards = _this_machine(device, rate)
    cards[name] = replace(cards[name], memory=cards[name].memory - memory_in_use(device))
    chosen = fitting(load, on, world, name, 1.0, cards)
    same = replace(chosen, micro_tokens=on.micro_tokens, activations=on.activations) == on
    return chosen if same else on


def _requests_more(recorded: FinetunePlan) -> bool:
    """Whether the options name more steps than the finished run in the folder has."""
    if _has_open_length(recorded.job.finetuning):
        return False
    steps: int = json.loads((recorded.job.out / MANIFEST).read_text())["budget"]["steps"]
    return recorded.budget.steps > steps


def _with_recorded(plan: FinetunePlan) -> FinetunePlan:
    """The plan, with what was chosen for the run in the folder where the options leave it open."""
    path, finetuning, machine = plan.job.out / CHOICES_FILE, plan.job.finetuning, plan.machine
    if not path.exists():
        return plan
    choices = json.loads(path.read_text())
    finetuning = replace(
        finetuning,
        batch_tokens=finetuning.batch_tokens or choices["batch_tokens"],
        steps=choices["steps"] if _has_open_length(finetuning) else finetuning.steps,
    )
    machine = replace(
        machine,
        micro_tokens=min(machine.micro_tokens, choices["micro_tokens"]),
        activations=choices["activations"],
    )
    budget = budget_of(plan.stage, finetuning, plan.count_rows)
    return replace(plan, budget=budget, machine=machine)


def _report(plan: FinetunePlan, result: Estimate, is_default: bool = False) -> None:
    """Report the length, time and memory of a run. `is_default`: its length was chosen now, and by no option."""
    budget, machine, report = plan.budget, plan.machine, plan.job.report
    epochs = budget.steps / epoch_steps(plan.count_rows(), budget.batch_tokens)
    bound = ""
    if is_default and epochs < DEFAULT_EPOCHS - 1e-6:
        bound = f", the most that {duration(MAX_DEFAULT_SECONDS)} hold on this machine"
    report(
        f"{budget.steps:,} steps of {budget.batch_tokens:,} tokens, {epochs:.2g} epochs{bound} "
        f"(--epochs, --steps and --batch-tokens change it)"
    )
    report(
        f"about {duration(result.step_seconds * budget.steps)} by the rate of one layer here, and "
        f"{result.memory / 1e9:.1f} GB of memory, {result.free / 1e9:.1f} GB are free (packs of "
        f"{machine.micro_tokens:,} tokens, activations: {machine.activations})"
    )


def _too_large(result: Estimate) -> str:
    needs = (
        f"it needs {result.memory / 1e9:.1f} GB of memory, and {result.free / 1e9:.1f} GB are free"
    )
    if not result.would_fit:
        return f"{needs}; no option makes it fit"
    return f"{needs}; it would fit with {', or '.join(result.would_fit)}"
