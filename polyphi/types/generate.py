"""`Generate`, the protocol through which evaluation uses any model, local or remote."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from polyphi.types.completion import Completion, Delta
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams


class Answers(Protocol):
    """A model that only generates answers."""

    def generate(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = ...,
        adapter: str | None = "auto",
    ) -> Completion: ...


class Generate(Answers, Protocol):
    """A model as evaluation uses it: generates answers, and returns log-probabilities of given ones."""

    def stream(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = ...,
        adapter: str | None = "auto",
    ) -> Iterator[Delta]: ...

    def score(
        self, messages: Sequence[Message], continuation: str, *, adapter: str | None = "auto"
    ) -> list[float]:
        """Natural log-probability of each token of `continuation` as the assistant's answer."""
        ...
