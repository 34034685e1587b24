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


def unpack(told: Any, kept: Callable[[int], Any]) -> Any:
    """The value again."""
    if not isinstance(told, list):
        return told
    kind, *items = told
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
    made = [unpack(item, kept) for item in items]
    makes: dict[str, Callable[[list[Any]], Any]] = {
        "list": list,
        "tuple": tuple,
        "set": set,
        "iterator": iter,
    }
    return makes[kind](made)


def alike(given: Any, wanted: Any, told: Mapping[str, Any], inputs: Sequence[Any]) -> bool:
    """EvalPlus' comparison: equal, or by the rule that a problem's outputs need, or as numbers within a tolerance."""
    rule, tolerance = told.get("rule"), float(told.get("tolerance") or 0)
    if rule == "any":
        return True
    if rule == "set":
        return set(given) == set(wanted)
    if rule == "something":
        return (given if isinstance(given, bool) else given is not None) == (wanted is not None)
    if rule == "root":  # of the polynomial that the input gives
        value = sum(c * math.pow(given, n) for n, c in enumerate(inputs[0]))
        return abs(value) <= tolerance
    if given == wanted or (rule == "zero" and given == 0):
        return True
    if rule == "height" and abs(given - _pyramid(*inputs)) <= tolerance:
        return True
    if rule == "digits" and given == _digits(*inputs):
        return True
    if not tolerance and _floats(wanted):
        tolerance = 1e-6
    return bool(tolerance) and type(given) is type(wanted) and _close(given, wanted, tolerance)


def _floats(value: Any) -> bool:
    if isinstance(value, list | tuple) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _close(given: Any, wanted: Any, tolerance: float) -> bool:
    if isinstance(wanted, list | tuple):
        return (
            isinstance(given, list | tuple)
            and len(given) == len(wanted)
            and all(_close(g, w, tolerance) for g, w in zip(given, wanted, strict=True))
        )
    if given == wanted:
        return True
    return abs(given - wanted) <= tolerance + RELATIVE * abs(wanted)


def _pyramid(base: float, height: float) -> int:
    """Surface of a square pyramid whose height is the upright one (MBPP 581 may be read so)."""
    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))


def _digits(a: int, b: int) -> int:
    """Sum of the differences of two numbers' digits (MBPP 558 may be read so)."""
    x, y = str(a), str(b)
    width = max(len(x), len(y))
    return sum(abs(int(p) - int(q)) for p, q in zip(x.zfill(width), y.zfill(width), strict=True))


def printed_alike(given: str, wanted: str) -> bool:
    """Line by line without outer space, or as the same decimal numbers."""
    lines = [[line.strip() for line in text.strip().split("\n")] for text in (given, wanted)]
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
