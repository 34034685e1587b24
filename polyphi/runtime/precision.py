"""The choice between bfloat16 and float32 on this machine, for training, inference and benchmarks.

>>> shapes = [(p.shape, p.requires_grad) for p in model.parameters()]
>>> print(choose("auto", torch.device("cpu"), products(shapes), rows=1024))
bf16: 0.61 of the time of fp32 on this model's products

`choose` takes the first rule that applies: an explicit precision; the environment variable POLYPHI_PRECISION; on a GPU
what the hardware supports; on a CPU without bfloat16 instructions fp32; else the faster one by measurement. It times
the model's own matrix products as training computes them: float32 weights, forward and backward, with and without
`torch.autocast`. oneDNN also emulates bfloat16 on CPUs with AVX-512 that lack the instructions, so having an
implementation isn't enough to be faster.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F

Precision = Literal["bf16", "fp32"]
Requested = Literal["auto", "bf16", "fp32"]
DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
VARIABLE = "POLYPHI_PRECISION"
"""The environment variable that sets the precision if none is requested."""

ROWS = 256
"""Most rows of a timed product: beyond them the time per row hardly changes."""
WIDTH = 512
"""Most inputs and outputs of a timed product, for the same reason. A product then takes some milliseconds, which
other processes seldom interrupt."""
SHAPES = 6
"""Distinct shapes that are timed, those with the most FLOPs."""
MAX_TURNS, MIN_TURNS, SECONDS = 12, 3, 0.3
"""Turns of timing: the most, the fewest, and the time after which the fewest suffice."""
MIN_SIZE = 256 * 256
"""Multiplications per row of the smallest product that is timed for inference: in smaller ones the call dominates."""
MAX_SLOWDOWN = 1.5
"""A model stored in a 16-bit dtype is cast to float32 for inference if its products take more than this many times as
long as in float32 [ours]. Below it, half of the memory is worth more than the time."""


@dataclass(frozen=True)
class Choice:
    """A precision and the reason for it."""

    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{self.precision}: {self.reason}"


@dataclass(frozen=True)
class MatrixProducts:
    """`count` matrix products [rows inputs] x [inputs outputs] of a model. Only a `trainable` weight has a gradient."""

    inputs: int
    outputs: int
    trainable: bool
    count: int = 1

    @property
    def size(self) -> int:
        """Multiplications per row, forward and backward, of all `count` products."""
        return self.count * self.inputs * self.outputs * (3 if self.trainable else 2)


def products(weights: Iterable[tuple[Sequence[int], bool]]) -> tuple[MatrixProducts, ...]:
    """The products of a model, largest first, from the shape of each weight and whether it is trainable.

    Linear weights are [O I], convolutions of width 1 [O I 1], patch embeddings [O C h w]. Depthwise convolutions and
    pointwise ones over an image [O I 1 1] are left out: they run in float32 on a CPU (model/conformer.py).
    """
    counts: Counter[tuple[int, int, bool]] = Counter()
    for shape, trainable in weights:
        outputs, inputs, *kernel = [*shape, 0][: max(2, len(shape))]
        width = 1
        for size in kernel:
            width *= size
        pointwise = not kernel or kernel == [1]
        if inputs > 1 and (pointwise or (len(kernel) == 2 and width > 1)):
            counts[outputs, inputs * width, trainable] += 1
    result = [MatrixProducts(i, o, trainable, count) for (o, i, trainable), count in counts.items()]
    return tuple(sorted(result, key=lambda p: (-p.size, p.inputs, p.outputs)))


def choose(
    requested: str = "auto",
    device: torch.device | str = "cpu",
    products: Sequence[MatrixProducts] = (),
    rows: int = ROWS,
) -> Choice:
    """The precision to train in: `requested` if it is bf16 or fp32, else chosen for `device` and for the products of a
    model with `rows` rows a step. Takes well under a second, once per process and set of products.

    Raises ValueError for another `requested`, or another value of POLYPHI_PRECISION.
    """
    if requested in DTYPES:
        return Choice(_named(requested), "as requested")
    if requested != "auto":
        raise ValueError(
            f"precision must be {' or '.join(get_args(Requested))}, found {requested!r}"
        )
    if (name := pinned()) is not None:
        return Choice(name, f"set by {VARIABLE}")
    return _measured(torch.device(device), tuple(products), min(rows, ROWS))


def pinned() -> Precision | None:
    """The precision that POLYPHI_PRECISION sets, if any. Raises ValueError for a value that is none."""
    value = os.environ.get(VARIABLE, "")
    if value in ("", "auto"):
        return None
    if value not in DTYPES:
        raise ValueError(
            f"{VARIABLE} must be bf16, fp32 or auto, found {value!r}; unset it to have the precision measured"
        )
    return _named(value)


def is_fast(
    dtype: torch.dtype, device: torch.device, products: Sequence[MatrixProducts] = ()
) -> bool:
    """Whether a device computes the products of inference (the model's own, or a typical one) in a 16-bit dtype at
    about the speed of float32, or faster."""
    if device.type == "cpu":
        large = tuple(p for p in products if p.inputs * p.outputs >= MIN_SIZE)
        return missing(dtype) is None and slowness(dtype, large) < MAX_SLOWDOWN
    if device.type == "cuda" and dtype == torch.bfloat16:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        one = torch.ones(8, 8, dtype=dtype, device=device)
        return bool((one @ one)[0, 0] == 8)
    except (RuntimeError, TypeError):
        return False


def missing(dtype: torch.dtype) -> str | None:
    """The reason why this CPU can't be fast in a 16-bit dtype, or None.

    oneDNN's check covers x86 and ARM, and respects ONEDNN_MAX_CPU_ISA; a torch built without it multiplies 16-bit
    numbers by a fallback that is ten times slower than float32.
    """
    name = str(dtype).removeprefix("torch.")
    check = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, name)
    if not torch.backends.mkldnn.is_available():
        return f"this build of torch has no oneDNN, which computes {name} products"
    try:
        supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{check}_supported")()
    except (AttributeError, RuntimeError):  # an older or a reduced build
        supported = False
    return None if supported else f"this CPU has no {name} instructions"


@cache
def _measured(device: torch.device, products: tuple[MatrixProducts, ...], rows: int) -> Choice:
    if device.type != "cpu":
        has = is_fast(torch.bfloat16, device) and torch.amp.is_autocast_available(device.type)
        return Choice("bf16" if has else "fp32", f"this GPU has {'' if has else 'no '}bfloat16")
    if (reason := missing(torch.bfloat16)) is not None:
        return Choice("fp32", reason)
    ratio = relative_time(_training, products, rows)
    if ratio < 1:
        return Choice("bf16", f"{ratio:.2f} of the time of fp32 on this model's products")
    return Choice("fp32", f"bf16 takes {ratio:.2f} times as long on this model's products")


@cache
def slowness(
    dtype: torch.dtype, products: tuple[MatrixProducts, ...] = (), rows: int = 32
) -> float:
    """The time of inference's products in a 16-bit dtype relative to float32 on this CPU."""
    return relative_time(lambda product, rows: _inference(product, rows, dtype), products, rows)


# ------------------------------------------------------------------------------ timing

Sides = tuple[Callable[[], Any], Callable[[], Any]]
"""A product to be timed, in the 16-bit dtype and in float32."""


def relative_time(
    make: Callable[[MatrixProducts, int], Sides], products: Sequence[MatrixProducts], rows: int
) -> float:
    """The time of a model's products in a 16-bit dtype relative to float32, each shape weighted by its share of the
    FLOPs. Both sides of a shape run in turn, and the least time of each counts, so that other work on the machine
    doesn't distort the result; for the same reason they run on one thread, since threads wait for an interrupted
    one."""
    sizes: Counter[MatrixProducts] = Counter()
    for product in products or (MatrixProducts(WIDTH, WIDTH, True),):
        narrow = MatrixProducts(
            min(product.inputs, WIDTH), min(product.outputs, WIDTH), product.trainable
        )
        sizes[narrow] += product.size
    shapes = sizes.most_common(SHAPES)
    sides = [make(product, rows) for product, _ in shapes]
    least = [[float("inf"), float("inf")] for _ in shapes]
    end = time.perf_counter() + SECONDS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(MAX_TURNS):
            if turn >= MIN_TURNS and time.perf_counter() > end:
                break
            for best, both in zip(least, sides, strict=True):
                for side, run in enumerate(both):
                    best[side] = min(best[side], seconds(run))
    finally:
        torch.set_num_threads(threads)
    weights = [size / product.size for product, size in shapes]
    half, single = (
        sum(w * best[side] for w, best in zip(weights, least, strict=True)) for side in (0, 1)
    )
    return half / single


def seconds(run: Callable[[], Any]) -> float:
    """The duration of a call in seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _training(product: MatrixProducts, rows: int) -> Sides:
    """Forward and backward as a training step computes them: float32 weights, cast inside autocast or not."""
    x = torch.zeros(rows, product.inputs, requires_grad=True)
    weight = torch.zeros(product.outputs, product.inputs, requires_grad=product.trainable)
    gradient = torch.zeros(rows, product.outputs)
    inputs = (x, weight) if product.trainable else (x,)

    def step(narrow: bool) -> None:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            y = F.linear(x, weight)
        torch.autograd.grad(y, inputs, gradient.to(y.dtype))

    return lambda: step(True), lambda: step(False)


def _inference(product: MatrixProducts, rows: int, dtype: torch.dtype) -> Sides:
    """The forward alone, with weights stored in either dtype."""

    def side(dtype: torch.dtype) -> Callable[[], Any]:
        x = torch.zeros(rows, product.inputs, dtype=dtype)
        weight = torch.zeros(product.outputs, product.inputs, dtype=dtype)

        def run() -> None:
            with torch.no_grad():
                F.linear(x, weight)

        return run

    return side(dtype), side(torch.float32)


def _named(value: str) -> Precision:
    return "bf16" if value == "bf16" else "fp32"
