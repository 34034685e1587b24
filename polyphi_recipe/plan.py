"""The plan of a stage: trainable parameters, memory, FLOPs, communication, time and cost on given devices.

    polyphi plan                                                       all sixteen stages on 64 H100
    polyphi plan text_1_pretrain --devices 512xA100 --fsdp 8 --price 1.5

`docs/plan.md` lists the assumptions and compares plans with measurements.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import ceil
from typing import Literal

import torch
from rich.table import Table

from polyphi.messages import Audio, Image, Item, media
from polyphi.model.config import ModelConfig
from polyphi.planning import cost
from polyphi.planning.cost import (
    StageModel,
    Switches,
    Work,
    divided,
    flops,
    memory,
    precomputes_reference,
    scaled,
    traffic,
    work,
)
from polyphi.planning.example_rows import Row, example_rows, longest_row
from polyphi.processing import image
from polyphi.processing.item_reader import ItemReader
from polyphi.processing.media import audio_size, image_size
from polyphi.train.loss import NextToken
from polyphi.train.stage import Comparing
from polyphi_recipe.corpora import capacities
from polyphi_recipe.recipe import Recipe, short

# ------------------------------------------------------------------------------ devices


@dataclass(frozen=True)
class Device:
    """`memory` in bytes, in decimal units (the card's additional memory is for CUDA's context and fragmentation);
    `flops`: dense bf16 FLOP/s; `inside` and `between`: bytes/s per device and direction within a machine of
    `devices_per_machine` devices and between machines."""

    memory: float
    flops: float
    inside: float
    between: float
    devices_per_machine: int = 8


# Memory, dense FLOP/s (half of the value "with sparsity") and NVLink (half of "total") are from NVIDIA's data sheets of
# the SXM modules, of DGX B200 (an eighth of it) and of the L4. Between machines: one network card per
# GPU, as in DGX A100 (200 Gbit/s), DGX H100, H200 and B200 (400 Gbit/s); 100 Gbit/s for a machine of L4 [ours].
DEVICES = {
    "A100": Device(80e9, 312e12, 300e9, 25e9),
    "H100": Device(80e9, 989e12, 450e9, 50e9),
    "H200": Device(141e9, 989e12, 450e9, 50e9),
    "B200": Device(180e9, 2250e12, 900e9, 50e9),
    "L4": Device(24e9, 121e12, 32e9, 12.5e9),
    # Two cores of an AMD EPYC (Zen 4): bf16 products as measured (docs/plan.md); between machines 10 Gbit/s [ours].
    "cpu": Device(24e9, 0.42e12, 10e9, 1.25e9, 1),
}

UTILISATION = 0.4
"""Share of a device's peak that training reaches. Llama 3 405B: 38 to 43 % on H100 (arXiv 2407.21783, table 4)."""


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a GPU in the table; None for other GPUs and for CPUs, which differ too much."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((entry.flops for key, entry in DEVICES.items() if key in name), None)


def cluster(text: str) -> tuple[int, str]:
    """(number of devices, device) of a text such as "64xH100". Raises ValueError for another format or device."""
    match = re.fullmatch(r"(?:(\d+)x)?(\w+)", text.strip())
    names = {name.lower(): name for name in DEVICES}
    if match is None or match[2].lower() not in names or int(match[1] or 1) < 1:
        raise ValueError(
            f"unknown devices {text!r}; expected a number and a name, such as 64xH100; names: {', '.join(DEVICES)}"
        )
    return int(match[1] or 1), names[match[2].lower()]


# ------------------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class Plan:
    """The plan of a stage, as `polyphi plan --json` prints it. Bytes are those of a device, FLOPs those of a step over
    all devices; `learn` lists (glob, parameters, peak learning rate); `step` has the amounts of an average step;
    `fullest` is the corpus whose packs take most memory; `advice` lists alternative changes with which the stage would
    fit."""

    stage: str
    size: str
    objective: str
    parents: tuple[str, ...]
    learn: list[tuple[str, int, float]]
    frozen: int
    steps: int
    tokens: int
    step: dict[str, float]
    devices: str
    switches: Switches
    memory: dict[str, float]
    room: float
    fullest: str
    fits: bool
    advice: list[str]
    flops: dict[str, float]
    traffic: dict[str, float]
    seconds: float
    utilisation: float
    device_hours: float
    price: float | None

    @property
    def total(self) -> float:
        """FLOPs of the whole stage."""
        return sum(self.flops.values()) * self.steps

    @property
    def cost(self) -> float | None:
        """Cost of the whole stage."""
        return None if self.price is None else self.price * self.device_hours


