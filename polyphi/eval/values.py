"""Values of code under test: as JSON between processes, and compared as benchmarks compare outputs.

Runs in the sandbox in front of trial.py (programs.py sends both), so that it imports nothing but the standard library.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import Any

ITEMS = 1_000_000
"""Most items of an endless iterator that are looked at."""
RELATIVE = 1e-7
"""NumPy's and EvalPlus' relative tolerance of numbers, beside a problem's absolute one."""


class Kept:
    """A value that stays in the other process, which knows it by this number."""

    _number: int


def pack(value: Any, keep: Callable[[Any], int] | None = None) -> Any:
    """A value as JSON; what isn't plain is kept by the one who has it, under a number."""
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value if type(value) is not str else str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, list):
        return ["list", *(pack(item, keep) for item in value)]
    if isinstance(value, tuple):
        return ["tuple", *(pack(item, keep) for item in value)]
    if isinstance(value, Mapping):
        return ["dict", *([pack(k, keep), pack(v, keep)] for k, v in value.items())]
    if isinstance(value, set | frozenset | type({}.keys())):
        return ["set", *(pack(item, keep) for item in value)]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if isinstance(value, Decimal):
        return ["decimal", str(value)]
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return pack(value.item(), keep)
    if hasattr(type(value), "__next__"):
        return ["iterator", *(pack(item, keep) for item in islice(value, ITEMS))]
    if isinstance(value, Kept):
        return ["kept", value._number]
    if keep is None:
        raise TypeError(f"a {type(value).__name__} can't be given to code in another process")
    return ["kept", keep(value)]


def unpack(packed: Any, kept: Callable[[int], Any]) -> Any:
    """The value again."""
    if not isinstance(packed, list):
        return packed
    kind, *items = packed
    if kind == "complex":
        return complex(*items)
    if kind == "bytes":
        return bytes.fromhex(items[0])
    if kind == "range":
        return range(*items)
    if kind == "decimal":
        return Decimal(items[0])
    if kind == "kept":
        return kept(items[0])
    if kind == "dict":
        return {unpack(k, kept): unpack(v, kept) for k, v in items}
    values = [unpack(item, kept) for item in items]
    makes: dict[str, Callable[[list[Any]], Any]] = {
        "list": list,
        "tuple": tuple,
        "set": set,
        "iterator": iter,
    }
    return makes[kind](values)


def alike(output: Any, expected: Any, tests: Mapping[str, Any], inputs: Sequence[Any]) -> bool:
    """EvalPlus' comparison: equal, or by the rule that a problem's outputs need, or as numbers within a tolerance."""
    rule, tolerance = tests.get("rule"), float(tests.get("tolerance") or 0)
    if rule == "any":
        return True
    if rule == "set":
        return set(output) == set(expected)
    if rule == "something":
        return (output if isinstance(output, bool) else output is not None) == (
            expected is not None
        )
    if rule == "root":  # of the polynomial that the input gives
        value = sum(c * math.pow(output, n) for n, c in enumerate(inputs[0]))
        return abs(value) <= tolerance
    if output == expected or (rule == "zero" and output == 0):
        return True
    if rule == "height" and abs(output - _pyramid(*inputs)) <= tolerance:
        return True
    if rule == "digits" and output == _digits(*inputs):
        return True
    if not tolerance and _floats(expected):
        tolerance = 1e-6
    return (
        bool(tolerance) and type(output) is type(expected) and _close(output, expected, tolerance)
    )


def _floats(value: Any) -> bool:
    if isinstance(value, list | tuple) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _close(output: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, list | tuple):
        return (
            isinstance(output, list | tuple)
            and len(output) == len(expected)
            and all(_close(g, w, tolerance) for g, w in zip(output, expected, strict=True))
        )
    if output == expected:
        return True
    return abs(output - expected) <= tolerance + RELATIVE * abs(expected)


def _pyramid(base: float, height: float) -> int:
    """Surface of a square pyramid whose height is the upright one (MBPP 581 may be read so)."""
    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))


def _digits(a: int, b: int) -> int:
    """Sum of the differences of two numbers' digits (MBPP 558 may be read so)."""
    x, y = str(a), str(b)
    width = max(len(x), len(y))
    return sum(abs(int(p) - int(q)) for p, q in zip(x.zfill(width), y.zfill(width), strict=True))


def printed_alike(output: str, expected: str) -> bool:
    """Line by line without outer space, or as the same decimal numbers."""
    lines = [[line.strip() for line in text.strip().split("\n")] for text in (output, expected)]
    if len(lines[0]) != len(lines[1]):
        return False
    for ours, theirs in zip(*lines, strict=True):
        if ours == theirs:
            continue
        try:
            if [Decimal(w) for w in ours.split()] != [Decimal(w) for w in theirs.split()]:
                return False
        except InvalidOperation:
            return False
    return True
