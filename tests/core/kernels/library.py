"""Checks a library of native kernels with nothing but Python: it loads, names its instruction sets, and computes.

python tests/core/kernels/library.py                     # the library of the installed package; doesn't import it
python tests/core/kernels/library.py PATH/_native.so
"""

import array
import ctypes
import importlib.util
import math
import sys
from pathlib import Path

PATHS = ("scalar", "AVX2", "AVX-VNNI", "AVX-512 VNNI", "NEON", "NEON i8mm")
PANEL, BLOCK = 32, 64


def pointer(values: array.array) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.buffer_info()[0])


def pack8(rows: list[list[int]]) -> array.array:
    """Integers from -127 to 127 [outputs inputs] in the layout of `polyphi.kernels.linear.pack`, each block with the
    scale 1, for whole panels and blocks."""
    result, inputs = array.array("B"), len(rows[0])
    scales = inputs // BLOCK * PANEL
    for panel in range(0, len(rows), PANEL):
        for i in range(0, inputs, 4):
            for row in rows[panel : panel + PANEL]:
                result.extend((value & 255) ^ 128 for value in row[i : i + 4])
        result.extend([1] * scales + [0] * (-scales % 64))
    return result


def linear(library: ctypes.CDLL, path: int) -> float:
    """The largest error of an 8-bit product by a path, relative to the largest result."""
    tokens, outputs, inputs = 3, 64, 192
    x = [[math.sin(t + 0.37 * i) for i in range(inputs)] for t in range(tokens)]
    weight = [[(7 * o + 13 * i) % 255 - 127 for i in range(inputs)] for o in range(outputs)]
    factors = [0.5 + o / outputs for o in range(outputs)]
    flat = array.array("f", [value for row in x for value in row])
    packed, scale = pack8(weight), array.array("f", factors)
    y = array.array("f", bytes(4 * tokens * outputs))
    size, none = ctypes.c_int64, ctypes.c_void_p(None)
    library.polyphi_linear(
        *(ctypes.c_int(path), ctypes.c_int(8), ctypes.c_int(0)),
        *(pointer(flat), pointer(packed), pointer(scale), none, pointer(y)),
        *(ctypes.c_int(0), ctypes.c_int(0), size(tokens), size(outputs), size(inputs)),
        *(none, none, none, none, size(0), ctypes.c_float(0), none, ctypes.c_int(2)),
    )
    exact = [
        factors[o] * sum(a * b for a, b in zip(row, weight[o], strict=True))
        for row in x
        for o in range(outputs)
    ]
    error = max(abs(a - b) for a, b in zip(y, exact, strict=True))
    return error / max(map(abs, exact))


def gate(library: ctypes.CDLL, path: int) -> float:
    """The largest error of SwiGLU in float32 by a path."""
    tokens, size = 2, 64
    x = array.array("f", [math.cos(0.1 * i) * 3 for i in range(tokens * 2 * size)])
    y = array.array("f", bytes(4 * tokens * size))
    number = ctypes.c_int64
    library.polyphi_gate(
        *(ctypes.c_int(path), ctypes.c_int(0), pointer(x), pointer(y)),
        *(number(tokens), number(size), ctypes.c_void_p(None), ctypes.c_int(1)),
    )
    exact = [
        value / (1 + math.exp(-value)) * x[2 * t * size + size + i]
        for t in range(tokens)
        for i, value in enumerate(x[2 * t * size : 2 * t * size + size])
    ]
    return max(abs(a - b) for a, b in zip(y, exact, strict=True))


def main() -> None:
    if len(sys.argv) > 1:
        file = Path(sys.argv[1])
    else:
        spec = importlib.util.find_spec("polyphi")
        assert spec and spec.origin, "polyphi is not installed"
        file = Path(spec.origin).parent / "kernels" / "_native.so"
    library = ctypes.CDLL(str(file))
    best = PATHS[library.polyphi_isa()]
    for path, name in enumerate(PATHS):
        if path and not library.polyphi_has(path):
            continue
        product, swiglu = linear(library, path), gate(library, path)
        print(f"{name}: 8-bit product within {product:.1e}, SwiGLU within {swiglu:.1e}")
        # activations are rounded to 127 steps
        assert product < 1e-2 and swiglu < 1e-4, (name, product, swiglu)
    print(f"the kernels in use are {best}")


if __name__ == "__main__":
    main()