def stage_model(name: str, recipe: Recipe) -> StageModel:
    """The model of a stage of a recipe."""
    stage = recipe.lineage.stage(name)
    config = recipe.lineage.configuration(stage, recipe.size.model, None)
    return cost.stage_model(stage, recipe.budget(stage), config)


CHARACTERS_PER_TOKEN = 4
"""[ours] For estimates of English text."""
TOKENS_PER_SECOND = 12.5
"""Of audio: 80 ms each (report 2.2.1)."""


@cache
def measured_row(recipe: Recipe, corpus: str) -> Row | None:
    """A typical row of a corpus with sources, by their first rows: the mean lengths of texts, the images of the row
    that has most, the longest audio. None for a built-in corpus."""
    if recipe.imported(corpus) is None:
        return None
    from polyphi_recipe.imports import imported  # needs the extra `curate`

    own = imported(recipe, corpus)
    assert own is not None
    texts = [sum(len(m.text) for m in one.messages) for one in own.tried]
    answers = [len(one.answer) for one in own.tried]
    pictures = max(([i.source for i in media(one.messages, Image)] for one in own.tried), key=len)
    audio = [a.source for one in own.tried for a in media(one.messages, Audio)]
    seconds = [count / rate for count, rate in map(audio_size, audio)]
    return Row(
        ceil(sum(texts) / len(texts) / CHARACTERS_PER_TOKEN),
        None
        if own.kinds == {"document"}
        else ceil(sum(answers) / len(answers) / CHARACTERS_PER_TOKEN),
        tuple(image_size(picture) for picture in pictures),
        max(seconds, default=0.0),
        max((tuple(media(one.messages, Item)) for one in own.tried), key=len),
    )


def estimated_tokens(row: Row, model: ModelConfig) -> float:
    """The tokens of a typical row: of text, of images at their number of crops, of audio."""
    tokens = row.text + TOKENS_PER_SECOND * row.seconds
    for name, own in model.further.items():
        reader = ItemReader(own.modality)
        tokens += sum(reader.tokens(item, None) for item in row.items if item.modality == name)
    if model.vision is not None:
        side, patch = model.vision.crop_size, model.vision.patch_size
        layouts = (
            image.plan(*size, crop_size=side, patch_size=patch).layout for size in row.pictures
        )
        tokens += sum(layout.tokens(model.vision.cells) for layout in layouts)
    return tokens


