"""Streaming parser of tool calls: an answer's text -> its content and its calls.

>>> parse_calls('Let me see. <|tool_call|>[{"name": "add", "arguments": {"a": 1}}]<|/tool_call|>')
('Let me see. ', [ToolCall(name='add', arguments='{"a": 1}', complete=True)])

Models write calls in three ways, each a JSON list of objects with a name and arguments:

- between `<|tool_call|>` and `<|/tool_call|>`, as in their template; a single object without the list is accepted too;
- as `functools[...]`, as the prompt of one public server instructs them;
- as a bare list at the start of the answer, since models often leave the marks out.

A call is returned once it is complete: until then it may turn out to be invalid, and returned text is final. Text that
turns out to be no call, or is cut off within one, is content, character by character as it was written. Of a list with
several calls, the complete ones stay calls. The result doesn't depend on how the text was cut into pieces.

Parsing takes time proportional to the text's length, for any text:

- JSON is parsed strictly, so that a false start ends at its first invalid character. A start within the JSON of another
  is in a string there, and the quote that ends this string opens a string for the inner start: what is in a string for
  one is not for the other, so both can't continue beyond a third start. No character is read for more than two starts.
- Compiled patterns read the characters, and never backtrack.
- The number of single decisions is limited: beyond `MAX_STEPS` all text is content.

`GrammarToolParser` parses an answer that a grammar constrains (grammars.py), without these heuristics.
"""

import json
import re
from dataclasses import dataclass

from polyphi.tools import CALL, CALL_END

FUNCTOOLS = "functools["
STARTS = (CALL, FUNCTOOLS)
MAX_STEPS = 10_000
"""In an answer: starts of calls, brackets opened after them and members of what may be calls, in total."""
MAX_DEPTH, MAX_DIGITS, MAX_SPACES = 64, 400, 64
"""In calls: brackets within each other; digits of a number before its point, after it or in its exponent; spaces before
the closing mark."""

WHITE = " \t\r\n"
# JSON's grammar (RFC 8259) with possessive repeats only.
SPACES = f"[{WHITE}]*+"
CHARACTERS = r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+'
STRING = f'"{CHARACTERS}"'
DIGITS = f"[0-9]{{1,{MAX_DIGITS}}}+"
SCALAR = rf"(?:-?+(?:0|(?!0){DIGITS})(?:\.{DIGITS})?+(?:[eE][-+]?+{DIGITS})?+|true|false|null)"
VALUE = f"(?:{SCALAR}|{STRING})"

_START = re.compile("|".join(map(re.escape, STARTS)))
_SPACES = re.compile(SPACES)
_FEW_SPACES = re.compile(f"[{WHITE}]{{0,{MAX_SPACES}}}+")
_CHARACTERS = re.compile(CHARACTERS)
_PARTIAL_ESCAPE = re.compile(r"(?:\\(?:u[0-9a-fA-F]{0,3}+)?+)?+")
_SCALAR = re.compile(SCALAR)
_LIKE_SCALAR = re.compile(f"[-+.0-9Eaeflnrstu]{{0,{3 * MAX_DIGITS + 5}}}+")
_ITEMS = re.compile(f"(?:{VALUE}{SPACES},{SPACES})*+")
_MEMBERS = re.compile(f"(?:{STRING}{SPACES}:{SPACES}{VALUE}{SPACES},{SPACES})*+")
_RUNS = {"item": _ITEMS, "first item": _ITEMS, "key": _MEMBERS, "first key": _MEMBERS}

# A call in the form of grammars.py: its name, and the text before its arguments.
NAME = rf'{{{SPACES}"name"{SPACES}:{SPACES}({STRING})'
_NAME = re.compile(NAME)
_BEFORE_ARGUMENTS = re.compile(rf'{NAME}{SPACES},{SPACES}"arguments"{SPACES}:{SPACES}')
_TO_BRACE = re.compile(rf'(?:[^"{{}}]++|{STRING})*+')

