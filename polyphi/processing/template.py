"""Conversation -> pieces of ids and text: the only place that emits control tokens.

A conversation reads like this, the answer and its `<|end|>` being what is learnt (`^`)::

    <|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|><|endoftext|>
                                                            ^^^^^^^^^^^^^

With a generation prompt it ends in `<|assistant|>` instead of `<|endoftext|>`. Tools go on a system message, as JSON
text: `<|system|>CONTENT<|tool|>TOOLS<|/tool|><|end|>`. A picture or a clip becomes one placeholder where it stands;
`processor.py` repeats it. Whitespace right after a control token is swallowed, as by the published tokenizer.

A message of role "document" stands alone: raw text, then `<|endoftext|>`, all of it learnt.

**Tool calls.** A model calls a tool by answering `<|tool_call|>[...]<|/tool_call|>`, two control tokens around JSON.
Calls that come as such (`Calls`, from OpenAI's `tool_calls`) are told so again. Training data have them written out in
the assistant's text; with `trusted=True` these two marks, in assistant messages only, become control tokens. Nothing
else ever does, and without `trusted` not even these, because whoever sends a conversation may have made up its answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from polyphi.messages import CALL, CALL_END, Audio, Calls, Image, Message, Text, Video
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import END, END_OF_TEXT

ROLES = ("system", "user", "assistant", "tool", "tool_response")
DOCUMENT = "document"
# What the published tokenizer takes for whitespace (Unicode White_Space; Python's own set also has U+001C to U+001F).
WHITESPACE = (
    "\t\n\v\f\r \x85\xa0\u1680"
    + "".join(map(chr, range(0x2000, 0x200B)))
    + "\u2028\u2029\u202f\u205f\u3000"
)


@dataclass(frozen=True)
class Piece:
    """Some ids. `answer`: they are the assistant's words, or a document's. `media`: what a placeholder stands for."""

    ids: tuple[int, ...]
    answer: bool = False
    media: Image | Audio | None = None


@dataclass(frozen=True)
class Words:
    """Some text that isn't encoded yet. `answer` as in `Piece`."""

    text: str
    answer: bool = False


def script(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    generation_prompt: bool = False,
    trusted: bool = False,
) -> list[Piece | Words]:
    """The control tokens, placeholders and texts of a conversation, or of one document (with `generation_prompt`, to
    be continued: no `<|endoftext|>`), before anything is encoded.

    Raises `ValueError` for no messages, unknown roles, tools on any but a system message, and media that this
    tokenizer has no placeholder for.
    """
    if not messages:
        raise ValueError("a conversation needs at least one message, found none")
    writer = _Writer(tokenizer)
    if any(m.role == DOCUMENT for m in messages):
        if len(messages) > 1:
            raise ValueError(
                f"a document stands alone, found {len(messages)} messages beside or including it"
            )
        writer.parts(messages[0], answer=True)
        if not generation_prompt:
            writer.control(END_OF_TEXT, answer=True)
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
        answer = message.role == "assistant"
        writer.control(f"<|{message.role}|>")
        writer.parts(message, answer=answer, calls=answer and trusted)
        if message.tools is not None:
            writer.control("<|tool|>")
            writer.text(message.tools)
            writer.control("<|/tool|>")
        writer.control(END, answer=answer)
    writer.control("<|assistant|>" if generation_prompt else END_OF_TEXT)
    return writer.pieces


class _Writer:
    """Collects pieces. Text is held back until a control token or placeholder comes: neighbouring texts are one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces: list[Piece | Words] = []
        self._held: list[str] = []
        self._held_answer = False
        self._swallow = False

    @property
    def pieces(self) -> list[Piece | Words]:
        self._flush()
        return self._pieces

    def parts(self, message: Message, *, answer: bool, calls: bool = False) -> None:
        for part in message.parts:
            if isinstance(part, Calls) and CALL in self._tokenizer.controls:
                self._calls(part.text)
            elif isinstance(part, Text):
                self._calls(part.text) if calls else self.text(part.text, answer=answer)
            else:
                self._media(part)

    def text(self, text: str, *, answer: bool = False) -> None:
        if text:
            assert not self._held or self._held_answer == answer
            self._held.append(text)
            self._held_answer = answer

    def control(self, token: str, *, answer: bool = False) -> None:
        self._flush()
        self._pieces.append(Piece((self._tokenizer.control(token),), answer))
        self._swallow = self._tokenizer.swallows(token)

    def _media(self, part: Image | Audio | Video) -> None:
        assert not isinstance(part, Video), "a video is expanded first (video.py)"
        id = self._tokenizer.image_id if isinstance(part, Image) else self._tokenizer.audio_id
        if id is None:
            raise ValueError(
                f"this model has no placeholder for an {type(part).__name__.lower()}; it only reads text"
            )
        self._flush()
        self._pieces.append(Piece((id,), media=part))
        self._swallow = False

    def _calls(self, text: str) -> None:
        """An assistant's text in which the two tool-call marks are control tokens."""
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
        text, self._held = "".join(self._held), []
        if self._swallow:
            text = text.lstrip(WHITESPACE)
        if text:
            self._pieces.append(Words(text, self._held_answer))
            self._swallow = False
