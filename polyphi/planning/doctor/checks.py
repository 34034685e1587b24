"""The table of checks: each one's section and name in the report, the function that judges and advises, and the facts
that it reads (report.py).

>>> findings = [finding for check in CHECKS for finding in check.findings(facts)]
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from polyphi.planning.doctor import hardware, software, storage
from polyphi.planning.doctor.findings import Finding, Result
from polyphi.runtime import cpu


@dataclass(frozen=True)
class Check:
    """A row of the table. `judge` returns a result, a text where all is ok, or None where the check doesn't apply;
    where `name` is empty it yields results with their names. A check without its first fact is left out."""

    section: str
    name: str
    judge: Callable[..., Any]
    facts: tuple[str, ...] = ()

    def findings(self, facts: Mapping[str, Any]) -> Iterator[Finding]:
        values = [facts[name] for name in self.facts]
        if values and values[0] is None:
            return
        judged = self.judge(*values)
        is_one = isinstance(judged, str | Result)
        for name, result in [(self.name, judged)] if is_one else judged or ():
            result = Result("ok", result) if isinstance(result, str) else result
            yield Finding(self.section, name, *result)


CHECKS = (
    Check("CPU", "processor", cpu.model_name),
    Check("CPU", "class", hardware.class_result, ("instructions",)),
    Check("CPU", "kernels", software.kernel_result, ("kernels",)),
    Check("CPU", "cores", hardware.core_result, ("threads",)),
    Check("CPU", "threads", hardware.thread_result, ("threads",)),
    Check(
        "CPU", "dtype", "{inference} for unquantized weights ({reason})".format_map, ("precision",)
    ),
    Check("CPU", "training", "{training} ({training_reason})".format_map, ("precision",)),
    Check("Speed", "memory", hardware.memory_rate, ("rates",)),
    Check("Speed", "decoding", hardware.decoding_rates, ("rates",)),
    Check("Speed", "products", hardware.product_rates, ("rates",)),
    Check("Speed", "other work", hardware.other_work, ("rates",)),
    Check("Memory", "machine", hardware.memory_result, ("memory",)),
    Check("Memory", "limit", hardware.limit_result, ("memory",)),
    Check("Memory", "", partial(hardware.fit_results, on_cpu=True), ("models", "memory")),
    Check("GPU", "", hardware.gpu_results, ("gpus", "cuda_build")),
    Check("GPU", "", partial(hardware.fit_results, on_cpu=False), ("models", "memory")),
    Check(
        "Software",
        "system",
        lambda: f"{platform.system()} {platform.release()}, {platform.machine()}",
    ),
    Check("Software", "versions", software.version_list),
    Check("Software", "", software.import_results, ("errors",)),
    Check("Software", "polyphi", software.installation_result, ("is_installed",)),
    Check("Software", "dependencies", software.dependency_result, ("unmet",)),
    Check("Software", "", software.phase_results, ("errors",)),
    Check("Optional", "extras", software.extra_result, ("unmet",)),
    Check("Optional", "more extras", software.missing_extra_result, ("unmet",)),
    Check("Optional", "", software.program_results),
    Check("Optional", "C++ compiler", software.compiler_result, ("kernels",)),
    Check("Storage", "", storage.cache_results, ("caches", "stored", "models")),
    Check("Storage", "", storage.model_results, ("stored",)),
    Check("Environment", "", software.environment_results, ("stored", "errors")),
)
"""In the order of the report."""
