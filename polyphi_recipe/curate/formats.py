"""Conversion of common instruction formats to `Sample` and back: OpenAI's, ShareGPT's, LLaVA's, Alpaca's.

    OpenAI    {"messages": [{"role", "content": text or parts, "reasoning_content", "tool_calls"}], "tools": [...]}
    ShareGPT  {"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}], "system", "tools"}
    LLaVA     the same with "image": one path or several, one for each <image> in the values
    Alpaca    {"instruction", "input", "output", "system", "history": [[instruction, output], ...]}

>>> samples = read(Path("alpaca.jsonl"), licence="CC-BY-4.0")              # the keys of a row determine its format
>>> shards.write(Path("data/alpaca/train"), samples, pipeline="formats")
>>> to_sharegpt(sample.messages)
{'conversations': [{'from': 'human', 'value': ...}, ...]}

Only what a format marks as such becomes media, tools or calls. Control tokens and `<image>` in a text remain text, with
the exception of `processing/template.py`: an assistant's `<|tool_call|>[...]<|/tool_call|>` is a call. Images and audio
are decoded once, so that broken ones raise an error. Paths are read only inside the row's folder.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.data.shards import Sample
from polyphi.messages import (
    CALL,
    CALL_END,
    Audio,
    Image,
    Message,
    Part,
    Text,
    Video,
    call_text,
    functions,
    tool_call,
    with_tools,
)
from polyphi.processing import media
from polyphi.processing.file_types import sniff
from polyphi.processing.reasoning import with_reasoning
from polyphi.processing.template import ROLES

SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool_response",
    "function_response": "tool_response",
    "tool": "tool_response",
}
"""ShareGPT's speakers -> polyphi's roles. The value of `function_call` is JSON."""
IMAGE = "<image>"
_FORMATS = {"WAV": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}


def detect(row: Mapping[str, Any]) -> str:
    """Return the format of a row: "openai", "sharegpt", "llava" or "alpaca". Raises ValueError for any other row."""
    formats = []
    if "messages" in row:
        formats.append("openai")
    if "conversations" in row:
        formats.append("llava" if row.get("image") is not None else "sharegpt")
    if "instruction" in row and "output" in row:
        formats.append("alpaca")
    if len(formats) != 1:
        raise ValueError(
            "expected `messages` (OpenAI), `conversations` (ShareGPT; LLaVA with `image`), or `instruction` with "
            f"`output` (Alpaca), and only one of them; found {', '.join(map(str, row)) or 'nothing'}"
        )
    return formats[0]


def sample(row: Any, name: str, *, source: str, licence: str, root: Path | None = None) -> Sample:
    """Return a row of any of the formats as a sample; `name` identifies it in errors (and is its id if it has none).
    Media are read from `root`; None forbids paths. Raises ValueError."""
    try:
        if not isinstance(row, Mapping):
            raise ValueError(f"expected an object, found {type(row).__name__}")
        meta = {}
        if isinstance(turns := row.get("messages"), list):
            turns, omitted = with_reasoning(turns)
            row, meta = {**row, "messages": turns}, {"supervise": "last answer"} if omitted else {}
        messages = _READERS[detect(row)](row, root)
        _check(messages)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{name}: {reason}") from None
    id = row.get("id")
    return Sample(name if id is None else str(id), messages, source, licence, meta)


def read(
    file: Path, *, licence: str, source: str = "", bad: Callable[[str], None] | None = None
) -> Iterator[Sample]:
    """Yield the rows of a JSON lines file, or of one JSON list (which is read whole). A bad row raises ValueError, or
    with `bad` is skipped and its message passed to `bad`."""
    with file.open("rb") as stream:
        if file.suffix == ".json":
            try:
                rows_of_file = json.load(stream)
            except ValueError as error:
                raise ValueError(f"{file}: expected JSON, {error}") from None
            if not isinstance(rows_of_file, list):
                raise ValueError(
                    f"{file}: expected a list of rows, found {type(rows_of_file).__name__}"
                )
            rows = ((f"{file.name}, row {n}", row) for n, row in enumerate(rows_of_file, 1))
        else:
            rows = (
                (f"{file.name}, line {n}", row) for n, row in enumerate(stream, 1) if row.strip()
            )
        for name, row in rows:
            try:
                try:
                    row = json.loads(row) if isinstance(row, bytes) else row
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{name}: expected JSON, {error}") from None
                yield sample(
                    row, name, source=source or file.name, licence=licence, root=file.parent
                )
            except ValueError as error:
                if bad is None:
                    raise
                bad(str(error))


# ------------------------------------------------------------------------------ OpenAI


def from_openai(row: Mapping[str, Any], root: Path | None = None) -> tuple[Message, ...]:
    """Return chat messages with text, `image_url`, `input_audio`, tools and tool calls. Tool responses are in the order
    of their calls, because polyphi's template has no call ids."""
    messages: list[Message] = []
    open_calls: list[str] = []  # ids of calls without an answer yet
    answers: dict[str, Message] = {}
    for value in _list(row["messages"], "messages"):
        if not isinstance(value, Mapping):
            raise ValueError(f"a message is an object with role and content, found {value!r:.80}")
        if value.get("role") == "tool":
            id = value.get("tool_call_id")
            if id not in open_calls or id in answers:
                raise ValueError(
                    f"a tool message answers call {id!r}, expected one of the open calls {open_calls} without an answer"
                )
            answers[id] = Message("tool_response", _parts(value, root))
            if len(answers) == len(open_calls):
                messages += [answers[one] for one in open_calls]
                open_calls, answers = [], {}
            continue
        if open_calls:
            raise ValueError(f"call {open_calls[0]!r} has no answer of role tool after it")
        parts = _parts(value, root)
        if calls := value.get("tool_calls"):
            parts = (*(p for p in parts if p != Text("")), Text(call_text(calls)))
            open_calls = [str(call.get("id")) for call in calls]
            if len(set(open_calls)) < len(open_calls):
                raise ValueError(f"two tool calls have the same id among {', '.join(open_calls)}")
        role = {"developer": "system"}.get(str(value.get("role")), str(value.get("role")))
        messages.append(Message(role, parts))
    if open_calls and (answers or messages[-1].role != "assistant"):
        raise ValueError("some tool calls have answers and some don't")
    return with_tools(messages, row.get("tools"))


