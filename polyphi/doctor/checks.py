"""The table of checks: the section of their results in the report, the function that judges and advises, and the facts
that it reads (report.py).

>>> findings = list(check(facts))
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from polyphi.doctor import hardware, software, storage
from polyphi.doctor.findings import Finding, NamedResult

Check = tuple[str, Callable[..., Iterator[NamedResult]], tuple[str, ...]]
CHECKS: tuple[Check, ...] = (
    ("CPU", hardware.processor_results, ("instructions",)),
    ("CPU", software.kernel_results, ("kernels",)),
    ("CPU", hardware.thread_results, ("threads",)),
    ("CPU", hardware.precision_results, ("precision",)),
    ("Speed", hardware.rate_results, ("rates",)),
    ("Memory", hardware.memory_results, ("memory",)),
    ("Memory", partial(hardware.fit_results, on_cpu=True), ("models", "memory")),
    ("GPU", hardware.gpu_results, ("gpus", "cuda_build")),
    ("GPU", partial(hardware.fit_results, on_cpu=False), ("models", "memory")),
    ("Software", software.package_results, ("errors", "unmet")),
    ("Software", software.phase_results, ("errors",)),
    ("Optional", software.extra_results, ("unmet",)),
    ("Optional", software.program_results, ()),
    ("Optional", software.compiler_results, ("kernels",)),
    ("Storage", storage.cache_results, ("caches", "stored", "models")),
    ("Storage", storage.model_results, ("stored",)),
    ("Environment", software.environment_results, ("stored", "errors")),
)
"""The checks in the order of the report. A check without its first fact is left out."""


def check(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """The results of all checks."""
    for section, judge, names in CHECKS:
        values = [facts[name] for name in names]
        if values and values[0] is None:
            continue
        for name, result in judge(*values):
            yield Finding(section, name, *(("ok", result) if isinstance(result, str) else result))
