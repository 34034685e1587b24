"""The origin of this installation of polyphi, and the command that installs its extras.

>>> pip_install("serve")
'pip install --editable "/home/me/polyphi[serve]"'

No release is on the package index yet. Until there is one, a hint never names the package alone: pip would look it up
there, and install whatever someone else published under that name.
"""

import json
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHECKOUT = Path(__file__).parents[2]


def pip_install(*extras: str) -> str:
    """The command that installs this polyphi again with these extras: from its checkout, or from the folder or the
    wheel that it was installed from. Where neither is known, from a checkout in the current folder."""
    names = f"[{','.join(extras)}]" if extras else ""
    if is_checkout():
        return f'pip install --editable "{CHECKOUT}{names}"'
    origin = _origin()
    if origin is not None:
        return f'pip install "{origin}{names}"'
    return from_checkout(*extras)


def from_checkout(*extras: str) -> str:
    """The command of `pip_install` without a path of this machine: for messages that clients of a server receive."""
    names = f"[{','.join(extras)}]" if extras else ""
    return f'pip install ".{names}" in a checkout of polyphi'


def is_checkout() -> bool:
    """Whether this module is in a checkout, not in an installed copy."""
    return (CHECKOUT / "pyproject.toml").is_file()


def _origin() -> Path | None:
    """The folder or wheel on this machine that pip installed polyphi from; None for another origin."""
    try:
        recorded = metadata.distribution("polyphi").read_text("direct_url.json")
        url = urlsplit(json.loads(recorded or "{}").get("url", ""))
    except (metadata.PackageNotFoundError, ValueError):
        return None
    path = Path(unquote(url.path))
    return path if url.scheme == "file" and path.exists() else None
