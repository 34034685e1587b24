"""Native CPU kernels: linear layers with weights of 4 bits (linear.cpp), built with the package where a compiler is.

>>> missing() is None
True
>>> linear(x, pack(q, scale, zero), outputs)               # [T I] by [O I] -> [T O]

`missing` says why they aren't there, and others stand in (model/quantize.py). They run in the threads of torch's own
pool where that is GNU's OpenMP, as it is on Linux. Nothing of ours is needed here.
"""

import ctypes
from functools import cache
from importlib import machinery
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

GROUP = 32
"""Inputs that share a scale and a zero."""
PANEL = 16
"""Outputs side by side: a weight has a multiple of so many."""
PATHS = ("scalar", "AVX2", "AVX-512 VNNI", "NEON")


@cache
def _library() -> ctypes.CDLL | str:
    """The library, or why it can't be had."""
    found = [
        path
        for suffix in machinery.EXTENSION_SUFFIXES
        if (path := Path(__file__).with_name(f"_linear{suffix}")).exists()
    ]
    if not found:
        return "they weren't built: there was no C++ compiler when polyphi was installed"
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"they can't be loaded: {error}"
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.polyphi_quantise.argtypes = [pointer, number, count, count, *[pointer] * 4]
    library.polyphi_pack.argtypes = [*[pointer] * 3, count, count, pointer]
    library.polyphi_linear.argtypes = [
        number,
        *[pointer] * 6,
        number,
        *[count] * 3,
        pointer,
        number,
    ]
    return library


@cache
def _pool() -> int | None:
    """The address of what runs a function in torch's threads; two pools would stand in each other's way."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for line in maps:
        if "libgomp" in line:
            gomp = ctypes.CDLL(line.split(maxsplit=5)[5])
            return ctypes.cast(gomp.GOMP_parallel, ctypes.c_void_p).value
    return None


def missing() -> str | None:
    """Why there are no kernels that pay here, or None."""
    library = _library()
    if isinstance(library, str):
        return library
    return None if library.polyphi_isa() else "this CPU has neither AVX2 nor NEON's dot products"


def path() -> str:
    """The instructions that are used, for people."""
    library = _library()
    return "none" if isinstance(library, str) else PATHS[library.polyphi_isa()]


def pack(
    q: UInt8[Tensor, "O I"], scale: Float[Tensor, "O G"], zero: Float[Tensor, "O G"]
) -> UInt8[Tensor, " bytes"]:
    """Weights (q - 8) * scale + zero, q from 0 to 15, as the kernels read them: 5 bits each. Raises ValueError for
    shapes that don't fit."""
    outputs, inputs = q.shape
    if outputs % PANEL or inputs % GROUP or scale.shape != (outputs, inputs // GROUP):
        raise ValueError(
            f"expected multiples of {PANEL} outputs and {GROUP} inputs and a scale for each {GROUP} inputs, found "
            f"{tuple(q.shape)} and {tuple(scale.shape)}"
        )
    library = _library()
    assert not isinstance(library, str)
    packed = torch.empty(outputs * inputs * 5 // 8, dtype=torch.uint8)
    q, pairs = q.contiguous(), [t.to(torch.bfloat16).contiguous() for t in (scale, zero)]
    library.polyphi_pack(
        q.data_ptr(), *(t.data_ptr() for t in pairs), outputs, inputs, packed.data_ptr()
    )
    return packed


def linear(
    x: Float[Tensor, "T I"], packed: UInt8[Tensor, " bytes"], outputs: int, isa: int = -1
) -> Float[Tensor, "T O"]:
    """x, in float32 or bfloat16, by packed weights; in the type of x. Each token's activations are rounded to 8 bits of
    its largest, so that it is the same whatever stands beside it. `isa` is for tests: a place in `PATHS`."""
    library = _library()
    assert not isinstance(library, str)
    x = x.contiguous()
    (tokens, inputs), half = x.shape, int(x.dtype == torch.bfloat16)
    q = torch.empty(tokens, inputs, dtype=torch.int8)
    scale = torch.empty(tokens)
    start = torch.empty(tokens, inputs // GROUP, dtype=torch.int32)
    total = torch.empty(tokens, inputs // GROUP)
    given = [t.data_ptr() for t in (q, scale, start, total)]
    library.polyphi_quantise(x.data_ptr(), half, tokens, inputs, *given)
    y = torch.empty(tokens, outputs, dtype=x.dtype)
    library.polyphi_linear(
        isa,
        *given,
        packed.data_ptr(),
        y.data_ptr(),
        half,
        tokens,
        outputs,
        inputs,
        _pool(),
        torch.get_num_threads(),
    )
    return y
