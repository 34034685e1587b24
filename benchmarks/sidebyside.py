"""What every benchmark shares: rows, alternating repeats, the machine's own limit.

Each side of a comparison runs in a process of its own and prints one JSON object as its last line. Sides take turns
(ours, peer, ours, peer ...), so that a noisy minute falls on both; what is told are medians.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """One comparison: medians of ours and the peer's, `ratio` ours over the peer's, `limit_share` the part of the
    machine's own limit, measured in the same run, that ours reaches (None where there is no such limit)."""

    work: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    limit_share: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.peer


def alternate(
    sides: Mapping[str, Sequence[str | Path]], repeats: int, threads: int
) -> dict[str, list[dict[str, Any]]]:
    """The commands of `sides` in turn, `repeats` times; what each told. Raises RuntimeError if one fails."""
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        "TRANSFORMERS_VERBOSITY": "error",
    }
    for repeat in range(repeats):
        for name, command in sides.items():
            start = time.monotonic()
            done = subprocess.run(
                [sys.executable, *map(str, command)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                why = (
                    "killed, most likely for want of memory"
                    if done.returncode == -9
                    else "see above"
                )
                raise RuntimeError(f"{name} ended with code {done.returncode}: {why}")
            told[name].append(json.loads(done.stdout.splitlines()[-1]))
            seconds = time.monotonic() - start
            console.print(f"  {name}, {repeat + 1} of {repeats}: {seconds:.0f} s", highlight=False)
    return told


def median(told: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.median(t[key] for t in told)


def peak_bytes() -> int:
    """The most memory this process has held, since it began (Linux: `VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def matmul_rate(
    size: int = 2048, seconds: float = 2.0, dtype: torch.dtype = torch.bfloat16
) -> float:
    """FLOP/s of a square matrix product with this process's threads: the limit of training here."""
    a, b = (torch.randn(size, size, dtype=dtype) for _ in range(2))
    best, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def show(rows: Sequence[Row], *, as_json: bool, others: Sequence[Row] = ()) -> None:
    """The rows on stdout, as a table or as one JSON list; `others` are told beside them, never in the list."""
    if as_json:
        print(json.dumps([{**asdict(row), "ratio": row.ratio} for row in rows]))
    table = Table("work", "ours", "peer", "unit", "ratio", "of the limit", box=None, padding=(0, 2))
    for row in (*rows, *others):
        share = "" if row.limit_share is None else f"{row.limit_share:.0%}"
        numbers = (f"{row.ours:.3g}", f"{row.peer:.3g}", row.unit, f"{row.ratio:.2f}", share)
        table.add_row(row.work, *numbers)
    out = console if as_json else Console()
    out.print(table)
    out.print(f"peer: {', '.join(dict.fromkeys(row.peer_name for row in rows))}", highlight=False)
