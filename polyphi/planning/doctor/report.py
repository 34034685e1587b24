"""All findings of this machine.

>>> report = inspect(); report.chat_runs, report.start
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from polyphi.planning.doctor import hardware, probe, software, storage
from polyphi.planning.doctor.findings import Finding, Scrubber
from polyphi.runtime import cpu

SECTIONS = (
    "CPU",
    "Speed",
    "Memory",
    "GPU",
    "Software",
    "Optional",
    "Storage",
    "Environment",
)
"""The order of findings."""
SCHEMA = 1
"""Of the JSON object: it changes when a key changes its meaning or goes."""
CURES = {"killed by SIGKILL": "close other programs: the system ends processes if memory runs out"}
"""Cures of failed checks, by their message."""
PREFERRED = ("int4", "int4-all", "int8", "int8-all", None)
"""Values of `--quant` on a CPU, the fastest first."""


@dataclass(frozen=True)
class Report:
    """`facts`: measurements and numbers as JSON values. `findings`: what they mean. Both without secrets."""

    findings: tuple[Finding, ...]
    facts: dict[str, Any]

    @property
    def chat_runs(self) -> bool:
        """Whether nothing is broken that chat needs."""
        return not any(finding.fatal for finding in self.findings)

    @property
    def start(self) -> str | None:
        """A command that starts a chat with a published model that fits: the multimodal one, if it does."""
        rows = [m for m in self.facts["models"] if m["context"] >= hardware.MIN_CONTEXT]
        if not self.chat_runs or not rows:
            return None
        device = next((m["device"] for m in rows if m["device"] != "cpu"), "cpu")
        order = PREFERRED if device == "cpu" else PREFERRED[::-1]
        best = min(
            (m for m in rows if m["device"] == device),
            key=lambda m: ("multimodal" not in m["model"], order.index(m["quant"])),
        )
        quant = f" --quant {best['quant']}" if best["quant"] else ""
        return f"polyphi chat {best['model']}{quant}"

    def as_json(self) -> dict[str, Any]:
        """A JSON object: `schema`, `chat_runs`, `start`, `findings`, and the facts."""
        findings = [asdict(finding) for finding in self.findings]
        head = {"schema": SCHEMA, "chat_runs": self.chat_runs, "start": self.start}
        return {**head, "findings": findings, **self.facts}


def inspect(progress: Callable[[str], None] = lambda phase: None) -> Report:
    """Inspect and measure this machine, in some seconds. `progress` is called with the name of each phase."""
    return assemble(probe.run(progress))


def assemble(measured: probe.Probe) -> Report:
    """The report of this machine with the facts and errors of the probe."""
    facts, errors = measured.facts, measured.errors
    libraries = facts.get("libraries") or {}
    kernels = facts.get("kernels")
    instructions = libraries.get("instructions") or sorted(cpu.flags())
    threads = hardware.threads(libraries.get("threads"))
    memory, gpus = hardware.memory(), (facts.get("memory") or {}).get("gpus", [])
    models = facts.get("models") or []
    unmet, caches, stored = software.dependencies(), storage.folders(), storage.entries()
    missing = kernels and kernels["missing"]
    download = min((2 * m["parameters"] for m in models), default=None)

    findings = hardware.cpu_findings(instructions, kernels, software.kernel_cure(missing))
    findings += hardware.thread_findings(threads)
    if precision := facts.get("precision"):
        findings += hardware.precision_findings(precision)
    if rates := facts.get("rates"):
        findings += hardware.rate_findings(rates)
    findings += hardware.memory_findings(memory)
    if libraries:
        findings += hardware.gpu_findings(gpus, libraries.get("cuda_build"))
    findings += hardware.fit_findings(models, memory)
    findings += software.package_findings(unmet, errors)
    findings += _phase_findings(errors)
    findings += software.extra_findings(unmet)
    findings += software.program_findings(bool(missing))
    findings += storage.storage_findings(caches, stored, download)
    complete = [entry.name for entry in stored if entry.fault is None]
    findings += software.environment_findings(complete, errors)

    findings.sort(key=lambda finding: SECTIONS.index(finding.section))

    scrub = Scrubber()
    everything = {
        "versions": software.versions(),
        "cpu": {
            "model": cpu.model_name(),
            "class": hardware.cpu_class(instructions),
            "instructions": instructions,
            "last_level_cache": cpu.last_level_cache(),
            **asdict(threads),
        },
        "kernels": kernels,
        "torch_uses": libraries.get("torch_uses"),
        "precision": precision,
        "rates": rates,
        "memory": memory,
        "gpus": gpus,
        "models": models,
        "extras": {} if unmet is None else unmet.extras,
        "caches": [{**asdict(folder), "path": str(folder.path)} for folder in caches],
        "stored": [entry.as_json() for entry in stored],
        "environment": software.environment(),
        "errors": errors,
    }
    return Report(tuple(Finding(**scrub(asdict(f))) for f in findings), scrub(everything))


def _phase_findings(errors: dict[str, str]) -> list[Finding]:
    """Phases of the probe that failed after all imports succeeded, unless a variable is the reason."""
    result = []
    for phase, message in errors.items():
        if phase in probe.PACKAGES or " must be " in message:
            continue
        result.append(
            Finding(
                "Software",
                phase,
                "wrong",
                f"the check failed: {message}",
                CURES.get(message, "report the output of `polyphi doctor --json` as a bug"),
                fatal=phase in ("libraries", "kernels"),
            )
        )
    return result
