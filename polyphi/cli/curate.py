"""`polyphi curate`: one corpus of a run."""

from typing import Annotated, Literal

import typer

from polyphi.cli.options import NANO, RunOption, SizeOption, console


def curate(
    corpus: Annotated[
        str, typer.Argument(help="Name of a corpus, a Python file with your own, or `show`.")
    ],
    shown: Annotated[
        str, typer.Argument(metavar="[CORPUS or SAMPLE]", help="What `show` explains.")
    ] = "",
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seed: int = 0,
    executor: Annotated[
        Literal["local", "ray", "slurm"], typer.Option(help="Where tasks run.")
    ] = "local",
    workers: Annotated[int, typer.Option(help="Tasks at a time.", min=1)] = 1,
    slurm: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for sbatch: partition, time ...")
    ] = None,
) -> None:
    """Build one corpus of a run, or show what is there: all corpora, one, or where a sample comes from."""
    from polyphi.curate.pipeline import Machines
    from polyphi.recipe.corpora import show
    from polyphi.recipe.graph import Run

    run = Run(size, out, seed=seed, console=console)
    if corpus == "show":
        show(run.data, shown, run.report)
        return
    if shown:
        raise ValueError(f"one corpus at a time, found {corpus} and {shown}")
    options = {
        key: int(value) if value.isdigit() else value
        for key, _, value in (given.partition("=") for given in slurm or ())
    }
    run.build(corpus, Machines(executor, workers, options))
