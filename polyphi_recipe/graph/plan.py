"""The plan of a stage: trainable parameters, memory, FLOPs, communication, time and cost on given devices.

    polyphi plan                                                       all sixteen stages on 64 H100
    polyphi plan text_1_pretrain --devices 512xA100 --fsdp 8 --price 1.5

`docs/plan.md` lists the assumptions and compares plans with measurements.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil

from rich.table import Table

from polyphi.media.media import audio_size, image_size
from polyphi.model.config import ModelConfig
from polyphi.planning import cost
from polyphi.planning.assumptions import Hardware
from polyphi.planning.cost import StageModel, Switches, work
from polyphi.planning.devices import DEVICES, Device, cluster
from polyphi.planning.example_rows import ExampleRow, example_rows, longest_row
from polyphi.planning.fit import advice, context_shardable, fitting, flags, shardable
from polyphi.planning.load import Load
from polyphi.processing import image
from polyphi.processing.item_reader import ItemReader
from polyphi.runtime.progress import duration
from polyphi.text.quantity import quantity
from polyphi.types.messages import media
from polyphi.types.parts import Audio, Image, Item
from polyphi_recipe.corpora import capacities
from polyphi_recipe.recipe.recipe import Recipe, short

# ------------------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class Plan:
    """The plan of a stage, as `polyphi plan --json` prints it. Bytes are those of a device, FLOPs those of a step over
    all devices; `trainable` lists (glob, parameters, peak learning rate); `step` has the amounts of an average step;
    `fullest` is the corpus whose packs take most memory; `advice` lists alternative changes with which the stage would
    fit; `note` says what it leaves out."""

    stage: str
    size: str
    objective: str
    parents: tuple[str, ...]
    trainable: list[tuple[str, int, float]]
    frozen: int
    steps: int
    tokens: int
    step: dict[str, float]
    devices: str
    switches: Switches
    memory: dict[str, float]
    memory_available: float
    fullest: str
    fits: bool
    advice: list[str]
    flops: dict[str, float]
    traffic: dict[str, float]
    seconds: float
    utilisation: float
    device_hours: float
    price: float | None
    note: str = ""

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
MOST_EPOCHS = 40
"""Epochs of a text after which a further one adds nothing (Muennighoff et al. 2023, figure 1)."""
TOKENS_PER_SECOND = 12.5
"""Tokens per second of audio: 80 ms each (report 2.2.1)."""


@cache
def measured_row(recipe: Recipe, corpus: str) -> ExampleRow | None:
    """A typical row of a corpus with sources, by their first rows: the mean lengths of texts, the images of the row
    that has most, the longest audio. None for a built-in corpus."""
    if recipe.imported(corpus) is None:
        return None
    from polyphi_recipe.imports.sources import imported  # needs the extra `curate`

    own = imported(recipe, corpus)
    assert own is not None
    texts = [sum(len(m.text) for m in one.messages) for one in own.tried]
    answers = [len(one.answer) for one in own.tried]
    pictures = max(([i.source for i in media(one.messages, Image)] for one in own.tried), key=len)
    audio = [a.source for one in own.tried for a in media(one.messages, Audio)]
    seconds = [count / rate for count, rate in map(audio_size, audio)]
    return ExampleRow(
        ceil(sum(texts) / len(texts) / CHARACTERS_PER_TOKEN),
        None
        if own.kinds == {"document"}
        else ceil(sum(answers) / len(answers) / CHARACTERS_PER_TOKEN),
        tuple(image_size(picture) for picture in pictures),
        max(seconds, default=0.0),
        max((tuple(media(one.messages, Item)) for one in own.tried), key=len),
    )


def estimated_tokens(row: ExampleRow, model: ModelConfig) -> float:
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


def load_of(target: StageModel, recipe: Recipe) -> Load:
    """The load of a stage of a recipe."""
    if any(recipe.imported(corpus) for corpus in target.stage.data.weights):
        from polyphi_recipe.imports.sources import check_images  # needs the extra `curate`

        check_images(recipe, target.stage)
    measured = {c: measured_row(recipe, c) for c in target.stage.data.weights}
    samples = {c: work(example_rows(target, c, own), target.config) for c, own in measured.items()}
    longest = {
        c: work(example_rows(target, c, own or longest_row(target, c)), target.config)
        for c, own in measured.items()
    }
    return Load.of(target, samples, longest)


def plan(
    name: str,
    recipe: Recipe,
    hardware: Hardware = Hardware(),  # noqa: B008 - frozen
    on: Switches = Switches(),  # noqa: B008 - frozen
    *,
    fit: bool = False,
) -> Plan:
    """The plan of a stage of a recipe. `fit`: with a fast setting that fits, where there is one. Frozen weights of
    parts stay in bf16. Raises ValueError for an unknown stage or device, and for shards or context that the number of
    devices or the stage doesn't allow."""
    target, on = stage_model(name, recipe), as_trained(recipe, on)
    return plan_of(load_of(target, recipe), hardware, on, size=recipe.name, fit=fit)


