"""The loss of a stage over the packs of a step: forward and backward of each, and sums over packs and processes."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polyphi.data.packing import Pack
from polyphi.model.attention import padding
from polyphi.model.multimodal import PhiModel
from polyphi.runtime import distributed
from polyphi.train import parallel
from polyphi.train.stage import Comparing, Objective
from polyphi.train.state import COUNTED
from polyphi.types.batch import Batch


@dataclass(frozen=True)
class StageLoss:
    """The loss of a stage: its objective, the model (or its view of a part of each pack), the objective's auxiliary
    head and reference. `precision` "bf16" runs under autocast."""

    objective: Objective
    model: PhiModel | parallel.Context
    head: nn.Module | None
    reference: Any
    precision: str

    def __call__(self, batch: Batch, reference: Any) -> tuple[Batch, Tensor, int, dict[str, Any]]:
        """(this process's part of a pack, sum of losses over its units, number of units, metrics)."""
        if isinstance(self.model, parallel.Context):
            batch = self.model.part(batch)
        batch = batch.to(self.model.decoder.device)
        with self.autocast(batch.ids.device):
            total, count, metrics = self.objective.loss(self.model, self.head, reference, batch)
        return batch, total, count, metrics

    def alone(self, batch: Batch) -> float:
        """The sum of a pack's losses, in this process alone and without gradients."""
        with torch.no_grad():
            ((item, reference),) = self._with_references([Pack(batch)], together=False)
            return float(self(item.batch, reference)[1])

    def _with_references(
        self, packs: Iterable[Pack], together: bool = True
    ) -> Iterator[tuple[Pack, Any]]:
        """Each pack with its reference: that of the stage, or the pack's own where a step's samples are compared."""
        if not isinstance(self.objective, Comparing):
            yield from ((item, self.reference) for item in packs)
            return
        packs = list(packs)
        batches = [item.batch for item in packs]
        counted = sum(item.share > 0 for item in packs)
        with self.autocast(self.model.decoder.device):
            compared = self.objective.compare(self.model, self.head, batches, counted, together)
        yield from zip(packs, compared, strict=True)

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
        for item, reference in self._with_references(packs):
            batch, loss, count, metrics = self(item.batch, reference)
            if torch.is_grad_enabled():
                (loss if item.share == 1 else loss * item.share).backward()
            values = {"loss": loss.detach().double(), "count": count, "tokens": len(batch)}
            values |= metrics
            values["padding_share"] = (item.padding_share, 1)
            sums["empty", 0] += item.empty  # of packs that only fill in, too
            sums["empty", 1] += 1
            if flops is not None:
                values["flops"] = flops(item.batch) / parts
            if device.type == "cpu":
                padded = padding(batch.cu_seqlens)
                values["padding"] = (padded, padded + len(batch))
            values["supervised"] = 0 if batch.supervised is None else len(batch.supervised)
            # In every pack, since processes add them up.
            for modality, unit in self.model.units.items():
                inputs = batch.inputs.get(modality)
                values[unit] = 0 if inputs is None else inputs.size
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
                if key in ("count", "flops", *COUNTED, *self.model.units.values()):
                    record[key] = round(value)
                elif number:
                    record[key] = value / number
        return record
