"""An answer's text -> what it says and which tools it calls, piece by piece as the text comes.

>>> parse_calls('Let me see. <|tool_call|>[{"name": "add", "arguments": {"a": 1}}]<|/tool_call|>')
('Let me see. ', [ToolCall(name='add', arguments='{"a": 1}', complete=True)])

Models write calls in three ways, each a JSON list of objects with a name and arguments:

- between `<|tool_call|>` and `<|/tool_call|>`, as their template has it; a single object without the list will do too;
- as `functools[...]`, as the prompt of one public server teaches them;
- as a bare list that is the first thing an answer says, for the marks are often left out.

A call is told once it is whole: until then it may turn out to be none, and what has been told can't be taken back. Text
that turns out to be no call, or is cut off within one, is content, letter by letter as it was written. Where a list
holds several, those that came whole stay calls. What comes out doesn't depend on how the text was cut into pieces.

It takes time in proportion to the text's length, whatever the text says:

- JSON is read strictly, so that a false start ends at its first wrong letter. A start within the JSON of another is in
  a string there, and the quote that ends this string opens one of its own: what is in a string for one is not for the
  other, so that both can't go on beyond a third start. No letter is read for more than two of them.
- Compiled patterns read the letters, and never give back what they took.
- What has to be decided one by one is bounded: beyond `MAX_STEPS` all is content.

An answer that a grammar constrains (structured.py) needs no guessing: `GrammarToolParser` reads it.
"""

import json
import re
from dataclasses import dataclass

from polyphi.messages import CALL, CALL_END

FUNCTOOLS = "functools["
STARTS = (CALL, FUNCTOOLS)
MAX_STEPS = 10_000
"""In an answer: starts of calls, brackets opened after them and members of what may be calls, together."""
MAX_DEPTH, MAX_DIGITS, MAX_SPACES = 64, 400, 64
"""In calls: brackets within each other; digits of a number before its point, after it or in its exponent; spaces before
the closing mark."""

WHITE = " \t\r\n"
# JSON's grammar (RFC 8259), every repeat possessive.
SPACES = f"[{WHITE}]*+"
LETTERS = r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+'
STRING = f'"{LETTERS}"'
DIGITS = f"[0-9]{{1,{MAX_DIGITS}}}+"
SCALAR = rf"(?:-?+(?:0|(?!0){DIGITS})(?:\.{DIGITS})?+(?:[eE][-+]?+{DIGITS})?+|true|false|null)"
VALUE = f"(?:{SCALAR}|{STRING})"

_START = re.compile("|".join(map(re.escape, STARTS)))
_SPACES = re.compile(SPACES)
_FEW_SPACES = re.compile(f"[{WHITE}]{{0,{MAX_SPACES}}}+")
_LETTERS = re.compile(LETTERS)
_ESCAPE_BEGUN = re.compile(r"(?:\\(?:u[0-9a-fA-F]{0,3}+)?+)?+")
_SCALAR = re.compile(SCALAR)
_LIKE_SCALAR = re.compile(f"[-+.0-9Eaeflnrstu]{{0,{3 * MAX_DIGITS + 5}}}+")
_ITEMS = re.compile(f"(?:{VALUE}{SPACES},{SPACES})*+")
_MEMBERS = re.compile(f"(?:{STRING}{SPACES}:{SPACES}{VALUE}{SPACES},{SPACES})*+")
_RUNS = {"item": _ITEMS, "first item": _ITEMS, "key": _MEMBERS, "first key": _MEMBERS}

# A call as a grammar of tools has it: its name, and what stands before its arguments.
NAME = rf'{{{SPACES}"name"{SPACES}:{SPACES}({STRING})'
_NAME = re.compile(NAME)
_BEFORE_ARGUMENTS = re.compile(rf'{NAME}{SPACES},{SPACES}"arguments"{SPACES}:{SPACES}')
_TO_BRACE = re.compile(rf'(?:[^"{{}}]++|{STRING})*+')

