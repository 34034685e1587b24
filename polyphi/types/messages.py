"""The format of conversations: a list of `Message`s, each with typed parts.

>>> Message.user(Image("cat.png"), Text("What is this?")).role
'user'
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from polyphi.runtime.arguments import checked, checked_fields, describe
from polyphi.types.dialects import Attachments, PartLike, Parts, as_part
from polyphi.types.parts import Calls, Part, Text
from polyphi.types.tools import call_text, functions


@checked_fields
@dataclass(frozen=True, init=False)
class Message:
    """One turn. A part may also be a text (str), a PIL image or a dict as in `parse`. `tools`, which belong to a system
    message, are a list of Python functions or of OpenAI's schemas, and become a JSON list as text, as in the models'
    chat template."""

    role: str
    parts: tuple[Part, ...]
    tools: str | None = None

    def __init__(self, role: str, parts: Parts, tools: Any = None) -> None:
        if isinstance(parts, str | Part):
            parts = (parts,)  # a text alone would be a sequence of letters
        if not isinstance(parts, Sequence) or isinstance(parts, bytes):
            raise ValueError(f"parts: expected a text or a list of parts, found {describe(parts)}")
        if tools is not None and not isinstance(tools, str):
            tools = json.dumps(functions(tools) or [], ensure_ascii=False)
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "parts", tuple(as_part(part) for part in parts))
        object.__setattr__(self, "tools", tools)

    @classmethod
    def system(cls, text: str, tools: Any = None) -> "Message":
        return cls("system", (Text(text),), tools)

    @classmethod
    def user(cls, *parts: PartLike | Any) -> "Message":
        return cls("user", parts)

    @classmethod
    def assistant(cls, text: str) -> "Message":
        return cls("assistant", (Text(text),))

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(p.text for p in self.parts if isinstance(p, Text))

    @classmethod
    @checked
    def parse(
        cls,
        value: Annotated[
            "Message | Mapping[str, Any]",
            "a message, such as {'role': 'user', 'content': 'Hello'}",
            "messages",
        ],
        root: Path | None = None,
        attachments: Attachments | None = None,
    ) -> "Message":
        """The `Message` of an OpenAI-style dict; a `Message` is returned unchanged.

        Parts may be texts, OpenAI's `text`, `image_url` (a path or a base64 data URL, with `detail` and polyphi's
        `max_crops`), `input_audio` (base64 `data`, or `path`), `file` (base64 `file_data`), and vLLM's `audio_url` and
        `video_url` (with polyphi's `frames`). Transformers' {"type": "image"}, and "audio" and "video", have their
        content under this name (a path, a data URL, bytes, for images also a PIL image or an array), "url", "path" or
        "base64"; images and audio without content take the next one of `attachments`. Of a further modality a part has
        its name (an object of that name has base64 `data`, or `path`). Relative paths are resolved against `root`.
        Remote URLs raise ValueError: only the server fetches media. `tool_calls` are appended to the text in the
        model's format; a tool's response to one (role "tool" with a `tool_call_id`) gets the model's role
        "tool_response", and "developer" is "system"."""
        if isinstance(value, Message):
            return value
        role, content = value.get("role"), value.get("content")
        if not isinstance(role, str) or not role:
            raise ValueError(
                f"a message needs a role, found {role!r}; expected {{'role': 'user', 'content': ...}}"
            )
        tools = value.get("tools")
        if role == "tool" and "tool_call_id" in value:
            role = "tool_response"
        role = "system" if role == "developer" else role
        if calls := value.get("tool_calls"):
            content = content or ()
        if isinstance(content, str):
            parts: tuple[Part, ...] = (Text(content),)
        elif not isinstance(content, Sequence):
            raise ValueError(
                f"message content must be text or a list of parts, found {type(content).__name__}"
            )
        else:
            attachments = attachments or Attachments()
            parts = tuple(as_part(part, root, attachments) for part in content)
        return cls(role, with_calls(parts, calls, role) if calls else parts, tools)


def with_calls(
    parts: Iterable[Part], calls: Iterable[Any], role: str = "assistant"
) -> tuple[Part, ...]:
    """A message's parts with its tool calls appended; only an assistant's calls get control tokens."""
    part_class = Calls if role == "assistant" else Text
    return (*(part for part in parts if part != Text("")), part_class(call_text(calls)))


def with_tools(messages: Sequence[Message], tools: Any) -> tuple[Message, ...]:
    """A conversation with tools (as for `functions`) on its system message, which is added if there is none."""
    if (function_list := functions(tools)) is None:
        return tuple(messages)
    text = json.dumps(function_list, ensure_ascii=False)
    if messages and messages[0].role == "system":
        return (Message("system", messages[0].parts, text), *messages[1:])
    return (Message("system", (), text), *messages)


def media(messages: Sequence[Message], part_type: type) -> list[Any]:
    """All parts of the type `part_type` (`Image`, `Audio`, `Video`) in a conversation, in order."""
    return [p for m in messages for p in m.parts if isinstance(p, part_type)]


@dataclass(frozen=True)
class Tokens:
    """The token counts of a conversation: `text` includes control tokens, `inputs` has those of other modalities."""

    text: int = 0
    inputs: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def image(self) -> int:
        return self.inputs.get("image", 0)

    @property
    def audio(self) -> int:
        return self.inputs.get("audio", 0)

    @property
    def total(self) -> int:
        return self.text + sum(self.inputs.values())
