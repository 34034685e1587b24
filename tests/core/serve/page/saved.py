"""A tiny model in a folder, and `polyphi serve` with it as a separate process."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyphi.checkpoints.write import save_checkpoint
from polyphi.engine.engine import Engine


def save(engine: Engine, folder: Path) -> Path:
    """The engine's model with its tokenizer, in the native layout."""
    beside = folder.with_name(f"{folder.name}-tokenizer")
    engine.processor.tokenizer.save(beside)
    save_checkpoint(engine.model, folder, "native", files=sorted(beside.iterdir()))
    return folder


@contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """The URL of a server in another process, which is stopped afterwards and must exit with status 0."""
    command = [sys.executable, "-m", "polyphi.cli", "serve", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            match = re.search(r"http://[\d.]+:\d+", line)
            assert match, f"the server printed {line!r}"
            yield match[0]
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
