"""Streaming parser of tool calls: an answer's text -> its content and its calls.

>>> parse_calls('Let me see. <|tool_call|>[{"name": "add", "arguments": {"a": 1}}]<|/tool_call|>', ["add"])
('Let me see. ', [ToolCall(name='add', arguments='{"a": 1}', complete=True)])

Models write calls in three ways, each a JSON list of objects with a name and arguments, or a single object:

- between `<|tool_call|>` and `<|/tool_call|>`, or `<tool_call>` and `</tool_call>`, as in their template;
- as `functools[...]`, as the prompt of one public server instructs them;
- bare at the start of the answer, as in Llama 3.2's template, and since models often leave the marks out; a single
  object only with its name first, so that other JSON isn't held back.

Only a tool that is offered is called: an object with another name is content. Where an object begins with an offered
name and then arguments in braces, it is a call from there on, and its arguments are returned as they are written; if
they end early or turn invalid, the call is incomplete, and the text after them is content. An object in another order
is a call once it is complete. All other text is content, character by character as it was written. The result doesn't
depend on how the text was cut into pieces.

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
from collections.abc import Container
from dataclasses import dataclass

from polyphi.types.tools import CALL, PHI_CALLS, TAGGED_CALLS

FUNCTOOLS = "functools["
STARTS = (CALL, TAGGED_CALLS.before, FUNCTOOLS)
CLOSINGS = (PHI_CALLS.after, TAGGED_CALLS.after)
MAX_STEPS = 10_000
"""Maximum total of an answer's starts of calls, brackets opened after them, and members of what may be calls."""
MAX_DEPTH, MAX_DIGITS, MAX_SPACES = 64, 400, 64
"""Limits of calls: brackets within each other; digits of a number before its point, after it or in its exponent;
spaces, and brackets that are too many, before the closing mark."""

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
_BEFORE_END = re.compile(rf"[\]}}{WHITE}]{{0,{MAX_SPACES}}}+")
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
_NAMED = re.compile(rf'{{[{WHITE}]{{0,{MAX_SPACES}}}+"name"')
_PARTIAL_NAMED = re.compile(rf'{{[{WHITE}]{{0,{MAX_SPACES}}}+(?:"(?:n(?:a(?:me?+)?+)?+)?+)?+')
_BEFORE_ARGUMENTS = re.compile(
    rf'{NAME}{SPACES},{SPACES}"(?:arguments|parameters)"{SPACES}:{SPACES}'
)
_TO_BRACE = re.compile(rf'(?:[^"{{}}]++|{STRING})*+')

KEYS = ("key", "first key")
VALUES = ("value", "item", "first item")
ENDS = ("next", "first key", "first item", "first call")
OPENS = {"{": ("start", "call", "first call", *VALUES), "[": ("start", *VALUES)}
"""States of the JSON parser in which a member's name, any value, a closing or an opening bracket may come."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool; `arguments` is the text of a JSON object, as the model wrote it. If the answer ended within the
    call, or the arguments turned invalid, `complete` is False, and `arguments` is a prefix of that text."""

    name: str
    arguments: str
    complete: bool = True


@dataclass(frozen=True)
class CallDelta:
    """A delta of a tool call. The first delta has the `name`, the last one says whether it is `complete`; both may be
    one. The joined `arguments` are those of the call."""

    name: str | None
    arguments: str
    complete: bool | None = None


class CallList(list[ToolCall]):
    """The calls of an answer, from their deltas. The last one may still grow: until its last delta it is incomplete."""

    def __init__(self) -> None:
        super().__init__()
        self.growing = False
        self._texts: list[str] = []

    def add(self, delta: CallDelta) -> None:
        if delta.name is not None:
            self.append(ToolCall(delta.name, "", False))
            self.growing, self._texts = True, []
        self._texts.append(delta.arguments)
        if delta.complete is not None:
            self[-1] = ToolCall(self[-1].name, "".join(self._texts), delta.complete)
            self.growing = False


