"""An answer during generation: its text -> reasoning, content and tool calls, and its finish reason.

>>> output = Output(sampling, tools=functions([weather]))
>>> for delta in phi.stream("What is the weather in Rome?"):
...     for part in output.add(delta): ...       # Reasoning, str (content) or CallDelta, each one final

The server's APIs format these parts, and `Phi` takes an answer's calls from them. Streamed and whole answers use the
same code, so the joined deltas of a stream equal the whole answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from polyphi.decoding.reasoning import Reasoning, ReasoningParser
from polyphi.decoding.tool_calls import CallDelta, CallList, GrammarToolParser, ToolParser
from polyphi.types.sampling import Grammar, SamplingParams

OutputPart = Reasoning | str | CallDelta


class TextDelta(Protocol):
    """A text delta of an answer; the last delta has the engine's finish reason."""

    @property
    def text(self) -> str: ...

    @property
    def finish_reason(self) -> str | None: ...


class Output:
    """The output of one answer, parsed as it arrives. `tools`: the functions that are offered. With
    `sampling.stop_at_calls`, everything after the first call is dropped. `required`: the answer is calls without
    content. `finish_reason`: of the ended answer, "tool_calls" if it stopped with complete calls, otherwise the
    engine's."""

    def __init__(
        self, sampling: SamplingParams, *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        grammar = sampling.grammar if tools else None
        self.required = grammar is not None and grammar.alternative is None
        self.calls = CallList()
        self.finish_reason: str | None = None
        self._tool_parser = (
            _tool_parser(grammar, [tool["name"] for tool in tools]) if tools else None
        )
        self._reasoning_parser = ReasoningParser() if sampling.reasoning else None
        self._parallel = not sampling.stop_at_calls
        self._content: list[str] = []
        self._reasoning: list[str] = []

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def add(self, delta: TextDelta) -> list[OutputPart]:
        """The parts that are final with an output delta."""
        parts: list[OutputPart] = []
        for part in self._parsed(delta.text, last=delta.finish_reason is not None):
            if self.calls and not self.calls.growing and not self._parallel:
                break
            if isinstance(part, str):
                self._content.append(part)
            elif isinstance(part, Reasoning):
                self._reasoning.append(part.text)
            else:
                self.calls.add(part)
            parts.append(part)
        if delta.finish_reason is not None:
            are_complete = self.calls and all(call.complete for call in self.calls)
            stopped = delta.finish_reason == "stop" and are_complete
            self.finish_reason = "tool_calls" if stopped else delta.finish_reason
        return parts

    def _parsed(self, text: str, last: bool) -> Iterable[OutputPart]:
        parts: list[Reasoning | str] = [text] if text else []
        if self._reasoning_parser is not None:
            parts = self._reasoning_parser.add(text)
            if last:
                parts += self._reasoning_parser.finish()
        for part in parts:
            if isinstance(part, Reasoning) or self._tool_parser is None:
                yield part
            else:
                yield from self._tool_parser.add(part)
        if last and self._tool_parser is not None:
            yield from self._tool_parser.finish()


def _tool_parser(grammar: Grammar | None, names: Sequence[str]) -> ToolParser | GrammarToolParser:
    """The parser of an answer that may call tools: of free text, or of a tool grammar's output."""
    if grammar is None:
        return ToolParser(names)
    return GrammarToolParser(alternative=grammar.alternative is not None)
