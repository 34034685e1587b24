"""Pages from the templates of a package.

>>> environment("polyphi_eval.report").get_template("tables.html").render(...)
"""

from collections.abc import Iterable, Sequence
from functools import cache

import jinja2

CELL = str.maketrans("|\n\r", "/  ")


def environment(*packages: str) -> jinja2.Environment:
    """Return the templates in the folders `templates` of packages. An undefined name is an error. Values are escaped in
    HTML; in Markdown (`*.md`) a template uses `cell` for values that could end a line or a cell of a table."""
    templates = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package) for package in packages]),
        autoescape=lambda name: not (name or "").endswith(".md"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters.update(cell=cell, thousands="{:,}".format)
    return templates


def table(titles: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """A table in Markdown, without a final newline. `align` has a letter for each column: "r" aligns to the right."""
    text = _table().render(titles=titles, rows=rows, align=align)
    return text.rstrip("\n")


@cache
def _table() -> jinja2.Template:
    return environment("polyphi.runtime").get_template("table.md")


def cell(value: object) -> str:
    """The text of a value in one line, without the character that separates cells."""
    return str(value).translate(CELL)
