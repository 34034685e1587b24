"""`polyphi doctor`: what this machine can run, and the cure of what is missing or slow."""

import json
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from polyphi.cli.options import console

if TYPE_CHECKING:
    from polyphi.doctor.findings import Finding
    from polyphi.doctor.report import DoctorReport

STYLES = {"ok": "green", "slow": "yellow", "missing": "cyan", "wrong": "bold red"}


def doctor(
    *,
    as_json: Annotated[
        bool, Parameter(name="--json", help="Print one JSON object, for a bug report.")
    ] = False,
) -> None:
    """Check what this machine can run: CPU and kernels, memory and which published models fit, GPU, packages, caches,
    environment variables. Says how to fix each finding that isn't ok. Exits with 1 if chat can't run.

    For example:

        polyphi doctor
        polyphi doctor --json
    """
    from polyphi.doctor.report import inspect

    report = inspect()
    if as_json:
        print(json.dumps(report.as_json(), indent=1))
    elif console.is_terminal:
        show(report)
    else:
        with console.capture() as page:
            show(report)
        print("\n".join(line.rstrip() for line in page.get().splitlines()))
    if not report.chat_runs:
        sys.exit(1)


def show(report: "DoctorReport") -> None:
    """Print the report as a page of text."""
    for section, group in groupby(report.findings, key=lambda finding: finding.section):
        console.print(Text(section, style="bold"))
        for finding in group:
            _show_finding(finding)
        if section == "Memory":
            _show_models(report.facts["models"])
        console.print()
    _show_verdict(report)


def _show_finding(finding: "Finding") -> None:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=8)
    grid.add_column(min_width=17)
    grid.add_column()
    state = Text(finding.state, style=STYLES[finding.state])
    grid.add_row(state, Text(finding.name, no_wrap=True), Text(finding.text))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False), highlight=False)
    if finding.cure:
        line = Text.assemble(("cure: ", "dim"), finding.cure, overflow="fold")
        console.print(Padding(line, (0, 0, 0, 11), expand=False), highlight=False)


def _show_models(models: list[dict[str, Any]]) -> None:
    """The table of the published models."""
    if not models:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for header in ("model", "--quant", "device"):
        table.add_column(header)
    for header in ("weights", "context"):
        table.add_column(header, justify="right")
    for m in models:
        fits = f"{m['context']:,}" if m["context"] else "doesn't fit"
        name = m["model"].rpartition("/")[2].removesuffix("-instruct")
        quant = m["quant"] or f"- ({m['dtype']})"
        table.add_row(name, quant, m["device"], f"{m['weights'] / 1e9:.1f} GB", fits)
    console.print(Padding(table, (1, 0, 0, 2), expand=False), highlight=False)
    note = "context: tokens that fit into half of the memory that the weights leave."
    console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2), expand=False), highlight=False)


def _show_verdict(report: "DoctorReport") -> None:
    counts = {state: 0 for state in STYLES}
    for finding in report.findings:
        counts[finding.state] += 1
    listed = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if not report.chat_runs:
        names = ", ".join(finding.name for finding in report.findings if finding.fatal)
        console.print(Text(f"Chat can't run here: {names} ({listed}).", style=STYLES["wrong"]))
    elif report.start is None:
        console.print(f"Chat runs, but no published model fits ({listed}).", highlight=False)
    else:
        console.print(f"Chat runs here ({listed}). Start with:", highlight=False)
        console.print(f"  {report.start}", highlight=False, soft_wrap=True)
