"""Virtual environments for evaluators that pin other packages than ours, created on first use.

>>> python = Environment("bfcl", ("bfcl-eval==2026.3.23", "tree_sitter==0.21.3"), dependencies=False).python()

They are in `$POLYPHI_CACHE/environments` (by default in ~/.cache/polyphi), one for each list of requirements, and may
be deleted at any time. Generated code runs in them only through the sandbox.
"""

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyphi.runtime.files import cache_folder, locked, remove, write_whole

Print = Callable[[str], None]


def _stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Environment:
    """An environment with pinned `requirements`, in pip's format; `dependencies=False` installs only these.
    `interpreter` is the name or path of its Python (None: this one)."""

    name: str
    requirements: Sequence[str]
    dependencies: bool = True
    interpreter: str | None = None

    @property
    def folder(self) -> Path:
        parts = [*self.requirements, str(self.dependencies), self.interpreter or sys.version]
        return cache_folder() / "environments" / f"{self.name}-{_short(parts)}"

    @property
    def ready(self) -> bool:
        return (self.folder / "whole").exists()

    def unavailable(self) -> str | None:
        """Return the reason why it can't be created, if that is known without trying, or None."""
        if self.ready or self.interpreter is None or shutil.which(self.interpreter):
            return None
        return f"the environment of {self.name} needs {self.interpreter}, which isn't installed on this machine"

    def python(self, report: Print = _stderr) -> Path:
        """Return the environment's interpreter; creates the environment first if it doesn't exist (with a lock between
        processes). Raises ValueError with pip's output."""
        folder = self.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f".{folder.name}.lock"):
            if not self.ready:
                self._create(folder, report)
        return folder / "bin" / "python"

    def _create(self, folder: Path, report: Print) -> None:
        if why := self.unavailable():
            raise ValueError(why)
        remove(folder)
        report(f"{self.name}: installing {len(self.requirements)} packages in {folder} (once) ...")
        began = time.monotonic()
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        install += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        install += [] if self.dependencies else ["--no-deps"]
        try:
            self._run([self.interpreter or sys.executable, "-m", "venv", str(folder)])
            self._run([*install, *self.requirements])
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        write_whole(folder / "whole", "")
        report(f"{self.name}: ready after {time.monotonic() - began:.0f} s")

    def _run(self, command: Sequence[str]) -> None:
        result = subprocess.run(
            command,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if result.returncode:
            output = [line for line in result.stdout.splitlines() if line.strip()][-5:]
            raise ValueError(
                f"the environment of {self.name} couldn't be created ({' '.join(self.requirements)}): "
                + " | ".join(output)
                + "; make sure that pip can reach a package index, and run the same command again"
            )


def _short(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
