"""Messages -> rows in the formats of others: OpenAI, ShareGPT, LLaVA, Alpaca; `formats.sample` reads them again."""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

from polyphi.data.formats import IMAGE, check_call_marks
from polyphi.media.file_types import sniff
from polyphi.types.messages import Message
from polyphi.types.parts import Document, Image, Item, Media, Part, Text, Video
from polyphi.types.tools import CALL, CALL_END, functions, tool_call

_FORMATS = {"WAV": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}


def to_openai(messages: Sequence[Message]) -> dict[str, Any]:
    """Return the row that `sample` reads as these messages; calls are numbered. Raises ValueError for content that
    the format can't represent."""
    rows: list[dict[str, Any]] = []
    open_calls: list[str] = []
    calls_so_far = 0
    for number, message in enumerate(messages, 1):
        if message.role == "tool_response":
            if not open_calls:
                raise ValueError("a tool's answer needs a call before it")
            rows.append(
                {"role": "tool", "tool_call_id": open_calls.pop(0), "content": message.text}
            )
            continue
        if open_calls:
            raise ValueError("every tool call needs an answer, or none after the last message")
        value: dict[str, Any] = {"role": message.role}
        words, calls = _split_calls(number, message)
        if calls:
            open_calls = [f"call_{calls_so_far + n}" for n in range(len(calls))]
            calls_so_far += len(calls)
            value["tool_calls"] = [
                {
                    "id": id,
                    "type": "function",
                    "function": {
                        "name": call["name"],
                        "arguments": json.dumps(call["arguments"], ensure_ascii=False),
                    },
                }
                for id, call in zip(open_calls, calls, strict=True)
            ]
        if all(isinstance(p, Text) for p in words) and len(words) < 2:
            value["content"] = words[0].text if words and isinstance(words[0], Text) else None
            if not words and not calls:
                value["content"] = []
        else:
            value["content"] = [_openai_part(p) for p in words]
        rows.append(value)
    row: dict[str, Any] = {"messages": rows}
    if tools := _tools_of(messages):
        row["tools"] = [{"type": "function", "function": tool} for tool in tools]
        if not messages[0].parts:
            del rows[0]  # it only carried the tools
    return row


def _openai_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Item):
        return {
            "type": part.modality,
            part.modality: {"data": base64.b64encode(_bytes(part)).decode()},
        }
    data = _bytes(part)
    text, media_format = base64.b64encode(data).decode(), sniff(data)
    if isinstance(part, Image):
        url = f"data:image/{media_format.lower()};base64,{text}"
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "input_audio", "input_audio": {"data": text, "format": _FORMATS[media_format]}}


def to_sharegpt(messages: Sequence[Message]) -> dict[str, Any]:
    """Return the row that `sample` reads as these messages, which have no media."""
    return _to_turns(messages, _only_text)


def to_llava(messages: Sequence[Message], save: Callable[[bytes], str]) -> dict[str, Any]:
    """Return the row that `sample` reads as these messages. `save` stores an image's bytes and returns its path for
    the row."""
    paths: list[str] = []

    def as_text(message: Message) -> str:
        text = ""
        for part in message.parts:
            if isinstance(part, Image) and message.role == "user":
                paths.append(save(_bytes(part)))
                text += f"{IMAGE}\n"
            elif not isinstance(part, Text):
                raise ValueError(
                    f"LLaVA's format has pictures of users only, found {type(part).__name__.lower()} of {message.role}"
                )
            elif IMAGE in part.text and message.role == "user":
                raise ValueError(
                    f"a text says {IMAGE} itself, which this format reads as a picture"
                )
            else:
                text += part.text
        return text

    row = _to_turns(messages, as_text)
    return {"image": paths[0] if len(paths) == 1 else paths, **row} if paths else row


def _to_turns(messages: Sequence[Message], as_text: Callable[[Message], str]) -> dict[str, Any]:
    speakers = {"user": "human", "assistant": "gpt", "tool_response": "observation"}
    row: dict[str, Any] = {}
    if tools := _tools_of(messages):
        row["tools"] = json.dumps(tools, ensure_ascii=False)
    first = 0
    if messages and messages[0].role == "system":
        if text := as_text(messages[0]):
            row["system"] = text
        first = 1
    turns = []
    for number, message in enumerate(messages[first:], 1 + first):
        words, calls = _split_calls(number, message)
        if calls and words:
            raise ValueError("this format has no turn with both words and tool calls")
        speaker = "function_call" if calls else speakers.get(message.role, message.role)
        value = json.dumps(calls, ensure_ascii=False) if calls else as_text(message)
        turns.append({"from": speaker, "value": value})
    return {"conversations": turns, **row}


def _only_text(message: Message) -> str:
    for part in message.parts:
        if not isinstance(part, Text):
            raise ValueError(f"this format supports text only, found {type(part).__name__.lower()}")
    return message.text


def to_alpaca(messages: Sequence[Message]) -> dict[str, Any]:
    """Return the row that `sample` reads as these messages: users and assistants in turn, with or without
    system."""
    row: dict[str, Any] = {}
    if messages and messages[0].role == "system" and messages[0].tools is None and messages[0].text:
        row["system"], messages = _only_text(messages[0]), messages[1:]
    roles = [m.role for m in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(
            f"Alpaca's rows are users and assistants in turn, found {', '.join(roles)}"
        )
    texts = [_only_text(m) for m in messages]
    if len(texts) > 2:
        row["history"] = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    return {"instruction": texts[-2], "input": "", "output": texts[-1], **row}


def _tools_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if any(m.tools is not None for m in messages[1:]):
        raise ValueError("expected tools on the first message only, found them on another")
    if not messages or messages[0].tools is None:
        return []
    return functions(json.loads(messages[0].tools)) or []


def _split_calls(number: int, message: Message) -> tuple[tuple[Part, ...], list[dict[str, Any]]]:
    """Return an assistant's parts without the calls at their end, and the calls."""
    last = message.parts[-1] if message.parts else None
    if message.role != "assistant" or not isinstance(last, Text) or CALL not in last.text:
        return message.parts, []
    check_call_marks(number, last.text)
    preceding, _, call_json = last.text.partition(CALL)
    calls = [tool_call(c) for c in json.loads(call_json.removesuffix(CALL_END))]
    return (*message.parts[:-1], *((Text(preceding),) if preceding else ())), calls


def _bytes(part: Media | Video | Document) -> bytes:
    if isinstance(part, Video | Document) or not isinstance(part.source, bytes):
        raise ValueError(f"media of samples are encoded bytes, found {type(part.source).__name__}")
    return part.source
