"""The result of a check with its state and cure, and the removal of secrets and personal paths from reports."""

import getpass
import os
import re
from collections.abc import Mapping, Sequence
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


class Scrubber:
    """Removes from text what a public bug report shouldn't have: values of secret environment variables, user names and
    passwords in URLs, the home folder's path and, as a part of other paths, the user's name."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        values = {v.strip() for name, v in environment.items() if SECRET.search(name)}
        self._secrets = sorted((v for v in values if len(v) >= SHORTEST_SECRET), key=len)[::-1]
        self._home = str(Path.home()).rstrip("/")
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # no name for this number, as in many containers
            user = ""
        names = {re.escape(n) for n in (user, Path(self._home).name) if n}
        self._user = re.compile(rf"(?<=/)(?:{'|'.join(sorted(names))})(?=/|$)") if names else None

    def text(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = USER_INFO.sub("", text)
        if self._home:
            text = re.sub(rf"{re.escape(self._home)}(?=/|\W|$)", "~", text)
        return self._user.sub("USER", text) if self._user else text

    def __call__(self, value: Any) -> Any:
        """A JSON value with all strings scrubbed, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(k)): self(v) for k, v in value.items()}
        if isinstance(value, Sequence):
            return [self(v) for v in value]
        return value


def display_value(name: str, value: str) -> str:
    """The value of an environment variable for a report: of secrets only that there is one, of URLs no query."""
    if SECRET.search(name):
        return "set"
    if "://" in value:
        parts = urlsplit(value)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return value
