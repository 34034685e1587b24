"""The recipe of the report (docs/recipe.md)."""