@dataclass(frozen=True)
class Load:
    """What a step of a stage has to do: `samples` has the amounts of a typical sample of each corpus, `longest` those
    of a longest one, `mean` those of one of the mix, `step` those of an average step."""

    target: StageModel
    samples: Mapping[str, Work]
    longest: Mapping[str, Work]
    mean: Work
    step: Work

    @classmethod
    def of(cls, target: StageModel, recipe: Recipe) -> "Load":
        """The load of a stage of a recipe."""
        mix = target.stage.data.weights
        measured = {c: measured_row(recipe, c) for c in mix}
        samples = {c: work(example_rows(target, c, measured[c]), target.config) for c in mix}
        longest = {
            c: work(example_rows(target, c, own or longest_row(target, c)), target.config)
            for c, own in measured.items()
        }
        total = sum(mix.values())
        mean = sum((scaled(samples[c], w / total) for c, w in mix.items()), Counter())
        step = scaled(mean, target.budget.batch_tokens / mean["tokens"])
        return cls(target, samples, longest, mean, step)

    @property
    def compares(self) -> bool:
        """Whether the samples of a step are compared with each other."""
        return isinstance(self.target.stage.objective, Comparing)

    def of_pack(self, sample: Work, micro_tokens: int) -> int:
        """Samples with the amounts of `sample` in a pack, at least one (`Capacity`)."""
        fitting = micro_tokens // sample["tokens"]
        if self.compares:
            assert self.target.config.vision is not None
            cells = self.target.config.vision.cells**2
            fitting = min(fitting, micro_tokens // cells // sample["crops"])
        return max(1, int(fitting))

    def fullest(self, on: Switches, world: int, cpu: bool) -> tuple[dict[str, float], str]:
        """(memory with the pack that takes most, its corpus). A pack has as many samples as fit, at least one, which is
        a longest one; of it a device has its part."""
        packs = [
            (c, divided(scaled(sample, self.of_pack(sample, on.micro_tokens)), on.context_parallel))
            for samples in (self.samples, self.longest)
            for c, sample in samples.items()
        ]
        if self.compares:
            compared: Work = Counter(compared=round(self.step["sequences"]))
            packs = [(c, w | compared) for c, w in packs]
        usage = [(memory(self.target, w, on, world, cpu), c) for c, w in packs]
        return max(usage, key=lambda one: one[0]["peak"])

    def time(self, on: Switches, world: int, device: Device, utilisation: float) -> "Time":
        """The time of a step."""
        target = self.target
        of_parts = flops(target, self.step, on.activations == "recompute")
        if precomputes_reference(target):
            of_parts["reference"] = sum(flops(target, self.step, backward=False).values())
        # Samples of a device, or of those that share packs.
        own = self.step["sequences"] * on.context_parallel / world
        samples = self.of_pack(self.mean, on.micro_tokens)
        packs = ceil(own / samples)
        if self.compares and packs > 1:
            views: Work = Counter({"crops": self.step["crops"]})
            of_parts["first pass"] = sum(flops(target, views, backward=False).values())
        sent = traffic(target, on, world, packs)
        inside = device.devices_per_machine
        link = device.inside if world <= inside else device.between
        group = max(on.fsdp, on.context_parallel)
        group_link = device.inside if group <= inside else device.between
        # The others wait for the device that has most: a sample isn't divided, of a shared pack no image and no clip.
        pack = scaled(self.mean, samples)
        shares = on.context_parallel * self.step["tokens"] / pack["tokens"]
        most = scaled(divided(pack, on.context_parallel), shares)
        waiting = flops(target, most, on.activations == "recompute")
        slowest = sum((of_parts | waiting).values()) * ceil(own) / own
        arithmetic = slowest / (device.flops * utilisation * world)
        seconds = max(arithmetic, sent["shards"] / group_link) + sent["context"] / group_link
        return Time(of_parts, sent, seconds + sent["gradients"] / link)


@dataclass(frozen=True)
class Time:
    """FLOPs of a step by part, bytes that a device sends in it, and its seconds."""

    flops: dict[str, float]
    traffic: dict[str, float]
    seconds: float


def plan(
    name: str,
    recipe: Recipe,
    devices: str = "64xH100",
    on: Switches = Switches(),  # noqa: B008 - frozen
    *,
    utilisation: float = UTILISATION,
    price: float | None = None,
    fit: bool = False,
) -> Plan:
    """The plan of a stage. `price` is that of a device's hour. `fit`: with a fast setting that fits, where there is
    one. Frozen weights of parts stay in bf16. Raises ValueError for an unknown stage or device, and for shards or
    context that the number of devices or the stage doesn't allow."""
    target, (world, device_name) = stage_model(name, recipe), cluster(devices)
    device, cpu = DEVICES[device_name], device_name == "cpu"
    on = as_trained(recipe, on)
    _check(target, on, devices, utilisation)
    load = Load.of(target, recipe)
    if fit:
        on = _fitting(load, on, world, device_name, utilisation)
    used, worst = load.fullest(on, world, cpu)
    fits = used["peak"] <= device.memory
    time, budget = load.time(on, world, device, utilisation), target.budget
    return Plan(
        stage=name,
        size=recipe.name,
        objective=repr(target.stage.objective),
        parents=target.stage.parents,
        learn=[
            (g, target.size(n), target.stage.trainable[g] * budget.lr_factor)
            for g, n in target.trainable_groups.items()
        ],
        frozen=target.size(target.tensors) - target.size(target.trainable),
        steps=budget.steps,
        tokens=budget.steps * budget.batch_tokens,
        step=dict(load.step),
        devices=f"{world}x{device_name}",
        switches=on,
        memory=used,
        room=device.memory,
        fullest=worst,
        fits=fits,
        advice=[] if fits else _advice(load, on, world, device_name),
        flops=time.flops,
        traffic=time.traffic,
        seconds=time.seconds,
        utilisation=utilisation,
        device_hours=time.seconds * budget.steps * world / 3600,
        price=price,
    )


def as_trained(recipe: Recipe, on: Switches) -> Switches:
    """The switches of a recipe's stages: parts stay in bf16 (`Run.train`)."""
    return replace(on, base="bf16") if recipe.parts and on.base == "fp32" else on


def _fitting(load: Load, on: Switches, world: int, device: str, utilisation: float) -> Switches:
    """The setting that fits with the fewest changes of those that are at most 5 % slower than the fastest; `on` where
    none fits. Frozen weights are quantized only where nothing else fits."""
    others = changes(load.target, on, world, device)
    settings = [on, *(other for _, other, n, card in others if (n, card) == (world, device))]
    room, cpu = DEVICES[device].memory, device == "cpu"
    for base in dict.fromkeys(s.base for s in settings):
        seconds = {
            s: load.time(s, world, DEVICES[device], utilisation).seconds
            for s in settings
            if s.base == base and load.fullest(s, world, cpu)[0]["peak"] <= room
        }
        if seconds:
            fast = [s for s, n in seconds.items() if n <= 1.05 * min(seconds.values())]
            return min(fast, key=lambda s: (len(_flags(s, on)), seconds[s]))
    return on


def _check(target: StageModel, on: Switches, devices: str, utilisation: float) -> None:
    """Raise ValueError for a setting that the devices or the stage don't allow."""
    name, (world, _) = target.stage.name, cluster(devices)
    if on.fsdp < 1 or world % on.fsdp:
        raise ValueError(f"--fsdp {on.fsdp} must divide the number of devices, found {devices}")
    if on.fsdp > 1 and not shardable(target, on.base):
        why = "is quantized" if target.decoder != "unused" else "isn't used"
        raise ValueError(f"--fsdp shards the decoder, which {why} in {name}: omit --fsdp")
    if on.context_parallel < 1 or world % on.context_parallel:
        raise ValueError(
            f"--context-parallel {on.context_parallel} must divide the number of devices, found {devices}"
        )
    if on.context_parallel > 1 and not context_shardable(target):
        raise ValueError(
            "--context-parallel divides rows of next-token prediction without auxiliary losses; "
            f"{name} has {target.stage.objective!r}: omit --context-parallel"
        )
    if on.micro_tokens < 1 or not 0 < utilisation <= 1:
        raise ValueError(
            f"expected micro-tokens above 0 and a utilisation in (0, 1], found {on.micro_tokens} and {utilisation}"
        )


def _advice(load: Load, on: Switches, world: int, device: str) -> list[str]:
    """The changes with which the stage would fit that have the fewest options, and of each option the smallest."""
    advice: list[str] = []
    every = sorted(changes(load.target, on, world, device), key=lambda change: _weight(change[0]))
    for text, other, count, card in every:
        if advice and _weight(text) > _weight(advice[0]):
            break
        if load.fullest(other, count, device == "cpu")[0]["peak"] <= DEVICES[card].memory:
            advice.append(text)
    mildest = {re.sub(r"\d+", "", text): text for text in reversed(advice)}
    return list(mildest.values())[::-1]


def shardable(target: StageModel, base: str) -> bool:
    """Whether the decoder's layers can be sharded (`polyphi/train/parallel.py`): where they are used and aren't
    quantized."""
    return target.decoder != "unused" and base not in QUANTIZED


def quantizable(target: StageModel) -> bool:
    """Whether the decoder can be a quantized base: where gradients pass it and its own weights aren't trained."""
    return target.decoder == "backward" and not target.trains("decoder.norm")


def context_shardable(target: StageModel) -> bool:
    """Whether devices can share a pack: rows of next-token prediction without an auxiliary loss."""
    objective = target.stage.objective
    return isinstance(objective, NextToken) and not objective.align


def changes(
    target: StageModel, on: Switches, world: int, device: str
) -> Iterator[tuple[str, Switches, int, str]]:
    """(options as text, switches, number of devices, device) of all other settings, single and combined."""
    larger = [n for n in DEVICES if DEVICES[n].memory > DEVICES[device].memory]
    devices = [(world, device, "")]
    devices += [(world, n, f"--devices {world}x{n}") for n in sorted(larger, key=_memory)]
    shards = _doubled(on.fsdp, MAX_SHARDS if shardable(target, on.base) else 0)
    contexts = _doubled(on.context_parallel, MAX_CONTEXT if context_shardable(target) else 0)
    activation_choices: tuple[Literal["keep", "recompute"], ...] = ("keep", "recompute")
    packs = [on.micro_tokens, *(n for n in (4096, 2048, 1024, 512) if n < on.micro_tokens)]
    bases = [on.base]
    if quantizable(target):
        bases += QUANTIZED[QUANTIZED.index(on.base) + 1 :] if on.base in QUANTIZED else QUANTIZED
    for base, (count, card, text), shard, context, activations, micro_tokens in product(
        bases, devices, shards, contexts, activation_choices, packs
    ):
        if activations == "keep" and on.activations == "recompute":
            continue
        if shard > 1 and base in QUANTIZED:
            continue
        if needed := [n for n in (shard, context) if count % n]:
            count, text = max(needed), f"--devices {max(needed)}x{card}"
        other = Switches(shard, micro_tokens, activations, context, base)
        if flags := [*filter(None, [text]), *_flags(other, on)]:
            yield " ".join(flags), other, count, card


def _flags(other: Switches, on: Switches) -> list[str]:
    """The options that change `on` to `other`."""
    return [
        f"--{name.replace('_', '-')} {getattr(other, name)}"
        for name in ("fsdp", "context_parallel", "activations", "base", "micro_tokens")
        if getattr(other, name) != getattr(on, name)
    ]


def _weight(options: str) -> int:
    """The number of options; one that quantizes weights counts as two."""
    return options.count("--") + ("--base" in options)


def _doubled(start: int, limit: int) -> list[int]:
    """`start` and its doubles up to `limit`."""
    return [start, *(start << n for n in range(1, 10) if start << n <= limit)]


def _memory(device: str) -> float:
    return DEVICES[device].memory


MAX_SHARDS, MAX_CONTEXT = 512, 64
QUANTIZED: list[Literal["int8", "int4"]] = ["int8", "int4"]

# ------------------------------------------------------------------------------ output


def page(plans: Sequence[Plan], on: Switches) -> Iterator[Table | str]:
    """The output of `polyphi plan` with the options `on`: one stage in detail, or a table of several with their
    sum."""
    if len(plans) == 1:
        yield from _details(plans[0])
        return
    first = plans[0]
    table = Table(box=None, padding=(0, 1))
    for column in ("stage", "learn", "tokens", "GB", "FLOPs", "days", "device hours", "fits"):
        left = column in ("stage", "fits")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for p in plans:
        table.add_row(
            p.stage,
            short(sum(n for _, n, _ in p.learn)),
            short(p.tokens),
            f"{p.memory['peak'] / 1e9:,.0f}",
            f"{p.total:.2g}",
            f"{p.seconds * p.steps / 86400:.1f}",
            f"{p.device_hours:,.0f}",
            "yes" if p.fits else "no",
        )
    hours = sum(p.device_hours for p in plans)
    table.add_row("all", "", short(sum(p.tokens for p in plans)), "", "", "", f"{hours:,.0f}", "")
    yield f"{first.size}, {first.devices} of {first.room / 1e9:.0f} GB, {_switches_text(on)}"
    yield table
    # Not in the table, which would cut them off in a narrow terminal.
    yield from (f" {p.stage:<22} {text}" for p in plans if (text := _options_text(p, on)))
    if first.price is not None:
        yield f"cost {first.price * hours:,.0f} at {first.price:g} per device hour"


def _options_text(p: Plan, on: Switches) -> str:
    """The options of a plan beside `on`, or those with which the stage would fit."""
    if p.fits:
        return " ".join(_flags(p.switches, on))
    return f"would fit with {p.advice[0] if p.advice else 'no option'}"


def sources_table(recipe: Recipe) -> Table:
    """The corpora of a recipe's stages: the formats that were detected, rows and tokens of the sources
    (estimated), and the tokens that the stages take, with how often each row is used."""
    from polyphi_recipe.imports import imported  # needs the extra `curate`

    table = Table(box=None, padding=(0, 1))
    for column in ("corpus", "files", "format", "rows", "tokens", "stages take", "epochs"):
        table.add_column(column, justify="left" if column in ("corpus", "format") else "right")
    for name, needed in recipe.tokens_needed().items():
        own = imported(recipe, name)
        if own is None:
            rows, tokens = capacities.of(name, recipe.size)
            files, formats = "", "built in"
        else:
            files, formats = (
                f"{len(own.files):,}",
                ", ".join(sorted({f.format for _, f in own.files})),
            )
            rows = min(own.estimated_rows, own.table.rows or own.estimated_rows)
            row = measured_row(recipe, name)
            assert row is not None
            tokens = rows * estimated_tokens(row, recipe.size.model)
        epochs = f"{needed / tokens:.3g}" if tokens else "no rows"
        table.add_row(name, files, formats, f"{rows:,}", short(tokens), short(needed), epochs)
    return table


def _details(p: Plan) -> Iterator[Table | str]:
    yield f"{p.stage} {p.size}, {p.objective}, on {p.devices}, {_switches_text(p.switches)}"
    yield f"starts from {', '.join(p.parents) or 'nothing'}"
    trainable = Table("trainable", "parameters", "peak lr", box=None, padding=(0, 2))
    for glob, size, lr in p.learn:
        trainable.add_row(glob, f"{size:,}", f"{lr:.1e}")
    trainable.add_row("(frozen)", f"{p.frozen:,}", "frozen")
    yield trainable
    keys = ("tokens", "supervised", "sequences", "crops", "mels")
    step = ", ".join(f"{short(p.step[k])} {k}" for k in keys if p.step.get(k))
    yield f"{p.steps:,} steps, {short(p.tokens)} tokens; a step: {step}"
    parts = Table("memory of a device", "GB", box=None, padding=(0, 2))
    for part, part_bytes in p.memory.items():
        parts.add_row(part, f"{part_bytes / 1e9:,.1f}")
    yield parts
    if p.fits:
        yield f"fits into {p.room / 1e9:.0f} GB; fullest with {p.fullest}"
    else:
        yield f"doesn't fit into {p.room / 1e9:.0f} GB; fullest with {p.fullest}"
        yield "would fit with  " + (
            "\n           or  ".join(p.advice) or "no combination of options"
        )
    forward = ", ".join(f"{modality} {n:.3g}" for modality, n in p.flops.items())
    yield f"FLOPs of a step: {sum(p.flops.values()):.3g} ({forward}); of the stage: {p.total:.3g}"
    sent = ", ".join(f"{operation} {n / 1e9:,.1f} GB" for operation, n in p.traffic.items())
    yield f"sent by a device in a step: {sent}"
    cost = "" if p.cost is None else f", cost {p.cost:,.0f}"
    yield (
        f"{p.seconds:.3g} s a step at {p.utilisation:.0%} of the peak, "
        f"{p.seconds * p.steps / 86400:.1f} days, {p.device_hours:,.0f} device hours{cost}"
    )


def _switches_text(on: Switches) -> str:
    shards = f"layers in {on.fsdp} shards" if on.fsdp > 1 else "replicas"
    over = f" over {on.context_parallel} devices" if on.context_parallel > 1 else ""
    packs = f"packs of {on.micro_tokens:,} tokens{over}"
    return f"{shards}, {packs}, activations: {on.activations}, frozen weights: {on.base}"