def to_openai(messages: Sequence[Message]) -> dict[str, Any]:
    """Return the row that `from_openai` reads as these messages; calls are numbered. Raises ValueError for content that
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


def _parts(value: Mapping[str, Any], root: Path | None) -> tuple[Part, ...]:
    content = value.get("content")
    if content is None:
        return ()
    parts = Message.parse({"role": value.get("role"), "content": content}).parts
    return tuple(_decodable(p, root) for p in parts)


def _openai_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    data = _bytes(part)
    text, media_format = base64.b64encode(data).decode(), sniff(data)
    if isinstance(part, Image):
        url = f"data:image/{media_format.lower()};base64,{text}"
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "input_audio", "input_audio": {"data": text, "format": _FORMATS[media_format]}}


# ------------------------------------------------------------------------------ ShareGPT and LLaVA


def from_sharegpt(row: Mapping[str, Any], root: Path | None = None) -> tuple[Message, ...]:
    """Return conversations of text, tool calls (`function_call`) and tool responses (`observation`). `<image>` is
    text."""
    return _turns(row, lambda text: (Text(text),))


def from_llava(row: Mapping[str, Any], root: Path | None = None) -> tuple[Message, ...]:
    """Return conversations in which each `<image>` of a human turn stands for the next of `image`. A line end right
    after it belongs to it."""
    paths = row["image"] if isinstance(row["image"], list) else [row["image"]]
    images = [_decodable(Image(_source(value)), root) for value in paths]
    remaining = iter(images)
    marks = sum(
        str(turn.get("value")).count(IMAGE)
        for turn in _list(row["conversations"], "conversations")
        if isinstance(turn, Mapping) and SPEAKERS.get(str(turn.get("from"))) == "user"
    )
    if marks != len(images):
        raise ValueError(f"expected one image for each {IMAGE}, found {len(images)} for {marks}")

    def parts(text: str) -> tuple[Part, ...]:
        pieces = re.split(rf"({IMAGE})\n?", text)
        return tuple(next(remaining) if p == IMAGE else Text(p) for p in pieces if p)

    return _turns(row, parts)


def to_sharegpt(messages: Sequence[Message]) -> dict[str, Any]:
    """Return the row that `from_sharegpt` reads as these messages, which have no media."""
    return _from_turns(messages, _only_text)


def to_llava(messages: Sequence[Message], save: Callable[[bytes], str]) -> dict[str, Any]:
    """Return the row that `from_llava` reads as these messages. `save` stores an image's bytes and returns its path for
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

    row = _from_turns(messages, as_text)
    return {"image": paths[0] if len(paths) == 1 else paths, **row} if paths else row


def _turns(
    row: Mapping[str, Any], parts_of_user: Callable[[str], tuple[Part, ...]]
) -> tuple[Message, ...]:
    messages = [Message.system(row["system"])] if row.get("system") else []
    for turn in _list(row["conversations"], "conversations"):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise ValueError(
                f"a turn is an object with `from` and text as `value`, found {turn!r:.80}"
            )
        speaker, text = turn.get("from"), turn["value"]
        if speaker not in SPEAKERS:
            raise ValueError(f"unknown speaker {speaker!r}; expected one of {', '.join(SPEAKERS)}")
        role = SPEAKERS[speaker]
        if speaker == "function_call":
            calls = json.loads(text)
            call_list = calls if isinstance(calls, list) else [calls]
            parts: tuple[Part, ...] = (Text(call_text(call_list)),)
        else:
            parts = parts_of_user(text) if role == "user" else (Text(text),)
        messages.append(Message(role, parts))
    return with_tools(messages, row.get("tools"))