def parse_calls(text: str, names: Container[str]) -> tuple[str, list[ToolCall]]:
    """A whole answer's content and its calls of the tools with these names; the same as from a `ToolParser`, however
    the text is cut."""
    parser, calls, content = ToolParser(names), CallList(), ""
    for part in (*parser.add(text), *parser.finish()):
        if isinstance(part, CallDelta):
            calls.add(part)
        else:
            content += part
    return content, calls


class ToolParser:
    """Parses an answer's text piece by piece; returns strings of content, and deltas of calls, as soon as they are
    final. `names`: of the tools that are offered.

    >>> parser = ToolParser(["now"])
    >>> parser.add("Yes. <|tool_"), parser.add('call|>[{"name": "now", "arguments": {}}]'), parser.finish()
    (['Yes. '], [CallDelta(name='now', arguments='{}', complete=True)], [])
    """

    def __init__(self, names: Container[str]) -> None:
        self._names = names
        self._pending = ""  # not returned yet; begins with `_start` until the first call of a list
        self._fresh = True  # only spaces so far, so that a bare list may start
        self._start = ""
        self._reader: _Reader | None = None  # of a list that may have calls
        self._ended = False  # a list has just ended: its closing mark may follow
        self._steps_left = MAX_STEPS

    def add(self, text: str) -> list[str | CallDelta]:
        pending, self._pending = self._pending, ""
        pending += text  # CPython does so without a copy while the string has a single reference
        self._pending = pending
        del pending
        return self._parse(last=False)

    def finish(self) -> list[str | CallDelta]:
        """The remaining parts at the end of the answer."""
        return self._parse(last=True)

    def _parse(self, last: bool) -> list[str | CallDelta]:
        # `out` lacks the content from `begin` to `end`, which may continue.
        text, begin, end = self._pending, 0, 0
        out: list[str | CallDelta] = []
        while True:
            if (reader := self._reader) is not None:
                event = reader.read(text)
                ended = event != "more" or last
                delta = reader.delta(text, self._names, self._start, event, ended=ended)
                if delta is not None:
                    out += [text[begin:end], delta] if begin < end else [delta]
                    begin = end
                if not ended:
                    break
                if delta is not None:
                    begin = end = reader.call_end
                    reader.calls += 1
                    if event == "object" and reader.stack:
                        continue
                elif not reader.calls:  # the start was content
                    end += len(self._start)
                elif event == "end":  # otherwise the text after the calls is content
                    begin = end = reader.at
                self._reader, self._ended = None, reader.calls > 0
                self._steps_left = reader.steps_left
            elif self._ended:
                at = _end(_BEFORE_END, text, end)
                rest = text[at : at + max(map(len, CLOSINGS))]
                if not last and any(c.startswith(rest) and rest != c for c in CLOSINGS):
                    break
                if closing := next((c for c in CLOSINGS if rest.startswith(c)), None):
                    begin = end = at + len(closing)
                self._ended = False
            else:
                self._start, end = self._next_start(text, end, last)
                if not self._start:
                    break
                bracket = end + len(self._start) - (self._start[-1] in "[{")
                self._reader = _Reader(bracket, self._steps_left - 1)
        if begin < end:
            out.append(text[begin:end])
        self._pending = text[end:]
        if self._reader is not None:
            self._reader.shift(end)
        return out

    def _next_start(self, text: str, begin: int, last: bool) -> tuple[str, int]:
        """The next start of calls from `begin` on and its index; without one "" and the index of a possible prefix."""
        if self._fresh:
            at = _end(_SPACES, text, begin)
            self._fresh = at == len(text)
            if text.startswith("[", at) or _NAMED.match(text, at):
                return text[at], at
            if not last and _PARTIAL_NAMED.fullmatch(text, at):
                self._fresh = True
                return "", at
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
    >>> parser.add('<|tool_call|>[{"name": "now", "arguments": {"zone": "U')
    [CallDelta(name='now', arguments='{"zone": "U', complete=None)]
    >>> parser.finish()
    [CallDelta(name=None, arguments='', complete=False)]

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
        # Whether arguments of the open call were returned, which `_text` no longer has.
        self._is_open = False

    def add(self, text: str) -> list[str | CallDelta]:
        pending, self._text = self._text, ""
        pending += text  # without a copy, as in ToolParser
        self._text = pending
        del pending
        if self._calls is None and any(self._text.startswith(start) for start in STARTS):
            self._calls = True
        elif self._calls is None and not any(start.startswith(self._text) for start in STARTS):
            self._calls = False
        if self._calls:
            return self._read_calls()
        return [] if self._calls is None else self._content()

    def finish(self) -> list[str | CallDelta]:
        """The remaining parts at the end of the answer: a call that is cut off."""
        if not self._calls:
            return self._content()
        if self._is_open:
            return [CallDelta(None, "", False)]
        name = _NAME.match(self._text)
        return [] if name is None else [CallDelta(json.loads(name[1]), "", False)]

    def _content(self) -> list[str | CallDelta]:
        text, self._text = self._text, ""
        return [text] if text else []

    def _read_calls(self) -> list[str | CallDelta]:
        """Return further text and call deltas; `_text` keeps the start of a call until its arguments begin."""
        text, at, began = self._text, self._at, 0
        deltas: list[str | CallDelta] = []
        name: str | None = None  # of the call whose arguments begin in this text
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
                continue
            self._depth += 1 if character == "{" else -1
            if character == "{" and self._depth <= 2:
                if self._depth == 2:
                    head = _BEFORE_ARGUMENTS.match(text, began)
                    assert head, "a call of the grammar has a name, then arguments"
                    name, self._is_open = json.loads(head[1]), True
                began = at - 1
            elif character == "}" and self._depth == 1:
                deltas.append(CallDelta(name, text[began:at], True))
                name, began, self._is_open = None, at, False
        if self._is_open and began < at:
            deltas.append(CallDelta(name, text[began:at]))
        if self._is_open or not self._depth:
            began = at
        self._text, self._at = text[began:], at - began
        return deltas


