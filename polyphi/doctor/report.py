"""All findings of this machine.

>>> report = inspect(); report.chat_runs, report.start
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from polyphi.devices import cpu
from polyphi.doctor import hardware, probe, software, storage
from polyphi.doctor.checks import check
from polyphi.doctor.findings import Finding, Scrubber

SCHEMA = 1
"""Version of the report's JSON object: it changes when a key changes its meaning or is removed."""
PREFERRED = ("int4", "int4-all", "int8", "int8-all", None)
"""Values of `--quant` on a CPU, the fastest first."""


@dataclass(frozen=True)
class DoctorReport:
    """The report of `polyphi doctor`, without secrets. `facts`: measurements and numbers as JSON values. `findings`:
    what they mean."""

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


def inspect(progress: Callable[[str], None] = lambda phase: None) -> DoctorReport:
    """Inspect and measure this machine, in some seconds. `progress` is called with the name of each phase."""
    return assemble(probe.run(progress))


def assemble(measured: probe.Probe) -> DoctorReport:
    """The report of this machine with the facts and errors of the probe."""
    libraries, unmet = measured.facts.get("libraries") or {}, software.dependencies()
    instructions = libraries.get("instructions") or sorted(cpu.flags())
    threads, caches, stored = (
        hardware.threads(libraries.get("threads")),
        storage.folders(),
        storage.entries(),
    )
    facts = {
        "versions": software.versions(),
        "cpu": {
            "model": cpu.model_name(),
            "class": hardware.cpu_class(instructions),
            "instructions": instructions,
            "last_level_cache": cpu.last_level_cache(),
            **asdict(threads),
        },
        "kernels": measured.facts.get("kernels"),
        "torch_uses": libraries.get("torch_uses"),
        "precision": measured.facts.get("precision"),
        "rates": measured.facts.get("rates"),
        "memory": hardware.memory(),
        "gpus": (measured.facts.get("memory") or {}).get("gpus", []),
        "models": measured.facts.get("models") or [],
        "extras": {} if unmet is None else unmet.extras,
        "caches": [{**asdict(folder), "path": str(folder.path)} for folder in caches],
        "stored": [entry.as_json() for entry in stored],
        "environment": software.environment(),
        "errors": measured.errors,
    }
    judged = facts | {
        "instructions": instructions,
        "threads": threads,
        "gpus": facts["gpus"] if libraries else None,
        "cuda_build": libraries.get("cuda_build"),
        "unmet": unmet,
        "caches": caches,
        "stored": stored,
    }
    scrub = Scrubber()
    return DoctorReport(tuple(Finding(**scrub(asdict(f))) for f in check(judged)), scrub(facts))
