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
from typing import Literal

import psutil
import torch

from polyphi.data.sample import Unfit
from polyphi.data.shards import Shards
from polyphi.devices.memory import free_memory
from polyphi.finetuning.run import FinetunePlan
from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost
from polyphi.planning.cost import StageModel, Switches, Work, scaled, work
from polyphi.planning.devices import DEVICES, Device
from polyphi.planning.fit import advice, fitting
from polyphi.planning.load import Load
from polyphi.prepared.prepare import prepare
from polyphi.processing.processor import TooLong
from polyphi.runtime import distributed
from polyphi.runtime.files import write_json
from polyphi.runtime.progress import duration
from polyphi.train.epochs import RowTokens, epoch_steps, steps_of
from polyphi.train.options import FinetuneOptions, TrainOptions
from polyphi.train.stage import Budget
from polyphi.train.state import MANIFEST
from polyphi.types.batch import Batch, pack, row

CHOICES = "choices.json"
EPOCHS = 3.0
"""[ours] Times that rows are used where a command names neither steps nor epochs; TRL's default, too."""
MAX_SECONDS = 8 * 3600
"""[ours] Longest run by default: a night. Rows that take longer are used less often, or not all of them."""
STEPS = 100
"""[ours] Steps of a run over few rows or in little time, whose steps are smaller than the stage's."""
MIN_ROWS = 8
"""[ours] Fewest mean rows of a step that is smaller than the stage's."""
SAMPLED_ROWS = 16
"""Rows of a corpus that are made for the amounts of a mean one."""
PROBE_TOKENS, PROBE_SECONDS = 512, 2.0
"""Tokens of the forward and backward that measure the rate, and about the time that they are repeated for."""
PROBE_VOCABULARY = 64

# ------------------------------------------------------------------------------ amounts of the rows


