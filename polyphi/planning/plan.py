"""What a stage costs before it runs: who learns, memory, FLOPs, communication, time and money on machines that one
names.

    polyphi plan                                                       all sixteen stages on 64 H100
    polyphi plan text_1_pretrain --devices 512xA100 --shard 8 --price 1.5

`docs/plan.md` says what the figures assume and how far they were from measured ones.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Literal

import torch
from rich.table import Table

from polyphi.planning.cost import (
    Subject,
    Switches,
    flops,
    imagined,
    memory,
    precomputes_reference,
    subject,
    times,
    traffic,
    work,
)
from polyphi.stages.sizes import Size

# ------------------------------------------------------------------------------ devices


@dataclass(frozen=True)
class Device:
    """`memory` in bytes, counted in powers of ten (what a card has beyond pays for CUDA's context and for fragments);
    `flops`: dense bf16 FLOP/s; `inside` and `between` bytes/s per device and direction, in a machine of `together`
    devices and from machine to machine."""

    memory: float
    flops: float
    inside: float
    between: float
    together: int = 8


# Memory, dense FLOP/s (half of what is given "with sparsity") and NVLink (half of "total") as NVIDIA's data sheets of
# the SXM modules, of DGX B200 (an eighth of it) and of the L4 have them. From machine to machine: one network card per
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
    """Dense bf16 FLOP/s of a GPU that is in the table; None of others, and of CPUs, which differ too much."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((made.flops for known, made in DEVICES.items() if known in name), None)


def cluster(text: str) -> tuple[int, str]:
    """("64xH100") -> (64, "H100"). Raises ValueError where it can't be read or the device isn't known."""
    found = re.fullmatch(r"(?:(\d+)x)?(\w+)", text.strip())
    names = {name.lower(): name for name in DEVICES}
    if found is None or found[2].lower() not in names or int(found[1] or 1) < 1:
        raise ValueError(
            f"unknown devices {text!r}; expected a number and a name, such as 64xH100; known are {', '.join(DEVICES)}"
        )
    return int(found[1] or 1), names[found[2].lower()]


# ------------------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class Plan:
    """What `polyphi plan --json` prints for a stage. Bytes and FLOPs are plain numbers, of a device and of a step over
    all devices; `learn` lists (glob, parameters, peak rate); `step` is what a step holds, on the average of its mix;
    `fullest` the corpus whose packs take most memory; `advice` the changes that would make it fit, each enough by
    itself."""

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
        """Of the whole stage."""
        return None if self.price is None else self.price * self.device_hours


def plan(
    name: str,
    size: Size,
    devices: str = "64xH100",
    on: Switches = Switches(),  # noqa: B008 - frozen
    *,
    utilisation: float = UTILISATION,
    price: float | None = None,
) -> Plan:
    """What a stage costs. `price`: of a device's hour. Raises ValueError for an unknown stage or device, and for shards
    that the devices or the stage can't have."""
    it, (world, kind) = subject(name, size), cluster(devices)
    device = DEVICES[kind]
    if on.shard < 1 or world % on.shard:
        raise ValueError(f"{devices} can't be cut into groups of {on.shard} shards")
    if on.shard > 1 and not shardable(it):
        raise ValueError(
            f"sharding is for stages of the language model; in {name} other parts learn: leave --shard out"
        )
    if on.context < 1 or world % on.context:
        raise ValueError(f"{devices} can't be cut into groups of {on.context} that share a pack")
    if on.context > 1 and not spreadable(it):
        raise ValueError(
            f"devices share packs of text; {name} has pictures, clips or pairs: leave --context out"
        )
    if on.micro_tokens < 1 or not 0 < utilisation <= 1:
        raise ValueError(
            f"expected micro-tokens above 0 and a utilisation in (0, 1], found {on.micro_tokens} and {utilisation}"
        )
    budget, mix = it.budget, it.stage.data.weights
    one = {c: work(imagined(it, c), it.config) for c in mix}
    mean = sum((times(one[c], w / sum(mix.values())) for c, w in mix.items()), Counter())
    step = times(mean, budget.batch_tokens / mean["tokens"])
    one_pack = it.stage.objective.whole_step

    def fullest(on: Switches, world: int) -> tuple[dict[str, float], str]:
        """Memory under the fullest pack, and its corpus: as many samples as fit, at least one, and of it a device's
        part."""
        most = budget.batch_tokens if one_pack else on.micro_tokens
        packs = {c: times(w, max(1, int(most // w["tokens"])) / on.context) for c, w in one.items()}
        found = {c: memory(it, w, on, world, kind == "cpu") for c, w in packs.items()}
        worst = max(found, key=lambda c: found[c]["peak"])
        return found[worst], worst

    used, worst = fullest(on, world)
    advice: list[str] = []
    if used["peak"] > device.memory:
        # The fewest switches, and of each kind the mildest.
        for text, other, many, card in sorted(
            changes(it, on, world, kind), key=lambda change: change[0].count("--")
        ):
            if advice and text.count("--") > advice[0].count("--"):
                break
            if fullest(other, many)[0]["peak"] <= DEVICES[card].memory:
                advice.append(text)
        mildest = {re.sub(r"\d+", "", text): text for text in reversed(advice)}
        advice = list(mildest.values())[::-1]
    if used["peak"] > device.memory and one_pack:
        advice = [
            f"batch_tokens {budget.batch_tokens // 2**n} (all samples of a step are one pack)"
            for n in range(1, 20)
            if memory(
                it, times(one[worst], budget.batch_tokens / 2**n / one[worst]["tokens"]), on, world
            )["peak"]
            <= device.memory
        ][:1]
    done = flops(it, step, on.activations == "recompute")
    if precomputes_reference(it):
        done["reference"] = sum(flops(it, step, backward=False).values())
    packs = ceil(budget.batch_tokens * on.context / world / on.micro_tokens)
    sent = traffic(it, on, world, packs)
    link = device.inside if world <= device.together else device.between
    near = device.inside if max(on.shard, on.context) <= device.together else device.between
    # All devices look at all samples where those are compared with each other.
    arithmetic = sum(done.values()) / (device.flops * utilisation * (1 if one_pack else world))
    seconds = max(arithmetic, sent["shards"] / near) + sent["context"] / near
    seconds += sent["gradients"] / link
    return Plan(
        stage=name,
        size=size.name,
        objective=repr(it.stage.objective),
        parents=it.stage.parents,
        learn=[(g, it.size(n), it.stage.learn[g] * budget.rate) for g, n in it.learners.items()],
        frozen=it.size(it.tensors) - it.size(it.learned),
        steps=budget.steps,
        tokens=budget.steps * budget.batch_tokens,
        step=dict(step),
        devices=f"{world}x{kind}",
        switches=on,
        memory=used,
        room=device.memory,
        fullest=worst,
        fits=used["peak"] <= device.memory,
        advice=advice,
        flops=done,
        traffic=sent,
        seconds=seconds,
        utilisation=utilisation,
        device_hours=seconds * budget.steps * world / 3600,
        price=price,
    )


def shardable(it: Subject) -> bool:
    """Whether the decoder's layers may be cut: only where they learn themselves (`polyphi/train/parallel.py`)."""
    return it.learns("decoder.norm")


def spreadable(it: Subject) -> bool:
    """Whether devices may share a pack: only rows of text, that nothing compares (`polyphi/train/parallel.py`)."""
    return shardable(it) and not precomputes_reference(it)


def changes(
    it: Subject, on: Switches, world: int, kind: str
) -> Iterator[tuple[str, Switches, int, str]]:
    """Other switches as the command line has them, with the devices that they need, each alone and all together."""
    larger = [n for n in DEVICES if DEVICES[n].memory > DEVICES[kind].memory]
    devices = [(world, kind, "")]
    devices += [(world, n, f"--devices {world}x{n}") for n in sorted(larger, key=_memory)]
    shards = _doubled(on.shard, MOST_SHARDS if shardable(it) else 0)
    contexts = _doubled(on.context, MOST_CONTEXT if spreadable(it) else 0)
    kept: tuple[Literal["keep", "recompute"], ...] = ("keep", "recompute")
    packs = [on.micro_tokens, *(n for n in (4096, 2048, 1024, 512) if n < on.micro_tokens)]
    for (many, card, text), shard, context, keep, most in product(
        devices, shards, contexts, kept, packs
    ):
        if keep == "keep" and on.activations == "recompute":
            continue
        if least := [n for n in (shard, context) if many % n]:
            many, text = max(least), f"--devices {max(least)}x{card}"
        flags = [text] + [
            f"--{flag} {value}"
            for flag, value, before in (
                ("shard", shard, on.shard),
                ("context", context, on.context),
                ("activations", keep, on.activations),
                ("micro-tokens", most, on.micro_tokens),
            )
            if value != before
        ]
        if any(flags):
            yield " ".join(filter(None, flags)), Switches(shard, most, keep, context), many, card


def _doubled(start: int, most: int) -> list[int]:
    """`start` and its doubles up to `most`."""
    return [start, *(start << n for n in range(1, 10) if start << n <= most)]


def _memory(kind: str) -> float:
    return DEVICES[kind].memory


MOST_SHARDS, MOST_CONTEXT = 512, 64

# ------------------------------------------------------------------------------ on paper


def page(plans: Sequence[Plan]) -> Iterator[Table | str]:
    """What `polyphi plan` prints: a stage in full, or a line of each with the sum."""
    if len(plans) == 1:
        yield from _in_full(plans[0])
        return
    table = Table(box=None, padding=(0, 1))
    for column in ("stage", "learn", "tokens", "GB", "FLOPs", "days", "device hours", "fits"):
        left = column in ("stage", "fits")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "fits")
    for p in plans:
        table.add_row(
            p.stage,
            _short(sum(n for _, n, _ in p.learn)),
            _short(p.tokens),
            f"{p.memory['peak'] / 1e9:,.0f}",
            f"{p.total:.2g}",
            f"{p.seconds * p.steps / 86400:.1f}",
            f"{p.device_hours:,.0f}",
            "yes" if p.fits else "with " + (p.advice[0] if p.advice else "no switch"),
        )
    hours = sum(p.device_hours for p in plans)
    table.add_row("all", "", _short(sum(p.tokens for p in plans)), "", "", "", f"{hours:,.0f}", "")
    first = plans[0]
    yield f"{first.size}, {first.devices} of {first.room / 1e9:.0f} GB, {_set(first.switches)}"
    yield table
    if first.price is not None:
        yield f"cost {first.price * hours:,.0f} at {first.price:g} per device hour"


def _in_full(p: Plan) -> Iterator[Table | str]:
    yield f"{p.stage} {p.size}, {p.objective}, on {p.devices}, {_set(p.switches)}"
    yield f"starts from {', '.join(p.parents) or 'nothing'}"
    who = Table("who learns", "parameters", "peak rate", box=None, padding=(0, 2))
    for glob, size, rate in p.learn:
        who.add_row(glob, f"{size:,}", f"{rate:.1e}")
    who.add_row("(frozen)", f"{p.frozen:,}", "rests")
    yield who
    held = ("tokens", "supervised", "sequences", "crops", "mels")
    step = ", ".join(f"{_short(p.step[k])} {k}" for k in held if p.step.get(k))
    yield f"{p.steps:,} steps, {_short(p.tokens)} tokens; a step: {step}"
    parts = Table("memory of a device", "GB", box=None, padding=(0, 2))
    for part, held_bytes in p.memory.items():
        parts.add_row(part, f"{held_bytes / 1e9:,.1f}")
    yield parts
    if p.fits:
        yield f"fits into {p.room / 1e9:.0f} GB; fullest with {p.fullest}"
    else:
        yield f"doesn't fit into {p.room / 1e9:.0f} GB; fullest with {p.fullest}"
        yield "would fit with  " + (
            "\n           or  ".join(p.advice) or "nothing that can be set here"
        )
    forward = ", ".join(f"{kind} {n:.3g}" for kind, n in p.flops.items())
    yield f"FLOPs of a step: {sum(p.flops.values()):.3g} ({forward}); of the stage: {p.total:.3g}"
    sent = ", ".join(f"{kind} {n / 1e9:,.1f} GB" for kind, n in p.traffic.items())
    yield f"sent by a device in a step: {sent}"
    cost = "" if p.cost is None else f", cost {p.cost:,.0f}"
    yield (
        f"{p.seconds:.3g} s a step at {p.utilisation:.0%} of the peak, "
        f"{p.seconds * p.steps / 86400:.1f} days, {p.device_hours:,.0f} device hours{cost}"
    )


def _set(on: Switches) -> str:
    shards = f"layers in {on.shard} shards" if on.shard > 1 else "replicas"
    over = f" over {on.context} devices" if on.context > 1 else ""
    return f"{shards}, packs of {on.micro_tokens:,} tokens{over}, activations: {on.activations}"


def _short(n: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"
