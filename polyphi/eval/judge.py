"""Prompts of judges, and how their replies are read.

>>> PROMPTS["summary_overall"].fill(src=transcript, instruction="Summarize.", tgt=answer)      # a judge's conversation
>>> rating("... Rating: [[7]]")
7.0

The prompts are data: `prompts/judges.toml` has those of the report's Appendix A and ours beside them,
`prompts/safety.toml` those of the safety evaluations.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from polyphi.messages import Message

FOLDER = Path(__file__).parent / "prompts"
RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
RATING_BACKUP = re.compile(r"\[(\d+\.?\d*)\]")
OBJECTS = 100
"""Braces of a reply that may be where its JSON object begins: each failed try costs as much as the reply is long."""


@dataclass(frozen=True)
class Prompt:
    """`system` and `user` are templates whose {names} `fill` fills; braces that stay are doubled."""

    origin: str
    user: str
    system: str = ""

    def fill(self, **values: str) -> Sequence[Message]:
        """The conversation. Values stand in it as they are, whatever braces they hold."""
        return conversation(self.system.format(**values), self.user.format(**values))

    @property
    def words(self) -> str:
        """All that decides: for `Judging.prompts`, whose hash is kept."""
        return "\0".join((self.origin, self.system, self.user))

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\0".join((self.system, self.user)).encode()).hexdigest()


def _load(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


PROMPTS = {name: Prompt(**table) for name, table in _load("judges").items()}
SAFETY = _load("safety")
"""The prompts of the safety evaluations by name, and their `version`."""


def conversation(system: str | None, user: str) -> Sequence[Message]:
    """A judge's conversation."""
    return [*([Message.system(system)] if system else []), Message.user(user)]


def request(prompt: str, **fields: Any) -> Sequence[Message]:
    """A conversation about a JSON object of these fields."""
    return conversation(prompt, json.dumps(fields, ensure_ascii=False))


def rating(reply: str, low: float = 1, high: float = 10) -> float | None:
    """The first [[points]] of a reply, or [points] where there are none (FastChat's rule, which defines MT-Bench);
    None where there is none within the bounds."""
    match = RATING.search(reply) or RATING_BACKUP.search(reply)
    if match is None or not low <= float(match[1]) <= high:
        return None
    return float(match[1])


def points(reply: str, low: float, high: float, key: str = "score") -> float | None:
    """The number under `key` of the first JSON object in a reply; None where there is none within the bounds."""
    decoder = json.JSONDecoder(strict=False)  # explanations have line breaks in them
    for match in islice(re.finditer(r"\{", reply), OBJECTS):
        try:
            value, _ = decoder.raw_decode(reply, match.start())
        except (json.JSONDecodeError, RecursionError):
            continue
        try:
            number = float(value[key])
        except (KeyError, TypeError, ValueError):
            continue
        return number if low <= number <= high else None
    return None
