"""Reasoning that a model writes before its answer: `<think>...</think>` as ordinary text.

>>> parser = ReasoningParser()
>>> parser.add("<think>Two and two"), parser.add(".</think>\n\n4"), parser.finish()
([Reasoning(text='Two and two')], [Reasoning(text='.'), '4'], [])

An answer has reasoning only if it begins with `<think>`, white space aside. The block ends at its first `</think>`; a
later mark is content. An unclosed block is reasoning up to the end of the answer. White space next to the two marks is
dropped. The result doesn't depend on how the text was cut into pieces, and takes time proportional to its length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from polyphi.processing.reasoning import THINK, THINK_END


@dataclass(frozen=True)
class Reasoning:
    """Text of an answer's reasoning."""

    text: str


class ReasoningParser:
    """Splits an answer's text, piece by piece, into reasoning and content (strings); each returned part is final.
    `state`: "start" until the first characters determine whether there is reasoning, "inside" a block, or "after".
    `opened`: whether the answer has a block."""

    def __init__(self) -> None:
        self.state: Literal["start", "inside", "after"] = "start"
        self.opened = False
        self._pending = ""  # may be the beginning of a mark
        self._spaces: list[str] = []  # white space that is dropped if a mark follows
        self._drop_spaces = False  # white space right after a mark

    @property
    def in_mark(self) -> bool:
        """Whether the text so far ends within what may be a mark."""
        return bool(self._pending)

    def add(self, text: str) -> list[Reasoning | str]:
        parts: list[Reasoning | str] = []
        if self.state == "start":
            text = self._start(text)
        if self.state == "inside":
            text, reasoning = self._inside(text)
            if reasoning:
                parts.append(Reasoning(reasoning))
        if self.state == "after":
            if self._drop_spaces:
                text = text.lstrip()
                self._drop_spaces = not text
            if text:
                parts.append(text)
        return parts

    def finish(self) -> list[Reasoning | str]:
        """The remaining part at the end of the answer."""
        rest = "".join([*self._spaces, self._pending])
        self._spaces, self._pending = [], ""
        if not rest:
            return []
        return [rest if self.state == "start" else Reasoning(rest)]

    def _start(self, text: str) -> str:
        """Decides the state; returns the text that belongs to it, "" while undecided."""
        if not self._pending:
            body = text.lstrip()
            self._spaces.append(text[: len(text) - len(body)])
            text = body
        text, self._pending = self._pending + text, ""
        if text.startswith(THINK):
            self.state, self._spaces = "inside", []
            self.opened = self._drop_spaces = True
            return text.removeprefix(THINK)
        if THINK.startswith(text):
            self._pending = text
            return ""
        self.state = "after"
        text, self._spaces = "".join([*self._spaces, text]), []
        return text

    def _inside(self, text: str) -> tuple[str, str]:
        """The text after the block ("" inside it), and the reasoning that is final."""
        text, self._pending = self._pending + text, ""
        body, mark, rest = text.partition(THINK_END)
        if mark:
            self.state = "after"
        else:
            size = _possible_mark(text)
            body, self._pending = text[: len(text) - size], text[len(text) - size :]
        if self._drop_spaces:
            body = body.lstrip()
            self._drop_spaces = not body
        reasoning = body.rstrip()
        final = ""
        if reasoning:
            final, self._spaces = "".join([*self._spaces, reasoning]), []
        self._spaces.append(body[len(reasoning) :])
        if mark:
            self._spaces, self._drop_spaces = [], True
        return rest, final


def _possible_mark(text: str) -> int:
    """Length of the suffix of `text` that may be the beginning of `</think>`."""
    at = text.rfind(THINK_END[0], max(0, len(text) - len(THINK_END) + 1))
    return len(text) - at if at >= 0 and THINK_END.startswith(text[at:]) else 0


class ReasoningCounter:
    """Counts the tokens of an answer's reasoning, its marks included. `decode` returns the text that is final with a
    token. `budget`: most tokens of the block before it is closed; None: no limit."""

    def __init__(self, decode: Callable[[int], str], budget: int | None) -> None:
        self.tokens = 0
        self._decode, self._budget = decode, budget
        self._parser = ReasoningParser()
        self._count = 0

    def add(self, token: int) -> bool:
        """Counts a token of the answer. Returns whether the block must be closed now; that is the case once."""
        if self._parser.state == "after":
            return False
        self._count += 1
        self._parser.add(self._decode(token))
        if self._parser.opened:
            self.tokens = self._count
        if self._parser.state == "inside" and self._budget is not None:
            exhausted = self._count >= self._budget and not self._parser.in_mark
            self._budget = None if exhausted else self._budget
            return exhausted
        return False
