"""A short question with a short answer."""

from collections.abc import Callable
from dataclasses import dataclass

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_recipe.raw.real_text import origin


@dataclass(frozen=True)
class QA:
    """A question, its answer, and the language of the answer; `to` is the target language of a translation."""

    task: str
    question: str
    answer: str
    language: str = "en"
    to: str = ""

    def sample(self, id: str, source: str = "polyphi") -> Sample:
        meta = {
            "task": self.task,
            "language": self.language,
            **({"to": self.to} if self.to else {}),
        }
        return Sample(
            id,
            (Message.user(self.question), Message.assistant(self.answer)),
            meta=meta,
            **origin(source),
        )


def first_valid(draw: Callable[[], tuple | None]) -> tuple:
    """Return the first draw that isn't None."""
    while (result := draw()) is None:
        pass
    return result
