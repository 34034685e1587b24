"""Our kernels with gradients against torch's operators, forward and backward, side by side.

    python benchmarks/training_kernels.py [--repeats 7] [--threads 1] [--json]
    python benchmarks/training_kernels.py --shapes          # products in bfloat16 over float32, by their shape
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI python benchmarks/training_kernels.py --shapes   # a CPU that converts bfloat16

Attention of packs of nano's and the published heads, of the decoder (causal, grouped queries) and of the Conformer
(windows, a learned bias by distance); RMS norm, SwiGLU and rotary embedding of 1,600 tokens. Sides alternate; CPU time,
medians. torch's side is the plain model's (`polyphi/model`), which trains where there are no kernels.

`--shapes`: the time of torch's linear in bfloat16 relative to float32, from which the rule of
polyphi/devices/precision.py comes. Training has float32 weights, forward and backward; inference has weights in either
dtype and the forward alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sidebyside import Row, show
from torch import Tensor

from polyphi.kernels import blocks, training_attention
from polyphi.model import attention, conformer, decoder, rope
from polyphi.prepared.prepare import prepare
from polyphi.types.inputs.audio import AudioLayout
from polyphi_recipe.stages import sizes

Side = Callable[[], Tensor]
PACKS = {
    "36 of 40 tokens": [40] * 36,
    "8 of 100 to 156": list(range(100, 164, 8)),
    "700 and 800": [700, 800],
    "1,024": [1024],
}
WIDTHS, ROWS = (32, 64, 128, 256, 512), (16, 64, 256)
"""Of products by their shape."""
HEADS = {"nano": (6, 2, 32), "published": (24, 8, 128)}
"""Query heads, key-value heads, channels."""


def inputs(*shapes: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(*shape).to(dtype).requires_grad_() for shape in shapes]


def works(dtype: torch.dtype) -> Iterator[tuple[str, Side, Side]]:
    """(name, our side, torch's side)."""
    for size, (heads, kv_heads, d) in HEADS.items():
        for name, lengths in PACKS.items():
            count, ends = sum(lengths), [0, *accumulate(lengths)]
            q, k, v = inputs(*((count, h, d) for h in (heads, kv_heads, kv_heads)), dtype=dtype)
            yield (
                f"attention, {size}: {name}",
                partial(training_attention.attention, q, k, v, lengths, causal=True),
                partial(attention.packed_attention, q, k, v, ends),
            )
    config = sizes.NANO.model.audio
    assert config is not None
    plain = conformer.ConformerEncoder(config).to(dtype)
    ours = prepare(conformer.ConformerEncoder(config).to(dtype))
    clips = [AudioLayout(8 * n, "speech") for n in range(20, 52, 2)]
    mels = torch.randn(sum(c.frames for c in clips), config.input_size).to(dtype)
    yield (
        "nano's Conformer, 16 clips",
        partial(ours, mels, clips),
        partial(plain, mels, clips),
    )
    x, weight = inputs((1600, 192), (192,), dtype=dtype)
    norm = decoder.RMSNorm(192, 1e-5).to(dtype)
    yield "RMS norm", lambda: blocks.rms_norm(x, weight, 1e-5), lambda: norm(x)
    (both,) = inputs((1600, 1024), dtype=dtype)
    yield "SwiGLU", lambda: blocks.swiglu(both), lambda: decoder.swiglu(both)
    (rotated,) = inputs((1600, 8, 32), dtype=dtype)
    cos, sin = (torch.randn(1600, 1, 12).to(dtype) for _ in range(2))
    yield (
        "rotary embedding",
        lambda: blocks.rotate(rotated, cos, sin),
        lambda: rope.rotate(rotated, cos, sin),
    )


def seconds(side: Side) -> float:
    began = time.process_time()
    y = side()
    y.backward(torch.ones_like(y))
    return time.process_time() - began


def linear(rows: int, width: int, dtype: torch.dtype) -> Side:
    x, weight = (torch.zeros(n, width, dtype=dtype) for n in (rows, width))
    return lambda: F.linear(x, weight)


def linear_with_gradients(rows: int, width: int, dtype: torch.dtype) -> Side:
    x, weight = inputs((rows, width), (width, width), dtype=torch.float32)
    gradient = torch.zeros(rows, width, dtype=dtype)

    def step() -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = F.linear(x, weight)
        return torch.autograd.grad(y, (x, weight), gradient)[0]

    return step


def show_shapes(repeats: int) -> None:
    """The least time of a product in bfloat16 over that in float32; both in turn."""
    table = Table("bfloat16 / float32", "rows", *map(str, WIDTHS), title="width")
    for name, make in (("training", linear_with_gradients), ("inference", linear)):
        for rows in ROWS:
            cells = []
            for width in WIDTHS:
                sides = [make(rows, width, dtype) for dtype in (torch.bfloat16, torch.float32)]
                times: list[list[float]] = [[], []]
                for _ in range(repeats):
                    for side, every in zip(sides, times, strict=True):
                        began = time.perf_counter()
                        side()
                        every.append(time.perf_counter() - began)
                cells.append(f"{min(times[0]) / min(times[1]):.2f}")
            table.add_row(name, str(rows), *cells)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--shapes", action="store_true", help="products by their shape")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.shapes:
        show_shapes(arguments.repeats)
        return
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for name, ours, theirs in works(dtype):
            times: dict[Side, list[float]] = {ours: [], theirs: []}
            for _ in range(arguments.repeats + 1):
                for side, every in times.items():
                    every.append(seconds(side))
            a, b = (1 / statistics.median(every[1:]) for every in times.values())
            rows.append(Row(f"{name}, {str(dtype)[6:]}", a, b, "torch", "1/s of CPU"))
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
