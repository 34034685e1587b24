"""`polyphi bench`: benchmarks against public peers."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt


def bench(
    name: Annotated[str, Parameter(help="train, engine or kernels.")],
    /,
    *options: Annotated[
        str, Parameter(help="Options of the benchmark.", allow_leading_hyphen=True)
    ],
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON list of rows.")] = False,
    repeats: Annotated[PositiveInt, Parameter(help="Measurements of each side.")] = 3,
) -> None:
    """Benchmark against public peers in one run; needs a checkout and an idle machine. Other options are passed to the
    benchmark (`python benchmarks/NAME.py --help`).

    For example:

        polyphi bench engine --json
    """
    folder = Path(__file__).parents[2] / "benchmarks"
    if not folder.exists():
        raise ValueError(
            f"bench needs a checkout, but there is no {folder}; clone the repository and run "
            "`pip install --editable '.[dev]'` in it"
        )
    if name not in (
        benchmarks := sorted(p.stem for p in folder.glob("*.py") if p.stem != "sidebyside")
    ):
        raise ValueError(f"unknown benchmark {name!r}; the benchmarks are {', '.join(benchmarks)}")
    command = [sys.executable, str(folder / f"{name}.py"), "--repeats", str(repeats)]
    command += [*(["--json"] if as_json else []), *options]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)
