"""A check of polyphi on a GPU: one command, one table with a verdict a line, nothing to download.

    python benchmarks/gpu.py                 # on a GPU: meant for eight minutes on one H100
    python benchmarks/gpu.py --tiny          # the same checks at a tiny size, on a CPU too (the default without CUDA)
    python benchmarks/gpu.py --only graphs decode --json

It requires polyphi with its runtime dependencies and a torch for the GPU. All weights and tokens are random. Each check
(gpu_parity.py, gpu_speed.py) runs in its own process with a time limit, so that an error, a lack of memory or a broken
CUDA context fails its own line only; lines that a check has printed before count. Speeds have bounds on a GPU of the
plan's table (polyphi/planning/devices.py) only. The exit status is 1 if a line fails.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import gpu_parity
import gpu_speed
import torch
from gpu_models import Line
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyphi.runtime import distributed

HERE = Path(__file__).parent
CHECKS: dict[str, Callable[[torch.device, bool], Iterator[Line]]] = {
    "logits": gpu_parity.logits,
    "packed": gpu_parity.packed,
    "graphs": gpu_parity.graphs,
    "attention": gpu_parity.attention,
    "base": gpu_parity.base,
    "training": gpu_speed.training,
    "block": gpu_speed.block,
    "decode": gpu_speed.decode,
    "prefill": gpu_speed.prefill,
    "base_step": gpu_speed.base_step,
    "decode_int4": gpu_speed.decode_int4,
}
LIMIT, TOTAL = 120, 470
"""On a GPU: seconds of one check, and seconds after which the remaining checks are skipped. A busy CPU may take ten
times as long for the tiny size."""


def run(check: str, tiny: bool, limit: float) -> list[Line]:
    """The lines of a check, run in a new process. A process that fails adds a line with its last words."""
    arguments = [sys.executable, __file__, "--check", check, *["--tiny"] * tiny]
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=errors)
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        output.seek(0)
        errors.seek(0)
        printed, message = output.read(), errors.read()
    lines = [Line(**json.loads(text[1:])) for text in printed.splitlines() if text[:1] == ">"]
    if status is None:
        lines.append(Line(check, failure=f"stopped after {limit:.0f} s"))
    elif status:
        last = (message.strip().splitlines() or ["no message"])[-1]
        lines.append(Line(check, failure=f"exit status {status}: {last:.200}"))
    return lines


def table(lines: Sequence[Line], title: str) -> Table:
    result = Table(title=title, title_justify="left")
    for name in ("work", "value", "bound", "verdict", "explanation"):
        result.add_column(name, justify="right" if name in ("value", "bound") else "left")
    for line in lines:
        value = "" if math.isnan(line.value) else f"{line.value:.4g} {line.unit}"
        bound = "" if line.bound is None else f"{'>=' if line.least else '<='} {line.bound:.4g}"
        reason = escape(line.failure or line.skip or line.note)
        result.add_row(line.work, value, bound, line.verdict, reason)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model (default without CUDA)")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    parser.add_argument("--check", choices=CHECKS, help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args(arguments)
    if args.check:
        for line in CHECKS[args.check](distributed.device(), args.tiny):
            print(">" + json.dumps(asdict(line)), flush=True)
        return
    has_gpu = torch.cuda.is_available()
    tiny = args.tiny or not has_gpu
    slower = 1 if has_gpu else 10
    device = torch.cuda.get_device_name() if has_gpu else "CPU"
    console, began, lines = Console(stderr=True), time.monotonic(), []
    for check in args.only:
        start = time.monotonic()
        left = slower * TOTAL - (start - began)
        if left < 10:
            lines.append(Line(check, skip=f"{slower * TOTAL} s have passed"))
            continue
        lines += run(check, tiny, min(slower * LIMIT, left))
        console.print(f"{check}: {time.monotonic() - start:.0f} s", highlight=False)
    title = f"{device}, torch {torch.__version__}, {'tiny' if tiny else 'full'} size"
    if args.json:
        print(json.dumps([line.to_json() for line in lines]))
    else:
        Console(width=160 if not sys.stdout.isatty() else None).print(table(lines, title))
    sys.exit(any(line.verdict == "fail" for line in lines))


if __name__ == "__main__":
    main()
