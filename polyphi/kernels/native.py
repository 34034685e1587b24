"""The library of native kernels, and torch's threads for them to run in.

`POLYPHI_MAX_CPU_ISA` caps the instruction sets that the kernels use (`CAPS`), so that one machine shows what another
does; the equivalent for torch is `ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA` and `MKL_ENABLE_INSTRUCTIONS`.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

PATHS = ("scalar", "AVX2", "AVX-VNNI", "AVX-512 VNNI", "NEON", "NEON i8mm")
CAPS = {
    "SCALAR": (0, False),
    "AVX2": (1, False),
    "AVX_VNNI": (2, False),
    "AVX512_VNNI": (3, False),
    "AVX512_BF16": (3, True),
    "NEON": (4, True),
    "NEON_I8MM": (5, True),
}
"""Values of POLYPHI_MAX_CPU_ISA: the highest index in `PATHS`, and whether AVX-512's bfloat16 products are allowed."""
PLAIN = (torch.Tensor, torch.nn.Parameter)
pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
real = ctypes.c_float


@cache
def library() -> ctypes.CDLL | str:
    """The library, or why it can't be had. Raises ValueError for an unknown POLYPHI_MAX_CPU_ISA."""
    if not (path := Path(__file__).with_name("_native.so")).exists():
        return "they weren't built: there was no C++ compiler when polyphi was installed"
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        return f"they can't be loaded: {error}"
    if cap := os.environ.get("POLYPHI_MAX_CPU_ISA"):
        if cap.upper() not in CAPS:
            raise ValueError(
                f"POLYPHI_MAX_CPU_ISA must be one of {', '.join(CAPS)}, found {cap!r}; unset it to use everything "
                "that this CPU has"
            )
        loaded.polyphi_limit(*map(int, CAPS[cap.upper()]))
    return loaded


@cache
def pool() -> int | None:
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


def function(name: str, *arguments: type) -> Callable[..., None]:
    """One of its functions, which gives nothing back."""
    held = library()
    assert not isinstance(held, str), held
    found: Any = getattr(held, name)
    found.argtypes, found.restype = arguments, None
    return found


def missing() -> str | None:
    """Why there are no kernels that pay here, or None."""
    held = library()
    if isinstance(held, str):
        return held
    return None if held.polyphi_isa() else "this CPU has neither AVX2 nor NEON's dot products"


@cache
def _here() -> bool:
    return missing() is None


def fits(*tensors: torch.Tensor) -> bool:
    """Whether kernels can take these in the place of torch's operators: plain tensors of one type, float32 or bfloat16,
    on a CPU for which there are kernels, and nobody asks for a gradient."""
    dtype = tensors[0].dtype
    return (
        not torch.is_grad_enabled()
        and dtype in (torch.float32, torch.bfloat16)
        and all(t.is_cpu and t.dtype == dtype and type(t) in PLAIN for t in tensors)
        and _here()
    )


def path() -> str:
    """The instructions that are used, for people."""
    held = library()
    return "none" if isinstance(held, str) else PATHS[held.polyphi_isa()]


def has(path: int) -> bool:
    """Whether a place in `PATHS` is one of instructions that this CPU has, and the library is there."""
    held = library()
    return not isinstance(held, str) and bool(held.polyphi_has(path))