KEYS = ("key", "first key")
VALUES = ("value", "item", "first item")
ENDS = ("next", "first key", "first item", "first call")
OPENS = {"{": ("start", "call", "first call", *VALUES), "[": ("start", *VALUES)}
"""States of the JSON parser in which a member's name, any value, a closing or an opening bracket may come."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool; `arguments` is the text of a JSON object, as the model wrote it. If the answer ended within the
    call, `complete` is False, and `arguments` is a prefix of that text."""

    name: str
    arguments: str
    complete: bool = True


def parse_calls(text: str) -> tuple[str, list[ToolCall]]:
    """A whole answer's content and calls; the same as from a `ToolParser`, however the text is cut."""
    parser = ToolParser()
    parts = [*parser.add(text), *parser.finish()]
    content = "".join(part for part in parts if isinstance(part, str))
    return content, [part for part in parts if isinstance(part, ToolCall)]


class ToolParser:
    """Parses an answer's text piece by piece; returns strings of content, and calls, as soon as they are final.

    >>> parser = ToolParser()
    >>> parser.add("Yes. <|tool_"), parser.add('call|>[{"name": "now", "arguments": {}}]'), parser.finish()
    (['Yes. '], [ToolCall(name='now', arguments='{}', complete=True)], [])
    """

    def __init__(self) -> None:
        self._pending = ""  # not returned yet; begins with `_start` until the first call of a list
        self._fresh = True  # only spaces so far, so that a bare list may start
        self._start = ""
        self._reader: _Reader | None = None  # of a list that may have calls
        self._ended = False  # a list has just ended: its closing mark may follow
        self._steps_left = MAX_STEPS

    def add(self, text: str) -> list[str | ToolCall]:
        pending, self._pending = self._pending, ""
        pending += text  # CPython does so without a copy while the string has a single reference
        self._pending = pending
        del pending
        return self._parse(last=False)

    def finish(self) -> list[str | ToolCall]:
        """The remaining parts at the end of the answer."""
        return self._parse(last=True)

    def _parse(self, last: bool) -> list[str | ToolCall]:
        # `out` lacks the content from `begin` to `end`, which may continue.
        text, begin, end = self._pending, 0, 0
        out: list[str | ToolCall] = []
        while True:
            if (reader := self._reader) is not None:
                event = reader.read(text)
                if event == "more" and not last:
                    break
                call = reader.call(text, self._start) if event == "object" else None
                if call is not None:
                    out += [text[begin:end], call] if begin < end else [call]
                    begin = end = reader.at
                    reader.calls += 1
                    if reader.stack:
                        continue
                elif not reader.calls:  # the start was content
                    end += len(self._start)
                elif event == "end":  # otherwise the text after the calls is content
                    begin = end = reader.at
                self._reader, self._ended = None, reader.calls > 0
                self._steps_left = reader.steps_left
            elif self._ended:
                at = _end(_FEW_SPACES, text, end)
                if not last and len(text) - at < len(CALL_END) and CALL_END.startswith(text[at:]):
                    break
                if text.startswith(CALL_END, at):
                    begin = end = at + len(CALL_END)
                self._ended = False
            else:
                self._start, end = self._next_start(text, end, last)
                if not self._start:
                    break
                bracket = end + len(self._start) - (self._start[-1] == "[")
                self._reader = _Reader(bracket, self._steps_left - 1)
        if begin < end:
            out.append(text[begin:end])
        self._pending = text[end:]
        if self._reader is not None:
            self._reader.at -= end
            self._reader.began -= end
        return out

    def _next_start(self, text: str, begin: int, last: bool) -> tuple[str, int]:
        """The next start of calls from `begin` on and its index; without one "" and the index of a possible prefix."""
        if self._fresh:
            at = _end(_SPACES, text, begin)
            self._fresh = at == len(text)
            if text.startswith("[", at):
                return "[", at
        if self._steps_left and (match := _START.search(text, begin)):
            return match[0], match.start()
        for start in () if last else STARTS:
            # The first character of a start occurs nowhere else in it.
            at = text.rfind(start[0], max(begin, len(text) - len(start) + 1))
            if at >= 0 and start.startswith(text[at:]):
                return "", at
        return "", len(text)


