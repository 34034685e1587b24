"""Steps of a run that its other processes take in parallel: the branches of stages, the halves of the evaluation."""

from polyphi.devices.precision import Precision
from polyphi_recipe import stages
from polyphi_recipe.graph import evaluation, processes
from polyphi_recipe.graph.folder import RunFolder
from polyphi_recipe.recipe.recipe import Recipe
from polyphi_recipe.stages.sizes import Size


def train_branches(recipe: Recipe, folder: RunFolder, seed: int, precision: Precision) -> None:
    """Train the two branches of the built-in recipe in parallel: small steps leave cores idle, two processes with half
    the cores each don't. A process waits where it needs the corpus or stage that the other is making
    (`RunFolder.exclusive`)."""
    options = ["--size", recipe.size.name, "--seed", str(seed)]
    options += ["--out", str(folder.path), "--precision", precision]
    options += _modality_options(recipe.size)
    processes.run_parallel(
        {
            branch[-1]: ["train", *branch, *options]
            for branch in stages.BRANCHES
            if not all(map(folder.is_trained, branch))
        },
        folder.report,
    )


def evaluate(recipe: Recipe, folder: RunFolder) -> bool:
    """Evaluate the held-out tasks in two processes, every second one in each. Returns False where there are no cores
    for two, and in a run whose next step, the benchmarks, is done: one process checks the answers in less time than two
    need to start."""
    if evaluation.are_benchmarks_done(folder):
        return False
    names = [task.name for task in evaluation.tasks_of(recipe, folder)]
    return processes.run_parallel(
        {
            f"evaluation {part + 1}": [
                *("eval", "heldout", str(folder.path), *names[part::2]),
                *_modality_options(recipe.size),
            ]
            for part in range(2)
        },
        folder.report,
    )


def _modality_options(size: Size) -> list[str]:
    """The options of other processes of this run that name its modalities' files."""
    files = [own.modality.file for own in size.model.further.values()]
    return [word for file in files for word in ("--modality", str(file))]
