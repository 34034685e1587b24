"""An answer's text -> what it says and which tools it calls, piece by piece as the text comes.

>>> parse_calls('Let me see. <|tool_call|>[{"name": "add", "arguments": {"a": 1}}]<|/tool_call|>')
('Let me see. ', [ToolCall(name='add', arguments='{"a": 1}')])

Models write calls in three ways, each a JSON list of objects with a name and arguments:

- between `<|tool_call|>` and `<|/tool_call|>`, as their template has it; a single object without the list will do too;
- as `functools[...]`, as the prompt of one public server teaches them;
- as a bare list that is the first thing an answer says, for the marks are often left out.

A call is told once it is whole: until then it may turn out to be none, and what has been told can't be taken back. Text
that turns out to be no call, or is cut off within one, is content, letter by letter as it was written. Where a list
holds several, those that came whole stay calls. What comes out doesn't depend on how the text was cut into pieces, and
takes time in proportion to its length: JSON is read strictly, so that a false start ends at its first wrong letter.
"""

import json
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from polyphi.chat import CALL, CALL_END

FUNCTOOLS = "functools["
SPACES = " \t\r\n"
SCALAR = "+-.0123456789Eaeflnrstu"
"""Letters of numbers, true, false and null."""
STARTS = (CALL, FUNCTOOLS)
VALUES = ("value", "first value")
STRINGS = (*VALUES, "key", "first key")
"""Names of places in JSON."""
MAX_DEPTH, MAX_SCALAR, MAX_SPACES = 64, 400, 64
"""In calls: brackets within each other, letters of a number, spaces before the closing mark."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool; `arguments` is the text of a JSON object, as the model wrote it."""

    name: str
    arguments: str


def parse_calls(text: str) -> tuple[str, list[ToolCall]]:
    """A whole answer's content and calls; the same as from a `ToolParser`, however the text is cut."""
    parser = ToolParser()
    found = [*parser.add(text), *parser.finish()]
    content = "".join(part for part in found if isinstance(part, str))
    return content, [part for part in found if isinstance(part, ToolCall)]


class ToolParser:
    """Takes an answer's text piece by piece and tells what can be told: strings of content, and calls.

    >>> parser = ToolParser()
    >>> parser.add("Yes. <|tool_"), parser.add('call|>[{"name": "now", "arguments": {}}]'), parser.finish()
    (['Yes. '], [ToolCall(name='now', arguments='{}')], [])
    """

    def __init__(self) -> None:
        self._held = ""  # not told yet; begins with `_start` while a list is read and none of its calls is told
        self._fresh = True  # nothing but spaces has come, so that a bare list may
        self._start = ""
        self._reader: _Reader | None = None  # of the list that may be one of calls
        self._ended = False  # a list has just ended: its closing mark may come

    def add(self, text: str) -> list[str | ToolCall]:
        self._held += text
        return self._tell(last=False)

    def finish(self) -> list[str | ToolCall]:
        """All that is left, when no more text comes."""
        return self._tell(last=True)

    def _tell(self, last: bool) -> list[str | ToolCall]:
        text, told = self._held, 0
        out: list[str | ToolCall] = []
        seen: dict[str, int] = {}
        while True:
            if self._reader is not None:
                found = self._reader.read(text)
                if found == "more" and not last:
                    break
                call = None
                if found == "object":
                    whole = text[self._reader.began : self._reader.at]
                    call = _call(whole, optional=self._start != "[")
                if call is not None:
                    out.append(call)
                    told = self._reader.at
                    self._reader.calls += 1
                    if not self._reader.stack:  # an object without a list
                        self._reader, self._ended = None, True
                elif self._reader.calls:  # the list's end, or what follows its calls is no call
                    told = self._reader.at if found == "end" else told
                    self._reader, self._ended = None, True
                else:  # no call: the start was content
                    out.append(self._start)
                    told += len(self._start)
                    self._reader = None
            elif self._ended:
                at = _past_spaces(text, told, MAX_SPACES)
                self._ended = not last and CALL_END.startswith(text[at:])
                if self._ended:
                    break
                told = at + len(CALL_END) if text.startswith(CALL_END, at) else told
            else:
                start, at = self._next_start(text, told, seen)
                if not start:
                    at = len(text) - (0 if last else _beginning(text, told))
                out.append(text[told:at])
                told = at
                if not start:
                    break
                self._fresh, self._start = False, start
                self._reader = _Reader(at + len(start) - (start[-1] == "["))
        self._held = text[told:]
        if self._reader is not None:
            self._reader.at -= told
            self._reader.began -= told
        return _joined(out)

    def _next_start(self, text: str, told: int, seen: dict[str, int]) -> tuple[str, int]:
        """The next start of calls and where it is, "" if there is none. `seen` keeps where each was found last."""
        if self._fresh:
            at = _past_spaces(text, told, len(text))
            self._fresh = at == len(text)
            if text.startswith("[", at):
                return "[", at
        for start in STARTS:
            if start not in seen or 0 <= seen[start] < told:
                seen[start] = text.find(start, told)
        return min(
            ((start, at) for start, at in seen.items() if at >= 0),
            key=lambda found: found[1],
            default=("", len(text)),
        )