class GrammarToolParser:
    """Parses a streamed answer of a grammar of tools; `add` and `finish` return the same as `ToolParser`'s.

    >>> parser = GrammarToolParser()
    >>> parser.add('<|tool_call|>[{"name": "now", "arguments": {"zone": "U'), parser.finish()
    ([], [ToolCall(name='now', arguments='{"zone": "U', complete=False)])

    The whole answer is calls. With an `alternative` it may be an answer of that form instead: then all of it is
    content, even text that looks like a call. If the answer ends within a call whose name is complete, `finish` returns
    the call with its incomplete arguments; no part of an incomplete call is content.
    """

    def __init__(self, *, alternative: bool = False) -> None:
        # Whether the answer is calls; None until its first characters determine it.
        self._calls = None if alternative else True
        self._text = ""  # of the open call, or the first characters while `_calls` is None
        self._at = 0  # the next character of `_text` to read
        self._depth = 0  # open braces
        self._in_string = False

    def add(self, text: str) -> list[str | ToolCall]:
        pending, self._text = self._text, ""
        pending += text  # without a copy, as in ToolParser
        self._text = pending
        del pending
        if self._calls is None and any(self._text.startswith(start) for start in STARTS):
            self._calls = True
        elif self._calls is None and not any(start.startswith(self._text) for start in STARTS):
            self._calls = False
        if self._calls:
            return self._complete_calls()
        return [] if self._calls is None else self._content()

    def finish(self) -> list[str | ToolCall]:
        """The remaining parts at the end of the answer: a call that is cut off."""
        if not self._calls:
            return self._content()
        name, before = _NAME.match(self._text), _BEFORE_ARGUMENTS.match(self._text)
        if name is None:
            return []
        arguments = self._text[before.end() :] if before else ""
        return [ToolCall(json.loads(name[1]), arguments, complete=False)]

    def _content(self) -> list[str | ToolCall]:
        text, self._text = self._text, ""
        return [text] if text else []

    def _complete_calls(self) -> list[str | ToolCall]:
        """The calls that are complete; `_text` keeps only an open call."""
        text, at, began = self._text, self._at, 0
        calls: list[str | ToolCall] = []
        while True:
            if self._in_string:
                at = _end(_CHARACTERS, text, at)
                if text[at : at + 1] != '"':
                    break
                at, self._in_string = at + 1, False
            at = _end(_TO_BRACE, text, at)
            if at == len(text):
                break
            character, at = text[at], at + 1
            if character == '"':  # of a string that is incomplete
                self._in_string = True
            elif character == "{":
                began = began if self._depth else at - 1
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    head = _BEFORE_ARGUMENTS.match(text, began)
                    assert head, "a call of the grammar has a name, then arguments"
                    arguments = text[head.end() : at - 1].rstrip(WHITE)
                    calls.append(ToolCall(json.loads(head[1]), arguments))
        began = began if self._depth else at
        self._text, self._at = text[began:], at - began
        return calls


