"""The trained nano model in the package polyphi-nano, which `nano` names where no folder has that name.

>>> folder()                       # None where the package isn't installed
PosixPath('.../site-packages/polyphi_nano/model')
"""

from importlib.util import find_spec
from pathlib import Path

NAME = "nano"
PACKAGE = "polyphi_nano"


def folder() -> Path | None:
    """The model's folder; None where the package isn't installed. Raises ValueError for a package without a model."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    model = Path(spec.origin).parent / "model"
    if not (model / "config.json").is_file():
        raise ValueError(
            f"expected a model in {model.parent}, found none: in a checkout of polyphi `make nano` trains it, "
            "`make box` adds it to the package, and `pip install ./models/nano` installs that"
        )
    return model


def locate() -> Path:
    """The model's folder. Raises ValueError, with the command that installs it, where the package isn't installed."""
    if (model := folder()) is not None:
        return model
    raise ValueError(
        f"expected a folder called {NAME} here or the package polyphi-nano, found neither: `pip install "
        "./models/nano` in a checkout of polyphi installs the package"
    )
