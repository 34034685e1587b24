"""`polyphi curate`: build a corpus of a run, or show its corpora."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from polyphi.cli.options import NANO, SizeOption, console, folder_of_run
from polyphi.train.options import SeedOption, TrainOptions
from polyphi_recipe.pipeline.machines import Machines


def curate(
    *names: Annotated[
        str,
        Parameter(
            help="Corpora, or Python files that define one. A recipe file (.toml) before them gives their sources and "
            "teachers. Or `show` and a corpus or a sample."
        ),
    ],
    size: SizeOption = "nano",
    out: Annotated[
        Path | None,
        Parameter(help="Folder of the run; a recipe file needs one; default: runs/nano."),
    ] = None,
    seed: SeedOption = 0,
    machines: Machines = Machines(),  # noqa: B008 - frozen
    slurm: Annotated[
        tuple[str, ...],
        Parameter(metavar="KEY=VALUE", help="Options of sbatch: partition, time ...; repeatable."),
    ] = (),
) -> None:
    """Build corpora of a run, or show all corpora, one corpus, or the origin of a sample.

    For example:

        polyphi curate sqa --out runs/nano
        polyphi curate lab.toml captions asr --out runs/lab --workers 8
        polyphi curate show
        polyphi curate show sqa
    """
    from polyphi_recipe.corpora.lookup import report_kept, show
    from polyphi_recipe.graph.corpora import check
    from polyphi_recipe.graph.graph import Run
    from polyphi_recipe.graph.teacher_rows import corpora_of

    if names[:1] == ("show",):
        if len(names) > 2:
            raise ValueError(f"expected one corpus to show, found {', '.join(names[1:])}")
        show(
            (out or NANO) / "data",
            names[1] if len(names) > 1 else "",
            lambda text: console.print(text, highlight=False, markup=False),
        )
        return
    files = [name for name in names if name.endswith(".toml")]
    corpora = [name for name in names if name not in files]
    if len(files) > 1 or not names:
        raise ValueError(
            f"expected a recipe file or corpora, found {', '.join(names) or 'nothing'}"
        )
    recipe = files[0] if files else size
    run = Run(recipe, folder_of_run(recipe, out), options=TrainOptions(seed=seed), console=console)
    options = {
        key: int(value) if value.isdigit() else value
        for key, _, value in (pair.partition("=") for pair in slurm)
    }
    every = corpora or (*run.recipe.imported_names, *corpora_of(run.recipe))
    chosen = [part for name in every for part in run.recipe.shares.get(name, (name,))]
    check(run.recipe, [name for name in chosen if not name.endswith(".py")])
    for name in chosen:
        if not run.build(name, replace(machines, slurm=options)):
            report_kept(run.folder.data / run.corpora.find(name).name, run.folder.report_plain)
