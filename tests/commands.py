"""Commands that tests run, and what they say."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def completed(
    *command: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command's end and what it printed, errors among it; `environment` beside our own."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
