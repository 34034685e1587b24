"""Our kernels with gradients against torch's operators, forward and backward, side by side.

    python benchmarks/training_kernels.py [--repeats 7] [--threads 1]

Attention of packs of nano's and the published heads, of the decoder (causal, grouped queries) and of the Conformer
(windows, a learned bias by distance); RMS norm, SwiGLU and rotary embedding of 1,600 tokens. Sides alternate; CPU time,
medians. torch's side is the plain model's (`polyphi/model`), which trains where there are no kernels.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

import torch
from rich.console import Console
from rich.table import Table
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table("forward and backward", "type", "ours, ms", "torch, ms", "torch / ours")
    table.columns[0].no_wrap = True
    for dtype in (torch.bfloat16, torch.float32):
        for name, ours, theirs in works(dtype):
            times: dict[Side, list[float]] = {ours: [], theirs: []}
            for _ in range(arguments.repeats + 1):
                for side, every in times.items():
                    every.append(seconds(side))
            a, b = (1000 * statistics.median(every[1:]) for every in times.values())
            table.add_row(name, str(dtype)[6:], f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
