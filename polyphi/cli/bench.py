"""`polyphi bench`: measurements beside public peers."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer


def bench(
    more: typer.Context,
    name: Annotated[str, typer.Argument(help="train, engine or kernels.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON list of rows on standard output.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Turns of each side.", min=1)] = 3,
) -> None:
    """Side by side with public peers in one run; needs a checkout and a quiet machine. Options that are not named here
    are the benchmark's own (`python benchmarks/NAME.py --help`)."""
    folder = Path(__file__).parents[2] / "benchmarks"
    if not folder.exists():
        raise ValueError(
            f"bench runs scripts of a checkout, and there is no {folder}; clone the repository and run "
            "`pip install --editable '.[dev]'` in it"
        )
    if name not in (known := sorted(p.stem for p in folder.glob("*.py") if p.stem != "sidebyside")):
        raise ValueError(f"unknown benchmark {name!r}; the benchmarks are {', '.join(known)}")
    command = [sys.executable, str(folder / f"{name}.py"), "--repeats", str(repeats)]
    command += [*(["--json"] if as_json else []), *more.args]
    if code := subprocess.run(command, check=False).returncode:
        raise typer.Exit(code)
