"""The choice between bfloat16 and float32 on this machine, for training, inference and benchmarks.

>>> shapes = [(p.shape, p.requires_grad) for p in model.parameters()]
>>> print(choose("auto", torch.device("cpu"), products(shapes), rows=1024))
bf16: 100% of this model's products are large enough for this CPU's bfloat16 instructions

`choose` takes the first rule that applies: an explicit precision; the environment variable POLYPHI_PRECISION; on a GPU
what the hardware supports; on a CPU its instructions and the shapes of the model's products (`faster`). Nothing is
timed, so other work on the machine doesn't change the choice; `python benchmarks/training_kernels.py --shapes` measures
the rule.
"""

import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Precision = Literal["bf16", "fp32"]
Requested = Literal["auto", "bf16", "fp32"]
DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
VARIABLE = "POLYPHI_PRECISION"
"""The environment variable that sets the precision if none is requested."""

ROWS = 256
"""Most rows of a product that count: beyond them the time per row hardly changes."""
MIN_PRODUCT = 1 << 20
"""Multiplications, rows x inputs x outputs, from which a product takes less time in bfloat16 than in float32 on a CPU
with instructions for it (docs/numbers.md, "Precision by shape")."""
CONVERTING = ("AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Instruction sets of oneDNN with which it converts bfloat16 numbers and multiplies in float32."""


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
    model with `rows` rows a step.

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
    device = torch.device(device)
    return faster(products, rows) if device.type == "cpu" else _on_gpu(device)


def pinned() -> Precision | None:
    """The precision that POLYPHI_PRECISION sets, if any. Raises ValueError for a value that is none."""
    value = os.environ.get(VARIABLE, "")
    if value in ("", "auto"):
        return None
    if value not in DTYPES:
        raise ValueError(
            f"{VARIABLE} must be bf16, fp32 or auto, found {value!r}; unset it to have the precision chosen by the CPU"
        )
    return _named(value)


def is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device computes the products of inference in a 16-bit dtype at about the speed of float32, or faster. A
    CPU that converts the numbers counts: half of the memory is worth more than the 1.3 to 1.5 times of the time that it
    takes (docs/numbers.md, "Precision by shape")."""
    if device.type == "cpu":
        return missing(dtype) is None
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


def _on_gpu(device: torch.device) -> Choice:
    has = is_fast(torch.bfloat16, device) and torch.amp.is_autocast_available(device.type)
    return Choice("bf16" if has else "fp32", f"this GPU has {'' if has else 'no '}bfloat16")


def faster(products: Sequence[MatrixProducts] = (), rows: int = ROWS) -> Choice:
    """The precision in which this CPU computes a model's products with float32 weights in less time, by its
    instructions and the products' shapes."""
    if (reason := missing(torch.bfloat16)) is not None:
        return Choice("fp32", reason)
    if _is_emulated():
        return Choice("fp32", "this CPU has no bfloat16 products, only conversions")
    sizes = [(p.size, min(rows, ROWS) * p.inputs * p.outputs >= MIN_PRODUCT) for p in products]
    total = sum(size for size, _ in sizes)
    share = sum(size for size, is_large in sizes if is_large) / total if total else 1.0
    reason = f"{share:.0%} of this model's products are large enough for this CPU's bfloat16 instructions"
    return Choice("bf16" if share >= 0.5 else "fp32", reason)


def _is_emulated() -> bool:
    """Whether oneDNN converts bfloat16 numbers on this CPU and multiplies in float32: on x86 with AVX-512 or with
    AVX-NE-CONVERT alone, also where the environment limits it to these. On Arm it needs the instructions."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return limit in CONVERTING or not torch.cpu._is_avx512_bf16_supported()


def _named(value: str) -> Precision:
    return "bf16" if value == "bf16" else "fp32"