class _Reader:
    """An incremental JSON parser that starts at the first bracket and stops at events.

    `at` is the index of the next character, `stack` the open brackets, `began` the index of the newest object of the
    list (or of the single object), `calls` the number of these that were calls, `steps_left` the remaining steps.
    """

    def __init__(self, at: int, steps_left: int) -> None:
        self.at = at
        self.steps_left = steps_left
        self.stack: list[str] = []
        self.began = at
        self.calls = 0
        self._level = 2  # number of open brackets at the object's own members
        self._cuts: list[int] = []  # offsets of its brackets, colons and commas from `began`
        self._state = "start"  # or "first call", "call", "first key", "key", "in key", ":", "value", "in value", ...

    def read(self, text: str) -> str:
        """Read up to the next event: "object": an object that may be a call is complete; "end": the list is complete;
        "invalid": the JSON is invalid; "more": the text ends."""
        stack, state, at, size = self.stack, self._state, self.at, len(text)
        while at < size:
            character, depth = text[at], len(stack) - self._level
            if state in ("in key", "in value"):
                at = _end(_CHARACTERS, text, at)
                if _PARTIAL_ESCAPE.fullmatch(text, at):
                    break
                if text[at] != '"':
                    return "invalid"
                at, state = at + 1, ":" if state == "in key" else "next"
                continue
            if character in "{[" or (depth == 0 and character == ":"):
                if not self.steps_left:
                    return "invalid"
                self.steps_left -= 1
            if depth == 0 and character in ":,}":
                self._cuts.append(at - self.began)
            if character in WHITE:
                at = _end(_SPACES, text, at)
            elif depth > 0 and state in _RUNS and (end := _end(_RUNS[state], text, at)) > at:
                at, state = end, state.removeprefix("first ")
            elif character == '"' and (state in KEYS or state in VALUES):
                at, state = at + 1, "in key" if state in KEYS else "in value"
            elif state in OPENS.get(character, ()) and len(stack) < MAX_DEPTH:
                stack.append(character)
                if character == "{" and state not in VALUES:
                    self.began, self._level, self._cuts = at, len(stack), [0]
                inner = "first call" if state == "start" else "first item"
                at, state = at + 1, "first key" if character == "{" else inner
            elif character == state == ":":
                at, state = at + 1, "value"
            elif character == "," and state == "next":
                inner = "key" if stack[-1] == "{" else "item"
                at, state = at + 1, inner if depth >= 0 else "call"
            elif character in "}]" and state in ENDS and stack[-1] + character in ("{}", "[]"):
                stack.pop()
                at, state = at + 1, "next"
                if len(stack) < self._level:
                    self.at, self._state = at, state
                    return "object" if character == "}" else "end"
            elif state in VALUES:
                end = _end(_LIKE_SCALAR, text, at)
                if end == size:
                    break
                if not _SCALAR.fullmatch(text, at, end):
                    return "invalid"
                at, state = end, "next"
            else:
                return "invalid"
        self.at, self._state = at, state
        return "more"

    def call(self, text: str, start: str) -> ToolCall | None:
        """The call in the object that was read last, or None. In a bare list its arguments may not be missing."""
        cuts, members = [self.began + cut for cut in self._cuts], dict[str, str]()
        for before, colon, after in zip(cuts[::2], cuts[1::2], cuts[2::2], strict=False):
            members[json.loads(text[before + 1 : colon])] = text[colon + 1 : after].strip(WHITE)
        name = members.get("name", "")
        arguments = members.get("arguments", members.get("parameters"))
        if not name.startswith('"') or (arguments is None and start == "["):
            return None
        if arguments in (None, "null", '""'):
            arguments = "{}"
        elif arguments.startswith('"'):
            arguments = json.loads(arguments)
            inner = _Reader(0, self.steps_left)
            is_object = inner.read(arguments) == "object" and not inner.stack
            self.steps_left = inner.steps_left
            if not is_object or _end(_SPACES, arguments, inner.at) < len(arguments):
                return None
        elif not arguments.startswith("{"):
            return None
        name = json.loads(name)
        return ToolCall(name, arguments) if name and _is_text(name + arguments) else None


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """The end of the pattern's match at `at`, or `at` without one."""
    match = pattern.match(text, at)
    return match.end() if match else at


def _is_text(text: str) -> bool:
    """Whether the text can be encoded: half a surrogate pair, which an escape in a string may contain, can't."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False
