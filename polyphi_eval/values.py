"""Values of code under test: packed as JSON between processes, and compared by the rules of benchmarks.

Runs in the sandbox before trial.py (programs.py sends both), so it imports only the standard library.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import Any

ITEMS = 1_000_000
"""Most items of an iterator that are read."""
RELATIVE = 1e-7
"""NumPy's and EvalPlus' relative tolerance of numbers, in addition to a problem's absolute one."""


class Reference:
    """An object in the other process, identified by a number."""

    _number: int


def pack(value: Any, add: Callable[[Any], int] | None = None) -> Any:
    """Return a value as JSON; objects that aren't plain data are stored by `add`, which returns their numbers."""
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
        return ["list", *(pack(item, add) for item in value)]
    if isinstance(value, tuple):
        return ["tuple", *(pack(item, add) for item in value)]
    if isinstance(value, Mapping):
        return ["dict", *([pack(k, add), pack(v, add)] for k, v in value.items())]
    if isinstance(value, set | frozenset | type({}.keys())):
        return ["set", *(pack(item, add) for item in value)]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if isinstance(value, Decimal):
        return ["decimal", str(value)]
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return pack(value.item(), add)
    if hasattr(type(value), "__next__"):
        return ["iterator", *(pack(item, add) for item in islice(value, ITEMS))]
    if isinstance(value, Reference):
        return ["reference", value._number]
    if add is None:
        raise TypeError(
            f"expected plain data for code in another process, found {type(value).__name__}"
        )
    return ["reference", add(value)]


def unpack(packed: Any, get: Callable[[int], Any]) -> Any:
    """Return a packed value; `get` returns the object of a number."""
    if not isinstance(packed, list):
        return packed
    tag, *items = packed
    if tag == "complex":
        return complex(*items)
    if tag == "bytes":
        return bytes.fromhex(items[0])
    if tag == "range":
        return range(*items)
    if tag == "decimal":
        return Decimal(items[0])
    if tag == "reference":
        return get(items[0])
    if tag == "dict":
        return {unpack(k, get): unpack(v, get) for k, v in items}
    values = [unpack(item, get) for item in items]
    constructors: dict[str, Callable[[list[Any]], Any]] = {
        "list": list,
        "tuple": tuple,
        "set": set,
        "iterator": iter,
    }
    return constructors[tag](values)


def outputs_equal(
    output: Any, expected: Any, tests: Mapping[str, Any], inputs: Sequence[Any]
) -> bool:
    """EvalPlus' comparison: equal, or by the problem's rule, or as numbers within a tolerance."""
    rule, tolerance = tests.get("rule"), float(tests.get("tolerance") or 0)
    if rule == "any":
        return True
    if rule == "set":
        return set(output) == set(expected)
    if rule == "something":
        return (output if isinstance(output, bool) else output is not None) == (
            expected is not None
        )
    if rule == "root":  # of the polynomial with the input as coefficients
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
    """Surface of a square pyramid with vertical height (an accepted interpretation of MBPP 581)."""
    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))


def _digits(a: int, b: int) -> int:
    """Sum of the differences of two numbers' digits (an accepted interpretation of MBPP 558)."""
    x, y = str(a), str(b)
    width = max(len(x), len(y))
    return sum(abs(int(p) - int(q)) for p, q in zip(x.zfill(width), y.zfill(width), strict=True))


def printed_equal(output: str, expected: str) -> bool:
    """Whether all lines are equal, except for outer space, or have equal decimal numbers."""
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
