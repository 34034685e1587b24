"""Experiments on runs of the recipe, commands of a checkout: `python -m experiments COMMAND --help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from polyphi.cli import main
from polyphi.cli.application import application
from polyphi.cli.options import NANO, SizeOption, console
from polyphi.train.options import PrecisionOption, SeedOption, TrainOptions

if TYPE_CHECKING:
    from polyphi_recipe.graph.graph import Run

app = application("python -m experiments", __doc__)


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """A run of the recipe."""

    size: SizeOption = "nano"
    out: Annotated[Path, Parameter(help="Folder of the run.")] = NANO
    seed: SeedOption = 0
    precision: PrecisionOption = "auto"

    def run(self) -> "Run":
        from polyphi_recipe.graph.from_file import of_run
        from polyphi_recipe.graph.graph import Run
        from polyphi_recipe.recipe.recipe import RECORD

        options = TrainOptions(seed=self.seed, precision=self.precision)
        of_file = (self.out / RECORD).exists()
        source = of_run(self.out) if of_file else self.size
        return Run(source, self.out, options=options, console=console)


ON_NANO = RunOptions()


def find_run(out: Path) -> "Run":
    """The run in a folder, with the size, seed and precision that it has."""
    import json

    path = out / "run.json"
    if not path.exists():
        raise ValueError(f"expected the folder of a run of the recipe, found no run.json in {out}")
    identity = json.loads(path.read_text())
    return RunOptions(identity["size"], out, identity["seed"]).run()


@app.command
def claims(
    *names: Annotated[str, Parameter(name="CLAIMS", help="Claims, such as C4; default: all.")],
    options: RunOptions = ON_NANO,
    seeds: Annotated[PositiveInt, Parameter(help="Training runs of each arm.")] = 2,
) -> None:
    """Re-test the report's claims on a finished run. Several processes on one run share the work.

    For example:

        python -m experiments claims --out runs/nano
        python -m experiments claims C4 C9 --seeds 3
    """
    from experiments.claims import runner

    run = options.run()
    if names:
        runner.run_claims(run, names, seeds)
    else:
        runner.run_all_claims(run, seeds)


@app.command
def adapters(
    *runs: Annotated[Path, Parameter(name="RUN", help="Finished runs.", required=True)],
    alignment: Annotated[
        bool, Parameter(help="Also without the auxiliary losses of images and speech.")
    ] = False,
) -> None:
    """Measure what the adapters add: the lead of runs over the same models without adapters, and over a control that
    trains encoders and projectors with the adapters held at zero.

    For example:

        python -m experiments adapters runs/nano
        python -m experiments adapters runs/nano runs/nano-1 runs/nano-2 --alignment
    """
    from experiments.adapters import markdown, measure

    table = measure([find_run(path) for path in runs], alignment=alignment)
    console.print(markdown(table), highlight=False, soft_wrap=True)


@app.command
def ablate(
    stage: Annotated[str, Parameter(help="A stage, such as text_3_post.")],
    /,
    *,
    mix: Annotated[
        tuple[str, ...],
        Parameter(help="Changed weights, such as tools=0 or code=2,math=1; repeatable."),
    ] = (),
    leave_one_out: Annotated[
        bool, Parameter(help="Add the mixes without one corpus each.")
    ] = False,
    seeds: Annotated[PositiveInt, Parameter(help="Training runs of each mix.")] = 3,
    steps: Annotated[PositiveInt | None, Parameter(help="Steps; default: the stage's.")] = None,
    task: Annotated[
        tuple[str, ...], Parameter(help="A held-out task to score as well; repeatable.")
    ] = (),
    options: RunOptions = ON_NANO,
) -> None:
    """Train a stage with other mixes and compare the held-out loss of every corpus. The results are written to the
    run's `ablation` folder.

    For example:

        python -m experiments ablate text_3_post --mix code=2,math=1 --seeds 2
        python -m experiments ablate text_3_post --leave-one-out --task arithmetic
    """
    from experiments import ablation
    from polyphi_recipe import stages
    from polyphi_recipe.stages import sizes

    arms = ablation.mixes(stages.at_size(stage, sizes.load(options.size)), mix, leave_one_out)
    run = options.run()
    results = ablation.ablate(run, stage, arms, seeds=seeds, steps=steps, tasks=task)
    console.print(ablation.markdown(results), highlight=False, soft_wrap=True)


@app.command
def scaling(
    *,
    options: RunOptions = ON_NANO,
    seeds: Annotated[
        PositiveInt, Parameter(help="Training runs for each length and learning rate.")
    ] = 2,
) -> None:
    """Measure the scaling law of text 1's peak learning rate: best rates for several run lengths, the exponent B and a
    plot. The results are written to the run's `scaling` folder.

    For example:

        python -m experiments scaling --out runs/nano --seeds 3
    """
    from experiments.scaling import measure

    measure(options.run(), seeds)


if __name__ == "__main__":
    main(application=app)
