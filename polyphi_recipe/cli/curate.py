"""`polyphi curate`: build a corpus of a run, or show its corpora."""

from typing import Annotated, Literal

import typer

from polyphi.cli.options import NANO, RunOption, SizeOption, console


def curate(
    corpus: Annotated[
        str, typer.Argument(help="Name of a corpus, a Python file that defines one, or `show`.")
    ],
    subject: Annotated[
        str, typer.Argument(metavar="[CORPUS or SAMPLE]", help="Subject of `show`.")
    ] = "",
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seed: int = 0,
    executor: Annotated[
        Literal["local", "ray", "slurm"], typer.Option(help="Where tasks run.")
    ] = "local",
    workers: Annotated[int, typer.Option(help="Parallel tasks.", min=1)] = 1,
    slurm: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for sbatch: partition, time ...")
    ] = None,
) -> None:
    """Build one corpus of a run, or show all corpora, one corpus, or the origin of a sample.

    \b
    Examples:
      polyphi curate sqa --out runs/nano
      polyphi curate show
      polyphi curate show sqa
    """
    from polyphi_recipe.corpora.lookup import find_corpus, report_kept, show
    from polyphi_recipe.curate.pipeline import Machines
    from polyphi_recipe.graph import Run

    run = Run(size, out, seed=seed, console=console)
    if corpus == "show":
        show(run.data, subject, run.report_plain)
        return
    if subject:
        raise ValueError(f"expected one corpus, found {corpus} and {subject}")
    options = {
        key: int(value) if value.isdigit() else value
        for key, _, value in (pair.partition("=") for pair in slurm or ())
    }
    if not run.build(corpus, Machines(executor, workers, options)):
        report_kept(run.data / find_corpus(corpus).name, run.report_plain)