def load_of(plan: FinetunePlan, target: StageModel) -> Load:
    """The load of a run by its own rows. Raises ValueError where none of the rows that are tried can be used."""
    samples, longest = {}, {}
    for corpus, tokens in plan.rows.items():
        number = min(SAMPLED_ROWS, len(tokens.counted))
        spread = [tokens.index(i * len(tokens.counted) // number) for i in range(number)]
        mean, count = Counter[str](), 0
        for amounts in _amounts(plan, corpus, spread):
            mean += amounts
            count += 1
        samples[corpus] = scaled(mean, 1 / count)
        # The amounts of a mean row, with the tokens of all rows instead of those that were tried.
        used = [n for n in tokens.counted if n]
        if used:
            samples[corpus] = scaled(
                samples[corpus], sum(used) / len(used) / samples[corpus]["tokens"]
            )
        (longest[corpus],) = _amounts(plan, corpus, [tokens.index(tokens.longest)])
    return Load.of(target, samples, longest)


def _amounts(plan: FinetunePlan, corpus: str, indices: Iterable[int]) -> list[Work]:
    """The amounts of rows that can be used."""
    shards, stage = Shards(plan.data / corpus / "train"), plan.stage
    adapter, amounts, reason = stage.data.adapter.get(corpus, "auto"), [], ""
    for index in indices:
        try:
            rows = stage.objective.rows(
                shards.sample(index), plan.processor, stage.context, adapter
            )
        except (TooLong, Unfit) as error:
            reason = str(error)
            continue
        amounts.append(work([pack(rows)], plan.config))
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


def report_only(plan: FinetunePlan) -> tuple[FinetuneOptions, TrainOptions]:
    """Report memory and time of a run with the options as they are, for a stage of the user's file."""
    if plan.config.further:  # their modules' FLOPs and memory are the user's
        return plan.finetuning, plan.options
    budget = plan.budget(plan.finetuning)
    target = cost.stage_model(plan.stage, budget, plan.config)
    load = load_of(plan, target)
    result = estimate(plan, load, _switches(plan), measured_rate(target, plan.precision, _device()))
    _report(plan, budget, result)
    if not result.fits:
        plan.report(f"  {_too_large(result)}")
    return plan.finetuning, plan.options


def choose(plan: FinetunePlan) -> tuple[FinetuneOptions, TrainOptions]:
    """Choose what the options leave open, for a built-in stage: its steps and their tokens by the rows and the time
    that they take here, packs and activations by the free memory. The choice is recorded in the run's folder and used
    again there. Raises ValueError where the run doesn't fit."""
    if (plan.out / MANIFEST).exists() and not _requests_more(plan):
        return _recorded(plan)
    device = _device()
    target = cost.stage_model(plan.stage, plan.budget(plan.finetuning), plan.config)
    load, rate = load_of(plan, target), measured_rate(target, plan.precision, device)
    finetuning, options = _recorded(plan)
    by_default = not (plan.out / CHOICES).exists() and _has_open_length(plan.finetuning)
    if not (plan.out / CHOICES).exists():
        on = _fitting_switches(plan, load, rate)
        machine = replace(options.machine, micro_tokens=on.micro_tokens, activations=on.activations)
        options = replace(options, machine=machine)
        finetuning = _default_length(plan, lambda d: estimate(d, load, on, rate).step_seconds)
    plan = replace(plan, finetuning=finetuning, options=options)
    result = estimate(plan, load, _switches(plan), rate)
    budget = plan.budget(finetuning)
    _report(plan, budget, result, by_default)
    if not result.fits:
        raise ValueError(_too_large(result))
    write_json(
        plan.out / CHOICES,
        {
            "steps": budget.steps,
            "batch_tokens": budget.batch_tokens,
            "micro_tokens": options.machine.micro_tokens,
            "activations": options.machine.activations,
        },
    )
    return finetuning, options


def _has_open_length(finetuning: FinetuneOptions) -> bool:
    return finetuning.steps is None and finetuning.epochs is None


def _default_length(
    plan: FinetunePlan, seconds_of: Callable[[FinetunePlan], float]
) -> FinetuneOptions:
    """The options with the tokens of a step and, where neither steps nor epochs are named, the steps: those of `EPOCHS`
    epochs, or as many as take `MAX_SECONDS`. `seconds_of` returns the seconds of a step of a plan."""
    options, stage_tokens = plan.finetuning, plan.stage.batch_tokens
    run_tokens = math.inf
    if _has_open_length(options):
        whole = replace(plan, finetuning=replace(options, batch_tokens=stage_tokens))
        run_tokens = MAX_SECONDS * stage_tokens / seconds_of(whole)
    batch = options.batch_tokens or default_batch(plan.rows, stage_tokens, run_tokens)
    options = replace(options, batch_tokens=batch)
    if _has_open_length(options):
        longest = max(1, int(MAX_SECONDS / seconds_of(replace(plan, finetuning=options))))
        options = replace(options, steps=min(longest, steps_of(EPOCHS, plan.rows, batch)))
    return options


def default_batch(
    rows: Mapping[str, RowTokens], stage_tokens: int, run_tokens: float = math.inf
) -> int:
    """Tokens of a step: the stage's, or fewer for few rows or little time, so that a run of `EPOCHS`, or of at most
    `run_tokens` tokens, has about `STEPS` steps, though at least `MIN_ROWS` mean rows and the longest one."""
    total = sum(tokens.total for tokens in rows.values())
    count = sum(tokens.rows for tokens in rows.values())
    longest = max(max(tokens.counted) for tokens in rows.values())
    least = max(longest, math.ceil(MIN_ROWS * total / count))
    return min(stage_tokens, max(least, math.ceil(min(EPOCHS * total, run_tokens) / STEPS)))


def estimate(plan: FinetunePlan, load: Load, on: Switches, rate: float) -> Estimate:
    """The estimate of a run with these settings at this rate."""
    device, world = _device(), distributed.world()
    name, cards = _this_machine(device, rate)
    used, _ = load.fullest(on, world, device.type == "cpu")
    memory = used["peak"] + memory_in_use(device)
    batch = plan.finetuning.batch_tokens or plan.stage.batch_tokens
    step = scaled(load.mean, batch / load.mean["tokens"])
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
    machine, base = plan.options.machine, plan.options.base
    stored: Literal["bf16", "fp32"] = "bf16" if plan.precision == "bf16" else "fp32"
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


def _requests_more(plan: FinetunePlan) -> bool:
    """Whether the options name more steps than the finished run in the folder has."""
    if _has_open_length(plan.finetuning):
        return False
    before = json.loads((plan.out / MANIFEST).read_text())["budget"]["steps"]
    return plan.budget(_recorded(plan)[0]).steps > before


def _recorded(plan: FinetunePlan) -> tuple[FinetuneOptions, TrainOptions]:
    """The options, with what was chosen for the run in the folder where they leave it open."""
    path, finetuning, options = plan.out / CHOICES, plan.finetuning, plan.options
    if not path.exists():
        return finetuning, options
    choices = json.loads(path.read_text())
    finetuning = replace(
        finetuning,
        batch_tokens=finetuning.batch_tokens or choices["batch_tokens"],
        steps=choices["steps"] if _has_open_length(finetuning) else finetuning.steps,
    )
    machine = replace(
        options.machine,
        micro_tokens=min(options.machine.micro_tokens, choices["micro_tokens"]),
        activations=choices["activations"],
    )
    return finetuning, replace(options, machine=machine)


def _report(plan: FinetunePlan, budget: Budget, result: Estimate, by_default: bool = False) -> None:
    """Report the length, time and memory of a run. `by_default`: its length was chosen now, and by no option."""
    epochs = budget.steps / epoch_steps(plan.rows, budget.batch_tokens)
    on = plan.options.machine
    is_shorter = by_default and epochs < EPOCHS - 1e-6
    bound = f", the most that {duration(MAX_SECONDS)} hold on this machine" if is_shorter else ""
    plan.report(
        f"{budget.steps:,} steps of {budget.batch_tokens:,} tokens, {epochs:.2g} epochs{bound} "
        f"(--epochs, --steps and --batch-tokens change it)"
    )
    plan.report(
        f"about {duration(result.step_seconds * budget.steps)} by the rate of one layer here, and "
        f"{result.memory / 1e9:.1f} GB of memory, {result.free / 1e9:.1f} GB are free (packs of "
        f"{on.micro_tokens:,} tokens, activations: {on.activations})"
    )


def _too_large(result: Estimate) -> str:
    needs = (
        f"it needs {result.memory / 1e9:.1f} GB of memory, and {result.free / 1e9:.1f} GB are free"
    )
    if not result.would_fit:
        return f"{needs}; no option makes it fit"
    return f"{needs}; it would fit with {', or '.join(result.would_fit)}"
