"""The time of a matrix product in bfloat16 relative to float32 on one core, by its shape.

    python benchmarks/precision_shapes.py
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI python benchmarks/precision_shapes.py     # as a CPU that converts bfloat16

The rule of polyphi/devices/precision.py comes from this table. Training has float32 weights, forward and backward;
inference has weights in either dtype and the forward alone. Both sides run in turn, and the least time of each counts.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

WIDTHS = (32, 64, 128, 256, 512)
ROWS = (16, 64, 256)
TURNS = 12

Sides = tuple[Callable[[], Any], Callable[[], Any]]


def training(rows: int, width: int) -> Sides:
    x = torch.zeros(rows, width, requires_grad=True)
    weight = torch.zeros(width, width, requires_grad=True)
    gradient = torch.zeros(rows, width)

    def step(narrow: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            y = F.linear(x, weight)
        torch.autograd.grad(y, (x, weight), gradient.to(y.dtype))

    return lambda: step(True), lambda: step(False)


def inference(rows: int, width: int) -> Sides:
    def side(dtype: torch.dtype) -> Callable[[], Any]:
        x, weight = torch.zeros(rows, width, dtype=dtype), torch.zeros(width, width, dtype=dtype)
        return torch.no_grad()(lambda: F.linear(x, weight))

    return side(torch.bfloat16), side(torch.float32)


def ratio(sides: Sides) -> float:
    least = [float("inf")] * 2
    for _ in range(TURNS):
        for side, run in enumerate(sides):
            start = time.perf_counter()
            run()
            least[side] = min(least[side], time.perf_counter() - start)
    return least[0] / least[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("work rows " + " ".join(f"{width:>5}" for width in WIDTHS))
    for make in (training, inference):
        for rows in ROWS:
            ratios = " ".join(f"{ratio(make(rows, width)):5.2f}" for width in WIDTHS)
            print(f"{make.__name__} {rows} {ratios}")
