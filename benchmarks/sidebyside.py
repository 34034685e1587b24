"""Code that all benchmarks share: rows, alternating repeats, the machine's own limit, the precision of transformers.

Each side of a comparison runs in its own process and prints one JSON object as its last line. Sides take turns
(ours, peer, ours, peer ...), so that noise affects both; the reported values are medians.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from polyphi.devices import precision

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent / ".venv" / ".peers"
"""Environments of peers that pin other versions than ours, one folder each (`install`)."""
console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """One comparison: medians of ours and the peer's, `ratio` ours over the peer's, `limit_share` the part of the
    machine's own limit, measured in the same run, that ours reaches (None where there is no such limit). `peer` is NaN
    in a row without a peer."""

    work: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    limit_share: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    @property
    def seconds(self) -> str:
        """The seconds of one item, ours / the peer's, for a rate of items that take long; otherwise empty."""
        if self.unit not in PER_SECOND:
            return ""
        return " / ".join(
            "-" if math.isnan(rate) else f"{1 / rate:.2f}" for rate in (self.ours, self.peer)
        )


PER_SECOND = ("clips/s", "crops/s", "per s")
"""Units of rows whose seconds are shown too."""


@dataclass(frozen=True)
class Transformers:
    """transformers as a peer: the precision that it computes in, whether it was chosen here rather than requested, and
    how the model is cut, if it is."""

    precision: precision.Precision
    chosen: bool = True
    cut: str = ""

    @property
    def dtype(self) -> torch.dtype:
        return precision.DTYPES[self.precision]

    @property
    def name(self) -> str:
        return f"transformers {version('transformers')} {self.precision}" + (
            f", {self.cut}" if self.cut else ""
        )


def fastest_precision(
    products: Sequence[precision.MatrixProducts] = (), requested: str = "auto"
) -> precision.Choice:
    """The precision in which torch's own matrix products, and so transformers, take the least time on this CPU, by the
    shapes of the model's `products`. `requested` "bf16" or "fp32" is taken as it is; POLYPHI_PRECISION applies to
    polyphi alone."""
    return precision.faster(products) if requested == "auto" else precision.choose(requested)


def choose_transformers(
    products: Sequence[precision.MatrixProducts] = (), requested: str = "auto"
) -> Transformers:
    """transformers in its fastest precision on this machine; the choice is printed."""
    choice = fastest_precision(products, requested)
    peer = Transformers(choice.precision, chosen=requested == "auto")
    console.print(f"peer: {peer.name} ({choice.reason})", highlight=False)
    return peer


def install(name: str, unusable: Sequence[str] = ()) -> None:
    """Make the environment `name` with the packages of `peers/requirements-NAME.txt`. `unusable`: packages that these
    require, but whose builds on the index don't load beside torch for CPUs; they are removed again."""
    path = ENVIRONMENTS / name
    subprocess.run([sys.executable, "-m", "venv", path], check=True)
    pip = [path / "bin" / "python", "-m", "pip"]
    requirements = HERE / "peers" / f"requirements-{name}.txt"
    subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)
    subprocess.run([*pip, "install", "--quiet", "-r", requirements], check=True)
    if unusable:
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *unusable], check=True)


def alternate(
    sides: Mapping[str, Sequence[str | Path]], repeats: int, threads: int
) -> dict[str, list[dict[str, Any]]]:
    """Run the commands of `sides` in turn, `repeats` times; return the results of each. A command is a script with its
    arguments, after the interpreter where that is another than this one. Raises RuntimeError if one fails."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        "TRANSFORMERS_VERBOSITY": "error",
    }
    for repeat in range(repeats):
        for name, command in sides.items():
            start = time.monotonic()
            foreign = Path(command[0]).is_relative_to(ENVIRONMENTS)
            done = subprocess.run(
                [*([] if foreign else [sys.executable]), *map(str, command)],
                # Names of our files would hide packages there.
                env={**environment, "PYTHONPATH": ""} if foreign else environment,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                why = (
                    "killed, most likely because memory ran out"
                    if done.returncode == -9
                    else "see above"
                )
                raise RuntimeError(f"{name} ended with code {done.returncode}: {why}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            seconds = time.monotonic() - start
            console.print(f"  {name}, {repeat + 1} of {repeats}: {seconds:.0f} s", highlight=False)
    return results


def median(results: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.median(t[key] for t in results)


def peer_precision(peer: Sequence[str | Path], threads: int) -> precision.Choice:
    """The precision in which the peer is faster: that of the environment, fp32 without bfloat16 instructions, else by a
    run of three steps in each."""
    if (pinned := precision.pinned()) is not None:
        return precision.Choice(pinned, f"set by {precision.VARIABLE}")
    if (reason := precision.missing(torch.bfloat16)) is not None:
        return precision.Choice("fp32", reason)
    sides = {p: [*peer, "--precision", p, "--steps", "3"] for p in ("bf16", "fp32")}
    results = alternate(sides, 1, threads)
    ratio = median(results["fp32"], "speed") / median(results["bf16"], "speed")
    return precision.Choice(
        "bf16" if ratio < 1 else "fp32", f"bf16 takes {ratio:.2f} of the time of fp32"
    )


def peak_bytes() -> int:
    """The peak memory of this process (Linux: `VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def read_rate(megabytes: int = 1024, seconds: float = 2.0) -> float:
    """Bytes/s of reading memory with this process's threads, by the quickest of three ways to read all of it."""
    wide = torch.ones(megabytes * 2**20 // 4)
    matrix = wide.view(torch.bfloat16).view(-1, 4096)
    half, vector = matrix[: len(matrix) // 2], torch.ones(4096, dtype=torch.bfloat16)
    ways: list[tuple[int, Callable[[], object]]] = [
        (wide.nbytes, wide.sum),
        (wide.nbytes, lambda: torch.mv(wide.view(-1, 4096), vector.float())),
        (half.nbytes, lambda: torch.mv(half, vector)),
    ]
    best, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        for count, way in ways:
            start = time.perf_counter()
            way()
            best = max(best, count / (time.perf_counter() - start))
    return best


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


def product_limit(seconds: float = 2.0) -> tuple[float, precision.Precision]:
    """The limit of products of bfloat16 weights: FLOP/s of a square matrix product, and its precision, which is
    float32 where that is faster (`fastest_precision`)."""
    name = fastest_precision().precision
    return matmul_rate(seconds=seconds, dtype=precision.DTYPES[name]), name


def show(rows: Sequence[Row], *, as_json: bool, others: Sequence[Row] = ()) -> None:
    """The rows on stdout, as a table or as one JSON list; `others` are added to the table, never to the list."""
    if as_json:
        print(json.dumps([{**asdict(row), "ratio": row.ratio} for row in rows]))
    table = Table(
        "work", "ours", "peer", "unit", "ratio", "of the limit", "seconds", box=None, padding=(0, 2)
    )
    for row in (*rows, *others):
        share = "" if row.limit_share is None else f"{row.limit_share:.0%}"
        peer, ratio = (
            "-" if math.isnan(x) else f"{x:{f}}" for x, f in ((row.peer, ".3g"), (row.ratio, ".2f"))
        )
        table.add_row(row.work, f"{row.ours:.3g}", peer, row.unit, ratio, share, row.seconds)
    out = Console(stderr=as_json, width=max(110, console.width))
    out.print(table)
    peers = dict.fromkeys(r.peer_name for r in (*rows, *others) if not math.isnan(r.peer))
    out.print(f"peer: {', '.join(peers) or 'none'}", highlight=False)