def cards_of(hardware: Hardware) -> dict[str, Device]:
    """The table of devices, with the requested memory."""
    if hardware.memory is None:
        return DEVICES
    name = cluster(hardware.devices)[1]
    return {**DEVICES, name: replace(DEVICES[name], memory=hardware.memory * 1e9)}


def plan_of(
    load: Load, hardware: Hardware, on: Switches, *, size: str = "", fit: bool = False
) -> Plan:
    """The plan of a stage with this load."""
    target, (world, name) = load.target, cluster(hardware.devices)
    _check(target, on, hardware.devices, hardware.utilisation)
    cards, cpu = cards_of(hardware), name == "cpu"
    device = cards[name]
    if fit:
        on = fitting(load, on, world, name, hardware.utilisation, cards)
    used, worst = load.fullest(on, world, cpu)
    fits = used["peak"] <= device.memory
    time, budget = load.time(on, world, device, hardware.utilisation), target.budget
    return Plan(
        stage=target.stage.name,
        size=size,
        objective=repr(target.stage.objective),
        parents=target.stage.parents,
        trainable=[
            (g, target.size(n), target.stage.trainable[g] * budget.lr_factor)
            for g, n in target.trainable_groups.items()
        ],
        frozen=target.size(target.tensors) - target.size(target.trainable),
        steps=budget.steps,
        tokens=budget.steps * budget.batch_tokens,
        step=dict(load.step),
        devices=f"{world}x{name}",
        switches=on,
        memory=used,
        memory_available=device.memory,
        fullest=worst,
        fits=fits,
        advice=[] if fits else advice(load, on, world, name, cards),
        flops=time.flops,
        traffic=time.traffic,
        seconds=time.seconds,
        utilisation=hardware.utilisation,
        device_hours=time.seconds * budget.steps * world / 3600,
        price=hardware.price,
        note=device.note,
    )


def as_trained(recipe: Recipe, on: Switches) -> Switches:
    """The switches of a recipe's stages: parts stay in bf16 (`Run.train`)."""
    return replace(on, base="bf16") if recipe.parts and on.base == "fp32" else on


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


# ------------------------------------------------------------------------------ output


def page(plans: Sequence[Plan], on: Switches) -> Iterator[Table | str]:
    """The output of `polyphi plan` with the options `on`: one stage in detail, or a table of several with their
    sum."""
    if len(plans) == 1:
        yield from _details(plans[0])
        return
    first = plans[0]
    table = Table(box=None, padding=(0, 1))
    for column in ("stage", "learn", "tokens", "GB", "FLOPs", "time", "device hours", "fits"):
        left = column in ("stage", "fits")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for p in plans:
        table.add_row(
            p.stage,
            short(sum(n for _, n, _ in p.trainable)),
            short(p.tokens),
            _rounded(p.memory["peak"] / 1e9),
            f"{p.total:.2g}",
            duration(p.seconds * p.steps),
            _rounded(p.device_hours),
            "yes" if p.fits else "no",
        )
    hours = sum(p.device_hours for p in plans)
    table.add_row("all", "", short(sum(p.tokens for p in plans)), "", "", "", _rounded(hours), "")
    yield f"{first.size}, {first.devices} of {first.memory_available / 1e9:.0f} GB, {_switches_text(on)}"
    yield table
    # Not in the table, which would cut them off in a narrow terminal.
    yield from (f" {p.stage:<22} {text}" for p in plans if (text := _options_text(p, on)))
    if first.price is not None:
        yield f"cost {first.price * hours:,.0f} at {first.price:g} per device hour"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _options_text(p: Plan, on: Switches) -> str:
    """The options of a plan beside `on`, or those with which the stage would fit."""
    if p.fits:
        return " ".join(flags(p.switches, on))
    return f"would fit with {p.advice[0] if p.advice else 'no option'}"


