"""The work of a stage's step by the amounts of its samples: the memory of its fullest pack, and its time."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

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
)
from polyphi.planning.devices import Device
from polyphi.train.stage import Comparing


@dataclass(frozen=True)
class Load:
    """The work of a stage's step: `samples` has the amounts of a typical sample of each corpus, `longest` those of a
    longest one, `mean` those of one of the mix, `step` those of an average step."""

    target: StageModel
    samples: Mapping[str, Work]
    longest: Mapping[str, Work]
    mean: Work
    step: Work

    @classmethod
    def of(
        cls, target: StageModel, samples: Mapping[str, Work], longest: Mapping[str, Work]
    ) -> "Load":
        """The load of a stage with these amounts of a typical and a longest sample of each corpus."""
        mix = target.stage.data.weights
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
        """The time of a step of this load on `world` devices."""
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
