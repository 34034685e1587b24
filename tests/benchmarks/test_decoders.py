"""The benchmark of decoding in separate processes: a small run, and files that are decoded otherwise."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest


def test_both_ways_of_decoding_are_measured(benchmark: Callable[[str], ModuleType]) -> None:
    module = benchmark("decoders")
    files = module.files([(64, 48)], 0.5)
    assert len(files) == 6
    for name in ("JPEG, 64 x 48", "MP3, 0.5 s"):
        row = module.measure(name, files[name], repeats=1)
        assert row.ratio == row.separate / row.here and row.first > 0 and row.first_process_mib > 0


def test_another_result_is_an_error(benchmark: Callable[[str], ModuleType]) -> None:
    with pytest.raises(ValueError, match="otherwise"):
        benchmark("decoders").measure("x", lambda used: np.array([used is None]), 1)