def sources_table(recipe: Recipe) -> Table:
    """The corpora of a recipe's stages: the formats that were detected, rows and tokens of the sources
    (estimated), and the tokens that the stages take, with how often each row is used."""
    from polyphi_recipe.imports.sources import imported  # needs the extra `curate`

    table = Table(box=None, padding=(0, 1))
    for column in ("corpus", "files", "format", "rows", "tokens", "stages take", "epochs"):
        table.add_column(column, justify="left" if column in ("corpus", "format") else "right")
    for name, needed in recipe.tokens_needed().items():
        own, (rows, tokens) = imported(recipe, name), available(recipe, name)
        files, formats = "", "built in"
        if own is not None:
            files = f"{len(own.files):,}"
            formats = ", ".join(sorted({f.format for _, f in own.files}))
        epochs = short(needed / tokens) if tokens else "no rows"
        table.add_row(name, files, formats, f"{rows:,}", short(tokens), short(needed), epochs)
    return table


def available(recipe: Recipe, corpus: str) -> tuple[int, float]:
    """About how many training rows and tokens a corpus has."""
    from polyphi_recipe.imports.sources import imported  # needs the extra `curate`

    if (own := imported(recipe, corpus)) is None:
        return capacities.of(corpus, recipe.size)
    rows = min(own.estimated_rows, own.table.rows or own.estimated_rows)
    row = measured_row(recipe, corpus)
    assert row is not None
    return rows, rows * estimated_tokens(row, recipe.size.model)


def repeated(recipe: Recipe) -> Iterator[str]:
    """A warning for each corpus with sources whose rows the stages read too often."""
    for name, needed in recipe.tokens_needed().items():
        if recipe.imported(name) is None:
            continue
        rows, tokens = available(recipe, name)
        if needed > MOST_EPOCHS * tokens:
            often = f"{short(needed / tokens)} times" if tokens else "without end"
            yield (
                f"warning: corpora.{name} has about {quantity(rows, 'row')} of {short(tokens)} tokens, and the stages "
                f"take {short(needed)}: each row is read {often}; above {MOST_EPOCHS} times little more is learned: "
                "add sources, or lower the steps of its stages or its weight in their mixes"
            )


def _details(p: Plan) -> Iterator[Table | str]:
    yield f"{p.stage} {p.size}, {p.objective}, on {p.devices}, {_switches_text(p.switches)}"
    yield f"starts from {', '.join(p.parents) or 'nothing'}"
    trainable = Table("trainable", "parameters", "peak lr", box=None, padding=(0, 2))
    for glob, size, lr in p.trainable:
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
        yield f"fits into {p.memory_available / 1e9:.0f} GB; fullest with {p.fullest}"
    else:
        yield f"doesn't fit into {p.memory_available / 1e9:.0f} GB; fullest with {p.fullest}"
        yield "would fit with  " + (
            "\n           or  ".join(p.advice) or "no combination of options"
        )
    forward = ", ".join(f"{modality} {n:.3g}" for modality, n in p.flops.items())
    yield f"FLOPs of a step: {sum(p.flops.values()):.3g} ({forward}); of the stage: {p.total:.3g}"
    sent = ", ".join(f"{operation} {n / 1e9:,.1f} GB" for operation, n in p.traffic.items())
    yield f"sent by a device in a step: {sent}"
    cost = "" if p.cost is None else f", cost {p.cost:,.0f}"
    if p.note:
        yield f"note: {p.note}"
    yield (
        f"{p.seconds:.3g} s a step at {p.utilisation:.0%} of the peak, "
        f"{duration(p.seconds * p.steps)}, {_rounded(p.device_hours)} device hours{cost}"
    )


def _switches_text(on: Switches) -> str:
    shards = f"layers in {on.fsdp} shards" if on.fsdp > 1 else "replicas"
    over = f" over {on.context_parallel} devices" if on.context_parallel > 1 else ""
    packs = f"packs of {on.micro_tokens:,} tokens{over}"
    return f"{shards}, {packs}, activations: {on.activations}, frozen weights: {on.base}"