class _Reader:
    """Reads JSON letter by letter, from its first bracket on, and stops where something is decided.

    `at` is the next letter to read, `stack` the open brackets, `began` where the newest object of the list (or the one
    that stands without a list) begins, `calls` how many of them were calls.
    """

    def __init__(self, at: int) -> None:
        self.at = at
        self.stack: list[str] = []
        self.began = at
        self.calls = 0
        self._due = "value"  # or "first value", "key", "first key", ":", "next": what may come
        self._scanned = 1  # letters of an unfinished string in which no end was found

    def read(self, text: str) -> str:
        """Goes on to "object": one that may be a call is whole; "end": the list is; "wrong": something that can't
        stand where it does, and there is nothing more to read; "more": the text ends."""
        stack, due, at, size = self.stack, self._due, self.at, len(text)
        while at < size:
            letter = text[at]
            # Where only an object can be a call: in the list, or instead of it.
            outside = due in VALUES and (not stack or (len(stack) == 1 and stack[0] == "["))
            if letter in SPACES:
                at += 1
            elif letter == '"':
                if due not in STRINGS or outside:
                    return "wrong"
                if (quote := self._closing_quote(text, at)) < 0:
                    break
                if not _is_scalar(text[at : quote + 1]):
                    return "wrong"
                at, due = quote + 1, "next" if due in VALUES else ":"
            elif letter == ":":
                if due != ":":
                    return "wrong"
                at, due = at + 1, "value"
            elif letter == ",":
                if due != "next":
                    return "wrong"
                at, due = at + 1, "key" if stack[-1] == "{" else "value"
            elif letter in "}]":
                opened, first = ("{", "first key") if letter == "}" else ("[", "first value")
                if not stack or stack[-1] != opened or due not in (first, "next"):
                    return "wrong"
                stack.pop()
                at, due = at + 1, "next"
                if not stack or (letter == "}" and stack == ["["]):
                    self.at, self._due = at, due
                    return "object" if letter == "}" else "end"
            elif due not in VALUES:
                return "wrong"
            elif letter in "{[":
                if len(stack) == MAX_DEPTH or (letter == "[" and stack and outside):
                    return "wrong"
                if outside and letter == "{":
                    self.began = at
                stack.append(letter)
                at, due = at + 1, "first key" if letter == "{" else "first value"
            elif outside:
                return "wrong"
            else:
                end = at
                while end < size and end - at <= MAX_SCALAR and text[end] in SCALAR:
                    end += 1
                if end == size:
                    break
                if not _is_scalar(text[at:end]):
                    return "wrong"
                at, due = end, "next"
        self.at, self._due = at, due
        return "more"

    def _closing_quote(self, text: str, at: int) -> int:
        """Where the string that begins at `at` ends, -1 if that is still to come."""
        quote = text.find('"', at + self._scanned)
        while quote >= 0:
            slashes = quote
            while text[slashes - 1] == "\\":
                slashes -= 1
            if (quote - slashes) % 2 == 0:
                self._scanned = 1
                return quote
            quote = text.find('"', quote + 1)
        self._scanned = len(text) - at
        return -1


def _call(text: str, *, optional: bool) -> ToolCall | None:
    """The call that an object is, if it is one. `optional`: its arguments may be missing."""
    members = _members(text)
    name, _ = members.get("name", (None, ""))
    arguments, written = members.get("arguments") or members.get("parameters") or (None, "")
    if not written and not optional:
        return None
    if arguments is None or arguments == "":
        written = "{}"
    elif isinstance(arguments, str):
        if not isinstance(_value(arguments), dict):
            return None
        written = arguments
    elif not isinstance(arguments, dict):
        return None
    if not isinstance(name, str) or not name or not _is_text(name + written):
        return None
    return ToolCall(name, written)


def _is_text(text: str) -> bool:
    """Whether it can be sent on: half a surrogate pair, which an escape in a string may say, can't."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def _members(text: str) -> dict[str, tuple[Any, str]]:
    """An object's members: value, and text as written. The text is known to be right."""
    members, at = {}, _past_spaces(text, 1, len(text))
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        at = _past_spaces(text, _past_spaces(text, at, len(text)) + 1, len(text))
        value, end = _DECODER.raw_decode(text, at)
        members[name] = (value, text[at:end])
        at = _past_spaces(text, end, len(text))
        at = _past_spaces(text, at + 1, len(text)) if text[at] == "," else at
    return members


_DECODER = json.JSONDecoder()


def _value(text: str) -> Any:
    """What JSON text stands for; None if it is no JSON, or too deep."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None


def _is_scalar(written: str) -> bool:
    """Whether it is a string, a number, true, false or null as a whole."""
    try:
        return bool(written) and _DECODER.raw_decode(written)[1] == len(written)
    except ValueError:
        return False


def _past_spaces(text: str, at: int, most: int) -> int:
    """The first place from `at` on that is no space, `most` letters on at most."""
    end = min(len(text), at + most)
    while at < end and text[at] in SPACES:
        at += 1
    return at


def _beginning(text: str, told: int) -> int:
    """Length of the longest end of `text` that a start of calls begins with."""
    for length in range(min(max(map(len, STARTS)) - 1, len(text) - told), 0, -1):
        if any(start.startswith(text[-length:]) for start in STARTS):
            return length
    return 0


def _joined(parts: list[str | ToolCall]) -> list[str | ToolCall]:
    """Neighbouring strings as one, without empty ones."""
    joined: list[str | ToolCall] = []
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        some = list(group)
        joined += [text for text in ["".join(map(str, some))] if text] if is_text else some
    return joined
