"""Options and arguments that several commands share, and the console they print to."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

console = Console()
MACHINE, OWN = "Machines: never what comes out", "A stage of your own (a .py file)"
Precision = Literal["auto", "bf16", "fp32"]
SizeOption = Annotated[str, typer.Option("--size", help="micro, nano, lab or full.")]
RunOption = Annotated[Path, typer.Option("--out", help="Folder of the run.")]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="Arithmetic of training; weights stay fp32. auto: as the run in the folder, else what is faster here.",
    ),
]
NANO = Path("runs/nano")
QuantOption = Annotated[
    Literal["bf16", "int8", "int4", "int8-all", "int4-all"] | None,
    typer.Option(
        help="Quantise the frozen weights: int8 or int4, with -all adapters and encoders too, in 8 bits; bf16 only "
        "lays them out for this CPU."
    ),
]
KvOption = Annotated[
    Literal["int8"] | None,
    typer.Option(help="Keep keys and values in 8 bits, in half of the memory (on a CPU)."),
]
ModelArgument = Annotated[str, typer.Argument(help="Folder of a checkpoint, or a hub id.")]


def show_placement(phi: Any) -> None:
    """Print the device of a model and what fits there, if standard error is a terminal."""
    if sys.stderr.isatty():
        print(f"polyphi: {phi.room}", file=sys.stderr)
