"""`polyphi curate`: build a corpus of a run, or show its corpora."""

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from polyphi.cli.options import NANO, RunOption, SizeOption, console
from polyphi.train.options import SeedOption, TrainOptions
from polyphi_recipe.curate.machines import Machines


def curate(
    corpus: Annotated[
        str, Parameter(help="Name of a corpus, a Python file that defines one, or `show`.")
    ],
    subject: Annotated[str, Parameter(help="A corpus or a sample, for `show`.")] = "",
    /,
    *,
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seed: SeedOption = 0,
    machines: Machines = Machines(),  # noqa: B008 - frozen
    slurm: Annotated[
        tuple[str, ...],
        Parameter(metavar="KEY=VALUE", help="Options of sbatch: partition, time ...; repeatable."),
    ] = (),
) -> None:
    """Build one corpus of a run, or show all corpora, one corpus, or the origin of a sample.

    For example:

        polyphi curate sqa --out runs/nano
        polyphi curate show
        polyphi curate show sqa
    """
    from polyphi_recipe.corpora.lookup import find_corpus, report_kept, show
    from polyphi_recipe.graph import Run

    run = Run(size, out, options=TrainOptions(seed=seed), console=console)
    if corpus == "show":
        show(run.data, subject, run.report_plain)
        return
    if subject:
        raise ValueError(f"expected one corpus, found {corpus} and {subject}")
    options = {
        key: int(value) if value.isdigit() else value
        for key, _, value in (pair.partition("=") for pair in slurm)
    }
    if not run.build(corpus, replace(machines, slurm=options)):
        report_kept(run.data / find_corpus(corpus).name, run.report_plain)