class _Reader:
    """An incremental JSON parser that starts at the first bracket and stops at events.

    `at` is the index of the next character, `stack` the open brackets, `calls` the number of the list's objects that
    were calls, `call_end` the end of the last one, `steps_left` the remaining steps.
    """

    def __init__(self, at: int, steps_left: int) -> None:
        self.at = self.call_end = at
        self.steps_left = steps_left
        self.stack: list[str] = []
        self.calls = 0
        self._level = 2  # number of open brackets at the object's own members
        self._state = "start"  # or "first call", "call", "first key", "key", "in key", ":", "value", "in value", ...
        self._start_object(at)

    def _start_object(self, at: int) -> None:
        """The newest object of the list, or the single object, begins."""
        self._began = at
        self._cuts = [0]  # offsets of its brackets, colons and commas from `_began`
        # The same for the braces of its second member, and for the end of what was returned of them.
        self._open: int | None = None
        self._close: int | None = None
        self._sent: int | None = None
        self._is_judged = False  # whether a call grows has been decided

    def shift(self, count: int) -> None:
        """The first characters of the text are gone."""
        self.at -= count
        self._began -= count

    def read(self, text: str) -> str:
        """Read up to the next event: "object": an object that may be a call is complete; "end": the list is complete;
        "invalid": the JSON is invalid; "more": the text ends."""
        stack, state, at, size = self.stack, self._state, self.at, len(text)
        event = "more"
        while event == "more" and at < size:
            character, depth = text[at], len(stack) - self._level
            if state in ("in key", "in value"):
                at = _end(_CHARACTERS, text, at)
                if _PARTIAL_ESCAPE.fullmatch(text, at):
                    break
                if text[at] != '"':
                    event = "invalid"
                else:
                    at, state = at + 1, ":" if state == "in key" else "next"
                continue
            if character in "{[" or (depth == 0 and character == ":"):
                if not self.steps_left:
                    event = "invalid"
                    break
                self.steps_left -= 1
            if depth == 0 and character in ":,}":
                self._cuts.append(at - self._began)
            if character in WHITE:
                at = _end(_SPACES, text, at)
            elif depth > 0 and state in _RUNS and (end := _end(_RUNS[state], text, at)) > at:
                at, state = end, state.removeprefix("first ")
            elif character == '"' and (state in KEYS or state in VALUES):
                at, state = at + 1, "in key" if state in KEYS else "in value"
            elif state in OPENS.get(character, ()) and len(stack) < MAX_DEPTH:
                stack.append(character)
                if character == "{" and state not in VALUES:
                    self._level = len(stack)
                    self._start_object(at)
                elif character == "{" and depth == 0 and len(self._cuts) == 4:
                    self._open = at - self._began
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
                    event = "object" if character == "}" else "end"
                elif self._open is not None and depth == 1 and len(self._cuts) == 4:
                    self._close = at - self._began
            elif state in VALUES:
                end = _end(_LIKE_SCALAR, text, at)
                if end == size:
                    break
                if _SCALAR.fullmatch(text, at, end):
                    at, state = end, "next"
                else:
                    event = "invalid"
            else:
                event = "invalid"
        self.at, self._state = at, state
        return event

    def delta(
        self, text: str, names: Container[str], start: str, event: str, *, ended: bool
    ) -> CallDelta | None:
        """The next delta of the call in the object that was read last, None where there is none. `start`: the start of
        the list; `ended`: nothing more is read of the object."""
        name = None
        if self._open is not None and not self._is_judged:
            self._is_judged = True
            before, colon, comma, next_colon = (self._began + cut for cut in self._cuts[:4])
            keys = json.loads(text[before + 1 : colon]), json.loads(text[comma + 1 : next_colon])
            value = text[colon + 1 : comma].strip(WHITE)
            if keys in (("name", "arguments"), ("name", "parameters")) and value.startswith('"'):
                name = _offered(json.loads(value), names)
            self._sent = None if name is None else self._open
        if self._sent is None:
            call = self._call(text, start, names) if event == "object" else None
            self.call_end = self.at
            return None if call is None else CallDelta(call.name, call.arguments, True)
        is_complete = self._close is not None
        end = self.at if self._close is None else self._began + self._close
        piece = text[self._began + self._sent : end]
        self._sent = end - self._began
        if not ended:
            return CallDelta(name, piece) if piece else None
        self.call_end = self.at if event == "object" else end
        self._open = self._sent = None
        return CallDelta(name, piece, is_complete)

    def _call(self, text: str, start: str, names: Container[str]) -> ToolCall | None:
        """The call in a complete object, or None. Without a mark before it its arguments may not be missing."""
        cuts, members = [self._began + cut for cut in self._cuts], dict[str, str]()
        for before, colon, after in zip(cuts[::2], cuts[1::2], cuts[2::2], strict=False):
            members[json.loads(text[before + 1 : colon])] = text[colon + 1 : after].strip(WHITE)
        name = members.get("name", "")
        arguments = members.get("arguments", members.get("parameters"))
        if not name.startswith('"') or (arguments is None and start in ("[", "{")):
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
        offered = _offered(json.loads(name), names)
        return ToolCall(offered, arguments) if offered and _is_text(arguments) else None


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """The end of the pattern's match at `at`, or `at` without one."""
    match = pattern.match(text, at)
    return match.end() if match else at


def _offered(name: str, names: Container[str]) -> str | None:
    """The name of a tool that is offered; None for others."""
    return name if name and _is_text(name) and name in names else None


def _is_text(text: str) -> bool:
    """Whether the text can be encoded: half a surrogate pair, which an escape in a string may contain, can't."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False
