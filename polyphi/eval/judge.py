"""Replies of judges, read; and the report's prompts (`prompts.py`) filled in.

>>> rating("... Rating: [[7]]")
7.0
"""

import json
import re
from collections.abc import Sequence
from itertools import islice

from polyphi.messages import Message

RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
RATING_BACKUP = re.compile(r"\[(\d+\.?\d*)\]")

OBJECTS = 100
"""Braces of a reply that may be where its JSON object begins: each failed try costs as much as the reply is long."""


def rating(reply: str, low: float = 1, high: float = 10) -> float | None:
    """The first [[points]] of a reply, or [points] where there are none (FastChat's rule, which defines MT-Bench);
    None where there is none within the bounds."""
    found = RATING.search(reply) or RATING_BACKUP.search(reply)
    if found is None or not low <= float(found[1]) <= high:
        return None
    return float(found[1])


def points(reply: str, low: float, high: float, key: str = "score") -> float | None:
    """The number under `key` of the first JSON object in a reply; None where there is none within the bounds."""
    decoder = json.JSONDecoder(strict=False)  # explanations have line breaks in them
    for match in islice(re.finditer(r"\{", reply), OBJECTS):
        try:
            value, _ = decoder.raw_decode(reply, match.start())
        except (json.JSONDecodeError, RecursionError):
            continue
        try:
            found = float(value[key])
        except (KeyError, TypeError, ValueError):
            continue
        return found if low <= found <= high else None
    return None


def asked(system: str | None, user: str) -> Sequence[Message]:
    """A judge's conversation."""
    return [*([Message.system(system)] if system else []), Message.user(user)]
