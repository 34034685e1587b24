"""Settings with which a stage fits the memory of its devices: a fast one, or what would help."""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Literal

from polyphi.planning.cost import StageModel, Switches
from polyphi.planning.devices import DEVICES, Device
from polyphi.planning.load import Load
from polyphi.train.loss import NextToken

SUGGESTED = ("L4", "RTX5090", "A100", "H100", "H200", "B200")
"""Devices that are named where a stage doesn't fit."""
MAX_SHARDS, MAX_CONTEXT = 512, 64
QUANTIZED: list[Literal["int8", "int4"]] = ["int8", "int4"]


def fitting(
    load: Load,
    on: Switches,
    world: int,
    device: str,
    utilisation: float,
    devices: Mapping[str, Device] = DEVICES,
) -> Switches:
    """The setting that fits with the fewest changes of those that are at most 5 % slower than the fastest; `on` where
    none fits. Frozen weights are quantized only where nothing else fits."""
    others = changes(load.target, on, world, device, devices)
    settings = [on, *(other for _, other, n, card in others if (n, card) == (world, device))]
    capacity, cpu = devices[device].memory, device == "cpu"
    for base in dict.fromkeys(s.base for s in settings):
        seconds = {
            s: load.time(s, world, devices[device], utilisation).seconds
            for s in settings
            if s.base == base and load.fullest(s, world, cpu)[0]["peak"] <= capacity
        }
        if seconds:
            fast = [s for s, n in seconds.items() if n <= 1.05 * min(seconds.values())]
            return min(fast, key=lambda s: (len(flags(s, on)), seconds[s]))
    return on


def advice(
    load: Load,
    on: Switches,
    world: int,
    device: str,
    devices: Mapping[str, Device] = DEVICES,
) -> list[str]:
    """The changes with which the stage would fit that have the fewest options, and of each option the smallest."""
    options: list[str] = []
    every = sorted(
        changes(load.target, on, world, device, devices), key=lambda change: _weight(change[0])
    )
    for text, other, count, card in every:
        if options and _weight(text) > _weight(options[0]):
            break
        if load.fullest(other, count, device == "cpu")[0]["peak"] <= devices[card].memory:
            options.append(text)
    mildest = {re.sub(r"\d+", "", text): text for text in reversed(options)}
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
    target: StageModel,
    on: Switches,
    world: int,
    device: str,
    devices: Mapping[str, Device] = DEVICES,
) -> Iterator[tuple[str, Switches, int, str]]:
    """(options as text, switches, number of devices, device) of all other settings, single and combined."""
    larger = [n for n in SUGGESTED if devices[n].memory > devices[device].memory]
    cards = [(world, device, "")]
    cards += [
        (world, n, f"--devices {world}x{n}")
        for n in sorted(larger, key=lambda n: DEVICES[n].memory)
    ]
    shards = _doubled(on.fsdp, MAX_SHARDS if shardable(target, on.base) else 0)
    contexts = _doubled(on.context_parallel, MAX_CONTEXT if context_shardable(target) else 0)
    activation_choices: tuple[Literal["keep", "recompute"], ...] = ("keep", "recompute")
    packs = [on.micro_tokens, *(n for n in (4096, 2048, 1024, 512) if n < on.micro_tokens)]
    bases = [on.base]
    if quantizable(target):
        bases += QUANTIZED[QUANTIZED.index(on.base) + 1 :] if on.base in QUANTIZED else QUANTIZED
    for base, (count, card, text), shard, context, activations, micro_tokens in product(
        bases, cards, shards, contexts, activation_choices, packs
    ):
        if activations == "keep" and on.activations == "recompute":
            continue
        if shard > 1 and base in QUANTIZED:
            continue
        if needed := [n for n in (shard, context) if count % n]:
            count, text = max(needed), f"--devices {max(needed)}x{card}"
        other = Switches(shard, micro_tokens, activations, context, base)
        if options := [*filter(None, [text]), *flags(other, on)]:
            yield " ".join(options), other, count, card


def flags(other: Switches, on: Switches) -> list[str]:
    """The options that change `on` to `other`."""
    return [
        f"--{name.replace('_', '-')} {getattr(other, name)}"
        for name in ("fsdp", "context_parallel", "activations", "base", "micro_tokens")
        if getattr(other, name) != getattr(on, name)
    ]


def _weight(options: str) -> int:
    """The number of options in a text; one that quantizes weights counts as two."""
    return options.count("--") + ("--base" in options)


def _doubled(start: int, limit: int) -> list[int]:
    """`start` and its doubles up to `limit`."""
    return [start, *(start << n for n in range(1, 10) if start << n <= limit)]