KEYS = ("key", "first key")
VALUES = ("value", "item", "first item")
ENDS = ("next", "first key", "first item", "first call")
OPENS = {"{": ("start", "call", "first call", *VALUES), "[": ("start", *VALUES)}
"""Places in JSON, by what may stand there: a member's name, any value, the closing bracket, opening brackets."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool; `arguments` is the text of a JSON object, as the model wrote it. If the answer ended within the
    call, it isn't `complete`, and `arguments` is the beginning of that text."""

    name: str
    arguments: str
    complete: bool = True


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
    (['Yes. '], [ToolCall(name='now', arguments='{}', complete=True)], [])
    """

    def __init__(self) -> None:
        self._held = ""  # not told yet; begins with `_start` while a list is read and none of its calls is told
        self._fresh = True  # nothing but spaces has come, so that a bare list may
        self._start = ""
        self._reader: _Reader | None = None  # of the list that may be one of calls
        self._ended = False  # a list has just ended: its closing mark may come
        self._left = MAX_STEPS

    def add(self, text: str) -> list[str | ToolCall]:
        held, self._held = self._held, ""
        held += text  # which CPython does without a copy while there is but one name for the string
        self._held = held
        del held
        return self._tell(last=False)

    def finish(self) -> list[str | ToolCall]:
        """All that is left, when no more text comes."""
        return self._tell(last=True)

    def _tell(self, last: bool) -> list[str | ToolCall]:
        text, told, put = self._held, 0, 0
        out: list[
            str | ToolCall
        ] = []  # without the content between `put` and `told`, which may go on
        while True:
            if (reader := self._reader) is not None:
                found = reader.read(text)
                if found == "more" and not last:
                    break
                call = reader.call(text, self._start) if found == "object" else None
                if call is not None:
                    out += [text[put:told], call] if put < told else [call]
                    put = told = reader.at
                    reader.calls += 1
                    if reader.stack:
                        continue
                elif not reader.calls:  # the start was content
                    told += len(self._start)
                elif found == "end":  # otherwise what follows the calls is content
                    put = told = reader.at
                self._reader, self._ended, self._left = None, reader.calls > 0, reader.left
            elif self._ended:
                at = _end(_FEW_SPACES, text, told)
                if not last and len(text) - at < len(CALL_END) and CALL_END.startswith(text[at:]):
                    break
                if text.startswith(CALL_END, at):
                    put = told = at + len(CALL_END)
                self._ended = False
            else:
                self._start, told = self._next_start(text, told, last)
                if not self._start:
                    break
                bracket = told + len(self._start) - (self._start[-1] == "[")
                self._reader = _Reader(bracket, self._left - 1)
        if put < told:
            out.append(text[put:told])
        self._held = text[told:]
        if self._reader is not None:
            self._reader.at -= told
            self._reader.began -= told
        return out

    def _next_start(self, text: str, told: int, last: bool) -> tuple[str, int]:
        """The next start of calls and where it is; if there is none "" and where one may have begun."""
        if self._fresh:
            at = _end(_SPACES, text, told)
            self._fresh = at == len(text)
            if text.startswith("[", at):
                return "[", at
        if self._left and (found := _START.search(text, told)):
            return found[0], found.start()
        for start in () if last else STARTS:
            # Their first letters stand nowhere else in them.
            at = text.rfind(start[0], max(told, len(text) - len(start) + 1))
            if at >= 0 and start.startswith(text[at:]):
                return "", at
        return "", len(text)


class GrammarToolParser:
    """Parses an answer of a grammar of tools as its text comes; `add` and `finish` return the same as `ToolParser`'s.

    >>> parser = GrammarToolParser()
    >>> parser.add('<|tool_call|>[{"name": "now", "arguments": {"zone": "U'), parser.finish()
    ([], [ToolCall(name='now', arguments='{"zone": "U', complete=False)])

    The whole answer is calls. With an `alternative` it may be an answer of that form instead: then all of it is
    content, also what looks like a call. If the answer ends within a call whose name is complete, `finish` returns the
    call with the arguments as far as they came; nothing of an incomplete call is content.
    """

    def __init__(self, *, alternative: bool = False) -> None:
        # Whether the answer is calls; None until its first characters decide.
        self._calls = None if alternative else True
        self._text = ""  # of the open call, or the first characters while they don't decide
        self._at = 0  # the next character of `_text` to read
        self._depth = 0  # open braces
        self._in_string = False

    def add(self, text: str) -> list[str | ToolCall]:
        held, self._text = self._text, ""
        held += text  # without a copy, as in ToolParser
        self._text = held
        del held
        if self._calls is None and any(self._text.startswith(start) for start in STARTS):
            self._calls = True
        elif self._calls is None and not any(start.startswith(self._text) for start in STARTS):
            self._calls = False
        if self._calls:
            return self._complete_calls()
        return [] if self._calls is None else self._content()

    def finish(self) -> list[str | ToolCall]:
        """What is left when no more text comes: the call that the end of the answer cut off."""
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
        """The calls whose last brace has come; of the text only an open call is kept."""
        text, at, began = self._text, self._at, 0
        calls: list[str | ToolCall] = []
        while True:
            if self._in_string:
                at = _end(_LETTERS, text, at)
                if text[at : at + 1] != '"':
                    break
                at, self._in_string = at + 1, False
            at = _end(_TO_BRACE, text, at)
            if at == len(text):
                break
            character, at = text[at], at + 1
            if character == '"':  # of a string whose end is still to come
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
    """Reads JSON from its first bracket on, and stops where something is decided.

    `at` is the next letter to read, `stack` the open brackets, `began` where the newest object of the list (or the one
    that stands without a list) begins, `calls` how many of them were calls, `left` how many steps there may be.
    """

    def __init__(self, at: int, left: int) -> None:
        self.at = at
        self.left = left
        self.stack: list[str] = []
        self.began = at
        self.calls = 0
        self._level = 2  # how many brackets are open where the object's own members stand
        self._cuts: list[int] = []  # its brackets, colons and commas, counted from `began`
        self._due = "start"  # or "first call", "call", "first key", "key", "in key", ":", "value", "in value", ...

    def read(self, text: str) -> str:
        """Goes on to "object": one that may be a call is whole; "end": the list is; "wrong": something that can't
        stand where it does, and there is nothing more to read; "more": the text ends."""
        stack, due, at, size = self.stack, self._due, self.at, len(text)
        while at < size:
            letter, depth = text[at], len(stack) - self._level
            if due in ("in key", "in value"):
                at = _end(_LETTERS, text, at)
                if _ESCAPE_BEGUN.fullmatch(text, at):
                    break
                if text[at] != '"':
                    return "wrong"
                at, due = at + 1, ":" if due == "in key" else "next"
                continue
            if letter in "{[" or (depth == 0 and letter == ":"):
                if not self.left:
                    return "wrong"
                self.left -= 1
            if depth == 0 and letter in ":,}":
                self._cuts.append(at - self.began)
            if letter in WHITE:
                at = _end(_SPACES, text, at)
            elif depth > 0 and due in _RUNS and (end := _end(_RUNS[due], text, at)) > at:
                at, due = end, due.removeprefix("first ")
            elif letter == '"' and (due in KEYS or due in VALUES):
                at, due = at + 1, "in key" if due in KEYS else "in value"
            elif due in OPENS.get(letter, ()) and len(stack) < MAX_DEPTH:
                stack.append(letter)
                if letter == "{" and due not in VALUES:
                    self.began, self._level, self._cuts = at, len(stack), [0]
                inner = "first call" if due == "start" else "first item"
                at, due = at + 1, "first key" if letter == "{" else inner
            elif letter == due == ":":
                at, due = at + 1, "value"
            elif letter == "," and due == "next":
                inner = "key" if stack[-1] == "{" else "item"
                at, due = at + 1, inner if depth >= 0 else "call"
            elif letter in "}]" and due in ENDS and stack[-1] + letter in ("{}", "[]"):
                stack.pop()
                at, due = at + 1, "next"
                if len(stack) < self._level:
                    self.at, self._due = at, due
                    return "object" if letter == "}" else "end"
            elif due in VALUES:
                end = _end(_LIKE_SCALAR, text, at)
                if end == size:
                    break
                if not _SCALAR.fullmatch(text, at, end):
                    return "wrong"
                at, due = end, "next"
            else:
                return "wrong"
        self.at, self._due = at, due
        return "more"

    def call(self, text: str, start: str) -> ToolCall | None:
        """The call that the object just read is, if it is one. In a bare list its arguments may not be missing."""
        cuts, members = [self.began + cut for cut in self._cuts], dict[str, str]()
        for before, colon, after in zip(cuts[::2], cuts[1::2], cuts[2::2], strict=False):
            members[json.loads(text[before + 1 : colon])] = text[colon + 1 : after].strip(WHITE)
        name, written = members.get("name", ""), members.get("arguments", members.get("parameters"))
        if not name.startswith('"') or (written is None and start == "["):
            return None
        if written in (None, "null", '""'):
            written = "{}"
        elif written.startswith('"'):
            written = json.loads(written)
            inner = _Reader(0, self.left)
            whole = inner.read(written) == "object" and not inner.stack
            self.left = inner.left
            if not whole or _end(_SPACES, written, inner.at) < len(written):
                return None
        elif not written.startswith("{"):
            return None
        name = json.loads(name)
        return ToolCall(name, written) if name and _is_text(name + written) else None


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where that ends which the pattern takes from `at` on."""
    found = pattern.match(text, at)
    return found.end() if found else at


def _is_text(text: str) -> bool:
    """Whether it can be sent on: half a surrogate pair, which an escape in a string may say, can't."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False
