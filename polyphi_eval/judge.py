"""Prompts of judges, and parsers of their replies.

>>> PROMPTS["summary_overall"].fill(src=transcript, instruction="Summarize.", tgt=answer)      # a judge's conversation
>>> rating("... Rating: [[7]]")
7.0

The prompts are in `prompts/judges.toml` (those of the report's Appendix A, and ours) and `prompts/safety.toml` (those
of the safety evaluations).
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

from polyphi.types.messages import Message

FOLDER = Path(__file__).parent / "prompts"
RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
RATING_BACKUP = re.compile(r"\[(\d+\.?\d*)\]")
OBJECTS = 100
"""Opening braces of a reply at which parsing is tried: each failure takes time linear in the reply's length."""


@dataclass(frozen=True)
class JudgePrompt:
    """A judge's prompt. `system` and `user` are templates with {names} for `fill`; literal braces are doubled."""

    origin: str
    user: str
    system: str = ""

    def fill(self, **values: str) -> Sequence[Message]:
        """Return the conversation with these values, which may contain braces."""
        return conversation(self.system.format(**values), self.user.format(**values))

    @property
    def text(self) -> str:
        """Origin and templates as one string, for `Judging.prompts`."""
        return "\0".join((self.origin, self.system, self.user))

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\0".join((self.system, self.user)).encode()).hexdigest()


def _load(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


PROMPTS = {name: JudgePrompt(**table) for name, table in _load("judges").items()}
SAFETY = _load("safety")
"""The prompts of the safety evaluations by name, and their `version`."""


def conversation(system: str | None, user: str) -> Sequence[Message]:
    """Return a judge's conversation."""
    return [*([Message.system(system)] if system else []), Message.user(user)]


def request(prompt: str, **fields: Any) -> Sequence[Message]:
    """Return a conversation with `prompt` as system message and a JSON object of `fields` as user message."""
    return conversation(prompt, json.dumps(fields, ensure_ascii=False))


def rating(reply: str, low: float = 1, high: float = 10) -> float | None:
    """Return the first [[points]] of a reply, otherwise the first [points] (FastChat's rule, which defines MT-Bench);
    None if there are none or they are out of bounds."""
    match = RATING.search(reply) or RATING_BACKUP.search(reply)
    if match is None or not low <= float(match[1]) <= high:
        return None
    return float(match[1])


def points(reply: str, low: float, high: float, key: str = "score") -> float | None:
    """Return the number at `key` of the first JSON object in a reply; None if there is none or it is out of bounds."""
    decoder = json.JSONDecoder(strict=False)  # explanations contain line breaks
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
