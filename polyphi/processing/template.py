"""Conversation -> pieces of ids and text: the only place that emits control tokens.

A conversation has this form; the answer and its `<|end|>` are supervised (`^`)::

    <|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|><|endoftext|>
                                                            ^^^^^^^^^^^^^

With a generation prompt it ends in `<|assistant|>` instead of `<|endoftext|>`; a final message that is to be continued
has no end at all. Tools go on a system message, as JSON
text: `<|system|>CONTENT<|tool|>TOOLS<|/tool|><|end|>`. An image or audio becomes one placeholder at its position;
`processor.py` repeats it. Whitespace right after a control token is removed, as in the published tokenizer.

Models with other marks (`conversation.py`) have conversations of the same parts, such as ChatML's::

    <|im_start|>system
    Be brief.<|im_end|>
    <|im_start|>user
    ...

Their calls are text, such as `<tool_call>[...]</tool_call>`. With Llama 3.1's and 3.2's the first user's message has
the schemas of tools.

With a chat template like that of Phi-4-mini-reasoning all system messages are one turn at the beginning, after a fixed
text: `<|system|>Your name is Phi, ... Be brief.<|end|>`.

A message of role "document" is a separate conversation: raw text, then `<|endoftext|>`, all of it supervised.

**Tool calls.** A model calls a tool by answering `<|tool_call|>[...]<|/tool_call|>`, two control tokens around JSON.
Structured calls (`Calls`, from OpenAI's `tool_calls`) are rendered in this form. Training data contain the marks in the
assistant's text; with `trusted=True` these two marks, in assistant messages only, become control tokens. No other text
does, and without `trusted` not even these, because the answers in a client's conversation may be forged.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from polyphi.processing.conversation import ConversationMarks, call_form
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from polyphi.types.parts import Calls, Document, Media, Text, Video
from polyphi.types.tools import CALL, CALL_END, functions

ROLES = ("system", "user", "assistant", "tool", "tool_response")
DOCUMENT = "document"
# Whitespace of the published tokenizer (Unicode White_Space; Python's own set also has U+001C to U+001F).
WHITESPACE = (
    "\t\n\v\f\r \x85\xa0\u1680"
    + "".join(map(chr, range(0x2000, 0x200B)))
    + "\u2028\u2029\u202f\u205f\u3000"
)


@dataclass(frozen=True)
class TemplatePiece:
    """A piece of a conversation as token ids. `answer`: they belong to an answer or a document. `media`: the part that
    a placeholder stands for."""

    ids: tuple[int, ...]
    answer: bool = False
    media: Media | None = None


@dataclass(frozen=True)
class TextPiece:
    """A piece of a conversation as text that isn't encoded yet. `answer` as in `TemplatePiece`."""

    text: str
    answer: bool = False


def apply_template(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    generation_prompt: bool = False,
    continue_final: bool = False,
    trusted: bool = False,
) -> list[TemplatePiece | TextPiece]:
    """Return the control tokens, placeholders and unencoded texts of a conversation or of one document (with
    `generation_prompt` without `<|endoftext|>`, to be continued). `continue_final`: end within the final message.

    Raises `ValueError` for no messages, unknown roles, tools on another message than a system message, media without a
    placeholder in this tokenizer, and tools or calls that the model's chat template has no place for.
    """
    if not messages:
        raise ValueError("a conversation needs at least one message, found none")
    writer, marks = _Writer(tokenizer), tokenizer.marks
    if any(m.role == DOCUMENT for m in messages):
        if len(messages) > 1:
            raise ValueError(
                f"expected a document as the only message, found {len(messages)} messages"
            )
        writer.parts(messages[0], answer=True)
        if not generation_prompt:
            writer.marks((marks.document_end,), answer=True)
        return writer.pieces
    for message in messages:
        if message.role not in ROLES:
            raise ValueError(
                f"unknown role {message.role!r}; expected one of {', '.join(ROLES)}, or a single document"
            )
        if message.tools is not None and message.role != "system":
            raise ValueError(
                f"tools belong on a system message, found them on a message of role {message.role!r}"
            )
    if tokenizer.fixed_system is not None:
        if continue_final and messages[-1].role == "system":
            raise ValueError("this model's chat template can't end within a system message")
        writer.header("system")
        writer.text(tokenizer.fixed_system)
        for message in (m for m in messages if m.role == "system"):
            writer.text(" ")
            writer.system(message)
        writer.marks(marks.end)
        messages = [m for m in messages if m.role != "system"]
    writer.marks(marks.begin)
    if marks.default_system is not None and messages[0].role != "system":
        messages = [Message.system(marks.default_system), *messages]
    if marks.trims:
        # Beside a preface what tools return is quoted as it is.
        messages = [
            message if marks.preface and message.role.startswith("tool") else _trimmed(message)
            for message in messages
        ]
    if marks.preface:
        messages = _with_preface(messages, marks)
    for message in messages:
        writer.header(message.role)
        if message.role == "system":
            writer.system(message)
        else:
            answer = message.role == "assistant"
            writer.parts(message, answer=answer, calls=answer and trusted)
        if continue_final and message is messages[-1]:
            return writer.pieces
        writer.marks(marks.end, answer=message.role == "assistant")
    if generation_prompt:
        writer.header("assistant")
    else:
        writer.marks(marks.close)
    return writer.pieces