def _from_turns(messages: Sequence[Message], as_text: Callable[[Message], str]) -> dict[str, Any]:
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


# ------------------------------------------------------------------------------ Alpaca


def from_alpaca(row: Mapping[str, Any], root: Path | None = None) -> tuple[Message, ...]:
    """Return an instruction, with its input (if any) on the following lines, and the output; `history` precedes
    them."""
    messages = [Message.system(row["system"])] if row.get("system") else []
    for prompt, answer in row.get("history") or ():
        messages += [Message.user(prompt), Message.assistant(answer)]
    prompt = "\n".join(text for text in (row["instruction"], row.get("input")) if text)
    return (*messages, Message.user(prompt), Message.assistant(row["output"]))


def to_alpaca(messages: Sequence[Message]) -> dict[str, Any]:
    """Return the row that `from_alpaca` reads as these messages: users and assistants in turn, with or without
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


_READERS = {
    "openai": from_openai,
    "sharegpt": from_sharegpt,
    "llava": from_llava,
    "alpaca": from_alpaca,
}


# ------------------------------------------------------------------------------ tools


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
    _check_call_marks(number, last.text)
    preceding, _, call_json = last.text.partition(CALL)
    calls = [tool_call(c) for c in json.loads(call_json.removesuffix(CALL_END))]
    return (*message.parts[:-1], *((Text(preceding),) if preceding else ())), calls


# ------------------------------------------------------------------------------ checks


def _list(value: Any, name: str) -> list[Any]:
    value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise ValueError(f"expected a list of {name}, found {type(value).__name__}")
    return value


def _source(value: Any) -> Any:
    """Return a path, or bytes, also of the hub's {"bytes", "path"}."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str | bytes):
        raise ValueError(f"expected a path or bytes as image, found {type(value).__name__}")
    return value


def inside(root: Path, name: str) -> Path:
    """Return the path of a file that a row names, inside the row's folder. Raises ValueError for other paths: rows are
    untrusted, and their files become part of a public shard."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"expected a path inside the row's folder, found {name}")
    if not path.is_file():
        raise ValueError(f"there is no file {name} next to the row's")
    return path


def _decodable(part: Part, root: Path | None) -> Part:
    """Return the part with its media as bytes; raises ValueError if they can't be decoded."""
    if isinstance(part, Text):
        return part
    data = part.source
    if isinstance(data, str | Path):
        if root is None:
            raise ValueError(f"expected bytes, found the path {data}")
        data = inside(root, str(data))
    assert isinstance(data, bytes | Path)
    media.decode_image(data) if isinstance(part, Image) else media.decode_audio(data)
    return type(part)(data if isinstance(data, bytes) else data.read_bytes())


def _bytes(part: Image | Audio | Video) -> bytes:
    if isinstance(part, Video) or not isinstance(part.source, bytes):
        raise ValueError(f"media of samples are encoded bytes, found {type(part.source).__name__}")
    return part.source


def _check(messages: Sequence[Message]) -> None:
    """Check roles, types and the last answer; raises ValueError for messages that can't be trained on."""
    for number, message in enumerate(messages, 1):
        if message.role not in ROLES:
            raise ValueError(
                f"message {number}: unknown role {message.role!r}; expected one of {', '.join(ROLES)}"
            )
        for part in message.parts:
            if isinstance(part, Text) and not isinstance(part.text, str):
                raise ValueError(
                    f"message {number}: expected text, found {type(part.text).__name__} {part.text!r:.80}"
                )
        if message.role == "assistant":
            _check_call_marks(number, message.text)
    last = messages[-1].role if messages else "nothing"
    if last != "assistant":
        raise ValueError(f"a conversation ends with the assistant's answer, found {last} last")
    if not messages[-1].text.strip():
        raise ValueError("the answer is empty; expected a text to train on")


def _check_call_marks(number: int, text: str) -> None:
    """Check that the marks of tool calls, which become control tokens in an assistant's text, enclose calls at its
    end."""
    if CALL not in text and CALL_END not in text:
        return
    try:
        _, calls = text.split(CALL)
        assert calls.endswith(CALL_END) and calls.count(CALL_END) == 1
        parsed = [tool_call(call) for call in json.loads(calls.removesuffix(CALL_END))]
        assert parsed
    except (ValueError, TypeError, AssertionError):
        raise ValueError(
            f"message {number}: {CALL} and {CALL_END} become control tokens in an assistant's text and may only "
            "enclose a JSON list of calls at its end"
        ) from None
