"""The library of native kernels, and the thread pool in which they run.

`POLYPHI_MAX_CPU_ISA` caps the instruction sets that the kernels use (`CAPS`), to test a machine as an older one; the
equivalent for torch is `ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA` and `MKL_ENABLE_INSTRUCTIONS`.
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
    "SCALAR": (0, False, False),
    "AVX2": (1, False, False),
    "AVX_VNNI": (2, False, False),
    "AVX512_VNNI": (3, False, False),
    "AVX512_BF16": (3, True, False),
    "AVX512_AMX": (3, True, True),
    "NEON": (4, True, True),
    "NEON_I8MM": (5, True, True),
}
"""Values of POLYPHI_MAX_CPU_ISA: the highest index in `PATHS`, and whether AVX-512's bfloat16 products and AMX are
allowed."""
PLAIN = (torch.Tensor, torch.nn.Parameter)
pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
real = ctypes.c_float


@cache
def library() -> ctypes.CDLL | str:
    """The library, or the reason why it isn't available. Raises ValueError for an unknown POLYPHI_MAX_CPU_ISA."""
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
        loaded.polyphi_limit(*CAPS[cap.upper()])
    return loaded


def limit(cap: str) -> None:
    """Cap the instruction sets of a loaded library, by a name of `CAPS`: for tests and benchmarks."""
    loaded = library()
    assert not isinstance(loaded, str), loaded
    loaded.polyphi_limit(*CAPS[cap])


@cache
def pool() -> int | None:
    """The address of the function that runs work in torch's threads, or None; two pools would compete for the cores."""
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
    """A function of the library, which returns nothing."""
    loaded = library()
    assert not isinstance(loaded, str), loaded
    result: Any = getattr(loaded, name)
    result.argtypes, result.restype = arguments, None
    return result


def missing() -> str | None:
    """The reason why there are no fast kernels on this machine, or None."""
    loaded = library()
    if isinstance(loaded, str):
        return loaded
    return None if loaded.polyphi_isa() else "this CPU has neither AVX2 nor NEON's dot products"


@cache
def _here() -> bool:
    return missing() is None


def fake(x: torch.Tensor) -> bool:
    """Whether a tensor has no values: one of a dry run (tests/fixtures/dry_run.py), which makes only results."""
    return type(x).__name__ == "FakeTensor"  # importing the type takes longer than some commands


def plain(*tensors: torch.Tensor) -> bool:
    """Whether kernels with a backward pass take these tensors: plain or `fake` ones of one dtype, float32 or bfloat16,
    on a CPU with kernels."""
    dtype = tensors[0].dtype
    return (
        dtype in (torch.float32, torch.bfloat16)
        and all(t.is_cpu and t.dtype == dtype and (type(t) in PLAIN or fake(t)) for t in tensors)
        and _here()
    )


def fits(*tensors: torch.Tensor) -> bool:
    """Whether kernels without a backward pass can replace torch's operators for these tensors: they are `plain` and
    have values, and no gradients are computed."""
    return not torch.is_grad_enabled() and plain(*tensors) and not any(map(fake, tensors))


def path() -> str:
    """The name of the instruction set in use, for display."""
    loaded = library()
    if isinstance(loaded, str):
        return "none"
    return PATHS[loaded.polyphi_isa()] + " and AMX" * amx()


def amx() -> bool:
    """Whether products of 8 bits by many tokens run in AMX's tiles."""
    loaded = library()
    return not isinstance(loaded, str) and bool(loaded.polyphi_amx())


def has(path: int) -> bool:
    """Whether the library is available and this CPU has the instructions of an index in `PATHS`."""
    loaded = library()
    return not isinstance(loaded, str) and bool(loaded.polyphi_has(path))
