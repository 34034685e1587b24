"""Pages from the templates of a package.

>>> environment("polyphi_eval.report").get_template("tables.html").render(...)
"""

import jinja2


def environment(*packages: str) -> jinja2.Environment:
    """Return the templates in the folders `templates` of packages. Values are escaped; an undefined name is an
    error."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package) for package in packages]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
