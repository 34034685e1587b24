"""Seconds until `import polyphi` and `polyphi --help` are done, beside transformers and other tools' command lines.

python benchmarks/startup.py                    # of the environment of this Python
python benchmarks/startup.py --repeats 15 --json

The commands run in turn, so that other work on the machine slows all of them. The table has medians over the repeats:
of seconds, and of CPU seconds, which other work hardly changes. Every command has run once before, so that its bytecode
is written and its files are cached. Command lines that aren't installed are left out.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

IMPORTS = ("polyphi", "transformers", "torch", "vllm", "openvino_genai", "onnxruntime_genai")
"""Packages that are imported; `python -c pass` is what any of them starts with."""
COMMAND_LINES = ("polyphi", "transformers", "vllm", "trl", "optimum-cli", "lm_eval", "hf", "ray")
"""Programs that print their `--help`."""


@dataclass(frozen=True)
class Row:
    """Medians of a command."""

    command: str
    seconds: float
    cpu_seconds: float
    slowest: float


def commands() -> dict[str, list[str]]:
    """Displayed command -> arguments, of what is installed."""
    result = {"python -c pass": [sys.executable, "-c", "pass"]}
    for name in IMPORTS:
        result[f"import {name}"] = [sys.executable, "-c", f"import {name}"]
    for name in COMMAND_LINES:
        beside = Path(sys.executable).with_name(name)
        if program := str(beside) if beside.exists() else shutil.which(name):
            result[f"{name} --help"] = [program, "--help"]
    return {name: command for name, command in result.items() if run(command) is not None}


def run(command: list[str]) -> tuple[float, float] | None:
    """Seconds and CPU seconds of a command, or None if it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    return None if process.returncode else (seconds, usage.ru_utime + usage.ru_stime)


def measure(repeats: int) -> list[Row]:
    times: dict[str, list[tuple[float, float]]] = {}
    installed = commands()
    for _ in range(repeats):
        for name, command in installed.items():
            if (result := run(command)) is not None:
                times.setdefault(name, []).append(result)
    return [
        Row(
            name,
            statistics.median(seconds for seconds, _ in results),
            statistics.median(cpu for _, cpu in results),
            max(seconds for seconds, _ in results),
        )
        for name, results in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    options = parser.parse_args()
    rows = measure(options.repeats)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print("| command | seconds | CPU seconds | slowest |\n|---|---:|---:|---:|")
    for row in rows:
        print(
            f"| `{row.command}` | {row.seconds:.2f} | {row.cpu_seconds:.2f} | {row.slowest:.2f} |"
        )


if __name__ == "__main__":
    main()
