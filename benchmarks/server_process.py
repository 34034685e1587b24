"""A server as a child process, for benchmarks that load it or attack it."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def server(model: str, options: list[str]) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """`polyphi serve` as a child: the process, its address, its log."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "polyphi.cli", "serve", model, "--port", "0", *options]
        with log.open("w") as errors:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "COLUMNS": "200"},
            )
        try:
            assert process.stdout
            result = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
            if result is None:
                raise SystemExit(f"the server didn't start: {log.read_text()[-2000:]}")
            yield process, result[0], log
        finally:
            process.kill()
            process.wait()
