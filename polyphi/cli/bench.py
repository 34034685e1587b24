"""`polyphi bench`: benchmarks, most of them beside other programs."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt


def bench(
    name: Annotated[
        str,
        Parameter(
            help="inference, engine, train, finetune or walk, or another script in benchmarks that takes --repeats."
        ),
    ],
    /,
    *options: Annotated[
        str, Parameter(help="Options of the benchmark.", allow_leading_hyphen=True)
    ],
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON list of rows.")] = False,
    repeats: Annotated[PositiveInt, Parameter(help="Repetitions of each measurement.")] = 3,
) -> None:
    """Run a benchmark, most of them beside other programs; needs a checkout and an idle machine. Other options are
    passed to the benchmark (`python benchmarks/NAME.py --help`).

    For example:

        polyphi bench engine --json
    """
    folder = Path(__file__).parents[2] / "benchmarks"
    if not folder.exists():
        raise ValueError(
            f"bench needs a checkout, but there is no {folder}; clone the repository and run "
            "`pip install --editable '.[dev]'` in it"
        )
    benchmarks = sorted(
        p.stem for p in folder.glob("*.py") if '"--repeats"' in p.read_text("utf-8")
    )
    if name not in benchmarks:
        raise ValueError(f"unknown benchmark {name!r}; the benchmarks are {', '.join(benchmarks)}")
    command = [sys.executable, str(folder / f"{name}.py"), "--repeats", str(repeats)]
    command += [*(["--json"] if as_json else []), *options]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)
