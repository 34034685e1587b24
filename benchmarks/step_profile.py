"""Where the time of a training step goes, by PyTorch's profiler: seconds of a step by part.

An operator's own time counts for the part that encloses it (the head, attention, an optimizer), else for its type.
"Python" is the time of a step outside all operators: the interpreter and autograd's bookkeeping.
"""

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from polyphi.data.loader import StepRows
from polyphi.data.packing import Pack
from polyphi.train.trainer import Trainer

DATA = "rows and packs"
PYTHON = "Python"
ENCLOSING = {
    DATA: DATA,
    "Optimizer.step#Muon": "Muon",
    "Optimizer.step#AdamW": "AdamW",
    "_LossSum": "head and loss",
    "_Attention": "attention",
    "aten::scaled_dot_product_attention": "attention",
    "ScaledDotProduct": "attention",
    "_Norm": "norms, rotary embedding, activations",
    "_Turn": "norms, rotary embedding, activations",
    "_Gate": "norms, rotary embedding, activations",
    "_Gelu": "norms, rotary embedding, activations",
    "aten::native_layer_norm": "norms, rotary embedding, activations",
    "aten::gelu": "norms, rotary embedding, activations",
    "aten::silu": "norms, rotary embedding, activations",
    "aten::glu": "norms, rotary embedding, activations",
}
"""Prefixes of the names of events that give everything within them to a part; the outermost counts."""
PRODUCTS = re.compile(r"aten::(mm|addmm_?|bmm|baddbmm|matmul|linear|mv|mkldnn_linear\w*)$|mkldnn::")
CONVOLUTIONS = re.compile(r"aten::\w*conv")
COPIES = re.compile(
    r"aten::(copy_|_to_copy|to|contiguous|clone|cat|index_select|index_add\w*|stack)$"
)
CLIPPING = re.compile(r"aten::_foreach_(norm|mul)|aten::linalg_vector_norm")

STEPS = 8
"""Most steps that are profiled."""


class ProfiledTrainer(Trainer):
    """A trainer that profiles `STEPS` steps after the first; `parts` then holds the seconds of one step by part."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.profiles: list[dict[str, float]] = []

    def step(self) -> dict[str, Any] | None:
        if self.state.step == 0 or len(self.profiles) == STEPS:
            return super().step()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            began = time.perf_counter()
            record = super().step()
            seconds = time.perf_counter() - began
        ranks = {adapter.rank for adapter in self.model.decoder.adapters.values()}
        self.profiles.append(by_part(profiler.events(), seconds, ranks))
        return record

    def _next_data(self) -> StepRows:
        with record_function(DATA):
            return super()._next_data()

    def _packs(self, data: StepRows) -> list[Pack]:
        with record_function(DATA):
            return super()._packs(data)

    @property
    def parts(self) -> dict[str, float]:
        names = dict.fromkeys(name for step in self.profiles for name in step)
        return {
            name: sum(step.get(name, 0.0) for step in self.profiles) / len(self.profiles)
            for name in names
        }


def by_part(events: Sequence[FunctionEvent], seconds: float, ranks: set[int]) -> dict[str, float]:
    """The seconds of a step by part, largest first. `ranks` are those of the adapters: a product with such a size is
    LoRA's."""
    parts: defaultdict[str, float] = defaultdict(float)
    for event in events:
        parts[part_of(event, ranks)] += event.self_cpu_time_total / 1e6
    parts[PYTHON] += seconds - sum(parts.values())
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def part_of(event: FunctionEvent, ranks: set[int]) -> str:
    """The part that an event's own time counts for."""
    part, backward = None, False
    enclosing: FunctionEvent | None = event
    while enclosing is not None:
        name = enclosing.name
        backward |= name.startswith("autograd::engine")
        part = next((p for prefix, p in ENCLOSING.items() if name.startswith(prefix)), part)
        enclosing = enclosing.cpu_parent
    if part is not None:
        return part
    name = event.name
    if name.startswith(("autograd::", "AccumulateGrad")) or re.fullmatch(r"\w+Backward\d*", name):
        return PYTHON
    if PRODUCTS.search(name):
        sizes = {size for shape in event.input_shapes for size in shape if isinstance(size, int)}
        if ranks & sizes:
            return "products of LoRA"
        return "products, backward" if backward else "products, forward"
    if CONVOLUTIONS.search(name):
        return "convolutions"
    if CLIPPING.search(name):
        return "clipping"
    return "casts and copies" if COPIES.search(name) else "other operators"


def show_profiles(profiles: dict[str, dict[str, float]]) -> None:
    """A table of the seconds of a step by part, a column for each work."""
    table = Table("seconds a step", *profiles, box=None, padding=(0, 2))
    names = dict.fromkeys(name for parts in profiles.values() for name in parts)
    totals = {work: sum(parts.values()) for work, parts in profiles.items()}
    for name in sorted(
        names, key=lambda n: -max(p.get(n, 0) / totals[w] for w, p in profiles.items())
    ):
        cells = (
            f"{parts[name]:.3f} ({parts[name] / totals[work]:.0%})" if name in parts else ""
            for work, parts in profiles.items()
        )
        table.add_row(name, *cells)
    table.add_row("all", *(f"{total:.3f}" for total in totals.values()))
    Console(width=140).print(table, highlight=False)
