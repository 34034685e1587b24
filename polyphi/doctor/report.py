"""All findings of this machine.

>>> report = inspect(); report.chat_runs, report.start
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from polyphi.devices import cgroup, cpu
from polyphi.doctor import checks, probe
from polyphi.doctor.findings import Finding, scrub
from polyphi.runtime.files import cache_folder

SCHEMA = 3
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
        rows = [m for m in self.facts["models"] if m["context"] >= checks.MIN_CONTEXT]
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


def inspect() -> DoctorReport:
    """Inspect this machine, in some seconds."""
    return assemble(probe.run())


def assemble(result: probe.Probe) -> DoctorReport:
    """The report of this machine with the facts and errors of the probe."""
    libraries = result.facts.get("libraries") or {}
    machine, limit = psutil.virtual_memory(), cgroup.memory()
    instructions = libraries.get("instructions") or cpu.flags()
    folders = {"polyphi": cache_folder()}
    if "huggingface_hub" not in result.errors:
        from huggingface_hub import constants

        folders["Hub"] = Path(constants.HF_HUB_CACHE)
    facts = {
        "versions": checks.versions(),
        "cpu": checks.cpu_facts(instructions, libraries.get("threads")),
        "kernels": result.facts.get("kernels"),
        "precision": result.facts.get("precision"),
        "memory": {
            "total": machine.total,
            "available": machine.available,
            "limit": limit and limit.limit,
            "limit_free": limit and limit.free,
        },
        "gpus": (result.facts.get("memory") or {}).get("gpus", []),
        "cuda_build": libraries.get("cuda_build"),
        "models": result.facts.get("models") or [],
        "requirements": checks.unmet_requirements(),
        "caches": [checks.cache_facts(name, path) for name, path in folders.items()],
        "environment": checks.variables(),
        "errors": result.errors,
    }
    findings = (Finding(**scrub(asdict(finding))) for finding in checks.check(facts))
    return DoctorReport(tuple(findings), scrub(facts))
