"""The result of a check with its state and cure, and the removal of secrets and personal paths from reports."""

import getpass
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

FindingState = Literal["ok", "slow", "missing", "wrong"]
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""Names of environment variables whose values are secrets."""
USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")
"""The user name and password in a URL."""
SHORTEST_SECRET = 6
"""Values with fewer characters ("1", "true") are no secrets, and would be removed from other words."""


@dataclass(frozen=True)
class Finding:
    """The result of a check, with its section and name in the report. `cure`: one line to type or do; every state other
    than ok has one. `fatal`: chat can't run because of it."""

    section: str
    name: str
    text: str
    state: FindingState = "ok"
    cure: str | None = None
    fatal: bool = False

    def __post_init__(self) -> None:
        assert (self.state == "ok") == (self.cure is None), f"{self.name}: {self.state}"


def scrub(value: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """A JSON value, its keys included, without what a public bug report shouldn't have: values of secret environment
    variables, user names and passwords in URLs, the home folder's path and, as a part of other paths, the user's
    name."""
    if isinstance(value, Mapping):
        return {scrub(str(k), environment): scrub(v, environment) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(v, environment) for v in value]
    if not isinstance(value, str):
        return value
    secrets = {v.strip() for name, v in environment.items() if SECRET.search(name)}
    for secret in sorted(secrets, key=len, reverse=True):
        value = value.replace(secret, "***") if len(secret) >= SHORTEST_SECRET else value
    value = USER_INFO.sub("", value)
    names, home = set(), str(Path.home()).rstrip("/")
    with suppress(KeyError, OSError):  # no name for this number, as in many containers
        names.add(re.escape(getpass.getuser()))
    if home:
        names.add(re.escape(Path(home).name))
        value = re.sub(rf"{re.escape(home)}(?!\w)", "~", value)
    return re.sub(rf"(?<=/)({'|'.join(names)})(?=/|$)", "USER", value) if names else value


def display_value(name: str, value: str) -> str:
    """The value of an environment variable for a report: of secrets only that there is one, of URLs no query."""
    if SECRET.search(name):
        return "set"
    if "://" in value:
        parts = urlsplit(value)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return value
