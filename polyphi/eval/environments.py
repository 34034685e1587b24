"""Virtual environments for evaluators that pin other packages than ours, each made on its first use.

>>> python = Environment("bfcl", ("bfcl-eval==2026.3.23", "tree_sitter==0.21.3"), dependencies=False).python()

They lie below `$POLYPHI_CACHE/environments` (by default in ~/.cache/polyphi), one for each list of requirements, whole
or absent, and may be deleted at any time. Code that comes from a model runs in them through the sandbox alone.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Tell = Callable[[str], None]


def _stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Environment:
    """`requirements` as pip takes them, pinned. `dependencies=False` installs these alone. `interpreter` is the Python
    that it is made of, by name or path (None: this one)."""

    name: str
    requirements: Sequence[str]
    dependencies: bool = True
    interpreter: str | None = None

    @property
    def folder(self) -> Path:
        cache = Path(os.environ.get("POLYPHI_CACHE", Path.home() / ".cache" / "polyphi"))
        parts = [*self.requirements, str(self.dependencies), self.interpreter or sys.version]
        return cache / "environments" / f"{self.name}-{_short(parts)}"

    @property
    def ready(self) -> bool:
        return (self.folder / "whole").exists()

    def unable(self) -> str | None:
        """Why it can't be made here, so far as that can be told without trying."""
        if self.ready or self.interpreter is None or shutil.which(self.interpreter):
            return None
        return (
            f"the environment of {self.name} needs {self.interpreter}, which isn't on this machine"
        )

    def python(self, report: Tell = _stderr) -> Path:
        """Its interpreter; made if need be, by one process at a time. Raises ValueError with pip's own words."""
        folder = self.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.ready:
                self._make(folder, report)
        return folder / "bin" / "python"

    def _make(self, folder: Path, report: Tell) -> None:
        if why := self.unable():
            raise ValueError(why)
        shutil.rmtree(folder, ignore_errors=True)
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
        (folder / "whole").touch()
        report(f"{self.name}: ready after {time.monotonic() - began:.0f} s")

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(
            command,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if done.returncode:
            output = [line for line in done.stdout.splitlines() if line.strip()][-5:]
            raise ValueError(
                f"the environment of {self.name} couldn't be made ({' '.join(self.requirements)}): "
                + " | ".join(output)
                + "; it needs pip and a package index that it can reach; run the same command again once it can"
            )


def _short(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
