"""`Sample`: one example of a corpus or a benchmark. Shards (shards.py) store it, draws (draws.py) make rows of it."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from polyphi.types.messages import Message


@dataclass(frozen=True)
class Sample:
    """One example: a conversation whose media are encoded bytes, its origin and licence, and free `meta` (JSON
    values).

    A raw document is a single message of role "document". Conversations end with the assistant's answer. Preference
    samples carry the dispreferred answer in `meta["rejected"]`. Test samples carry `meta["task"]`. With
    `meta["supervise"]` "last answer" earlier answers aren't trained.
    """

    id: str
    messages: tuple[Message, ...]
    source: str
    licence: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """Text of the last message."""
        return self.messages[-1].text

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last one."""
        return self.messages[:-1]


class SampleSource(Protocol):
    """The source of a corpus's samples: a split of shards (shards.py), or a generator (generated.py)."""

    def id(self, index: int) -> str:
        """The id of a sample, also if it can't be read."""

    def sample(self, index: int) -> Sample:
        """A sample by its number. Raises ValueError if it is damaged."""


class Unfit(ValueError):
    """A valid sample that a stage can't train on, such as one without an answer."""