def _trimmed(message: Message) -> Message:
    """A message without white space at its beginning and end."""
    parts = list(message.parts)
    if parts and type(parts[0]) is Text:
        parts[0] = Text(parts[0].text.lstrip())
    if parts and type(parts[-1]) is Text:
        parts[-1] = Text(parts[-1].text.rstrip())
    return replace(message, parts=tuple(parts))


def _quoted(message: Message) -> Message:
    """A message whose text is a JSON string, before its media."""
    media = [part for part in message.parts if not isinstance(part, Text)]
    return replace(message, parts=(Text(json.dumps(message.text, ensure_ascii=False)), *media))


def _with_preface(messages: Sequence[Message], marks: ConversationMarks) -> list[Message]:
    """A conversation that begins with a system message with the preface of the marks; the first user's message has the
    tools, and what they return is a JSON string."""
    system, *others = [_quoted(m) if m.role.startswith("tool") else m for m in messages]
    if any(message.tools is not None for message in others):
        raise ValueError("this model's chat template has tools on the first system message only")
    preface, tools = marks.preface, functions(system.tools)
    if tools:
        if not others or others[0].role != "user":
            raise ValueError(
                "this model's chat template has tools in the first user's message; write it right after the system "
                "message"
            )
        schemas = [
            json.dumps({"type": "function", "function": tool}, ensure_ascii=False, indent=4)
            for tool in tools
        ]
        before, after = marks.tools
        text = before + "".join(f"{schema}\n\n" for schema in schemas) + after
        others[0] = replace(others[0], parts=(Text(text), *others[0].parts))
        preface = marks.tools_preface + preface
    return [Message("system", (Text(preface), *system.parts)), *others]


class _Writer:
    """Collects pieces. Text is buffered until the next control token or placeholder, to join adjacent texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces: list[TemplatePiece | TextPiece] = []
        self._buffer: list[str] = []
        self._buffer_is_answer = False
        self._strip_next = False

    @property
    def pieces(self) -> list[TemplatePiece | TextPiece]:
        self._flush()
        return self._pieces

    def header(self, role: str) -> None:
        """Append what precedes the content of a message."""
        marks = self._tokenizer.marks
        role = marks.roles.get(role, role)
        self.marks(tuple(mark.format(role=role) for mark in marks.header))

    def marks(self, marks: Sequence[str], *, answer: bool = False) -> None:
        """Append control tokens and texts around messages; of those after an answer only the first is supervised."""
        for number, mark in enumerate(marks):
            if mark.startswith("<|") and mark.endswith("|>"):
                self.control(mark, answer=answer and number == 0)
            else:
                self.text(mark)

    def parts(self, message: Message, *, answer: bool, calls: bool = False) -> None:
        for part in message.parts:
            if isinstance(part, Calls) or (calls and isinstance(part, Text)):
                self._calls(part.text)
            elif isinstance(part, Text):
                self.text(part.text, answer=answer)
            else:
                self._media(part)

    def system(self, message: Message) -> None:
        """Append the content and the tools of a system message."""
        self.parts(message, answer=False)
        if message.tools is not None:
            before, after = self._tokenizer.marks.tools
            self.marks((before if message.parts else before.lstrip(),))
            self.text(message.tools)
            self.marks((after,))

    def text(self, text: str, *, answer: bool = False) -> None:
        if text:
            if self._buffer and self._buffer_is_answer != answer:
                self._flush()
            self._buffer.append(text)
            self._buffer_is_answer = answer

    def control(self, token: str, *, answer: bool = False) -> None:
        self._flush()
        self._pieces.append(TemplatePiece((self._tokenizer.control(token),), answer))
        self._strip_next = self._tokenizer.strips_following_whitespace(token)

    def _media(self, part: Media | Video | Document) -> None:
        assert not isinstance(part, Video | Document), "it is expanded first (expansion.py)"
        id = self._tokenizer.placeholder(part.modality)
        self._flush()
        self._pieces.append(TemplatePiece((id,), media=part))
        self._strip_next = False

    def _calls(self, text: str) -> None:
        """Append an assistant's text in which the two tool-call marks are control tokens, or calls in the form of the
        model."""
        form = call_form(self._tokenizer.marks, self._tokenizer.controls)
        if form.before != CALL:
            content, mark, calls = text.partition(CALL)
            self.text(content + (form.write(mark + calls) if mark else ""), answer=True)
            return
        while text:
            at, mark = min(
                (text.find(m) % (len(text) + 1), m) for m in (CALL, CALL_END)
            )  # -1 -> len(text)
            self.text(text[:at], answer=True)
            if at == len(text):
                return
            self.control(mark, answer=True)
            text = text[at + len(mark) :]

    def _flush(self) -> None:
        text, self._buffer = "".join(self._buffer), []
        if self._strip_next:
            text = text.lstrip(WHITESPACE)
        if text:
            self._pieces.append(TextPiece(text, self._buffer_is_answer))
            self._strip_next = False
