"""The recipe that a command names: a size, or a recipe file."""

from collections.abc import Sequence
from pathlib import Path

from polyphi_recipe.recipe.recipe import Recipe, of_size, with_modalities
from polyphi_recipe.stages import sizes


def of(name: str | Path, modalities: Sequence[str] = ()) -> Recipe:
    """The recipe of a size (micro, nano, lab, full) or of a recipe file (a path that ends in .toml), with users'
    modalities of Python files. Raises ValueError for an unknown size, and with a line for each mistake of a file."""
    recipe = _of(name)
    return with_modalities(recipe, modalities) if modalities else recipe


def _of(name: str | Path) -> Recipe:
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        from polyphi_recipe.graph.from_file import recipe_of
        from polyphi_recipe.recipe.file import read

        return recipe_of(read(path), path)
    if str(name) not in sizes.SIZES:
        raise ValueError(
            f"unknown size {str(name)!r}; the sizes are {', '.join(sizes.SIZES)}. A recipe file ends in .toml"
        )
    return of_size(sizes.load(str(name)))
