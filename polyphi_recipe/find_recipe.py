"""The recipe that a command names: a size, or a recipe file."""

from pathlib import Path

from polyphi.planning import sizes
from polyphi_recipe.recipe import Recipe, of_size


def of(name: str | Path) -> Recipe:
    """The recipe of a size (micro, nano, lab, full) or of a recipe file (a path that ends in .toml). Raises ValueError
    for an unknown size, and with a line for each mistake of a file."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        from polyphi_recipe.from_file import recipe_of
        from polyphi_recipe.recipe_file import read

        return recipe_of(read(path), path)
    if str(name) not in sizes.SIZES:
        raise ValueError(
            f"unknown size {str(name)!r}; the sizes are {', '.join(sizes.SIZES)}. A recipe file ends in .toml"
        )
    return of_size(sizes.load(str(name)))
