"""Parameters of which `make test` runs a few, and `make test-all` all."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def few(values: Iterable[Any], quick: int | Callable[[Any], bool]) -> list[Any]:
    """`values` as parameters of a test. All but the first `quick`, or but those for which it is true, are long."""
    parameters = []
    for number, value in enumerate(values):
        is_quick = number < quick if isinstance(quick, int) else quick(value)
        arguments = value if isinstance(value, tuple) else (value,)
        parameters.append(pytest.param(*arguments, marks=() if is_quick else pytest.mark.long))
    return parameters
