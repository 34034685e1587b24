"""Rows of instruction data -> samples: the one parser of users' rows.

    columns    {"image": "cat.png", "question": "What is this?", "answer": "A cat."}; also "images", "audio", "audios";
               an image is at its <image> in the question, if there is one, else before it
    OpenAI     {"messages": [{"role", "content": text or parts, "reasoning_content", "tool_calls"}], "tools": [...]}
    TRL        {"prompt", "completion"} or {"prompt", "chosen", "rejected"}: texts or lists of OpenAI's messages
    ShareGPT   {"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}], "system", "tools"}
    LLaVA      the same with "image": one path or several, one for each <image> in the values
    Alpaca     {"instruction", "input", "output", "system", "history": [[instruction, output], ...]}
    document   {"text", "title"}: raw text; beside an image or audio `text` (or `caption`) is the answer, but one with
               <image> is a document with its images at these places

>>> parsed, unread = sample({"instruction": "1+1?", "output": "2"}, "mine.jsonl, line 1")
>>> [(message.role, message.text) for message in parsed.messages]
[('user', '1+1?'), ('assistant', '2')]

Images and audio are paths, bytes, or the hub's {"bytes", "path"}; in messages also OpenAI's `image_url` and
`input_audio`, and {"type": "image"}, which takes the next of the row's `images`. The default question of a row of
columns with audio only is a request for a transcript; with `start` and `seconds` it is a segment of the recording.
Every form may have `id`, `licence`, `language` and `rejected` (the dispreferred answer, for DPO: a text or an assistant
message). An answer's `reasoning_content` (or `reasoning`) is
trained as `<think>...</think>` before it; where it is left out of earlier answers, only the last one is supervised.
Rows of polyphi's shards are read unchanged.

Only what a format marks as such becomes media, tools or calls. Control tokens and `<image>` in a text remain text, with
the exception of `processing/template.py`: an assistant's `<|tool_call|>[...]<|/tool_call|>` is a call. All media are
decoded once, within the limits of `media/media.py`, so that a bad row is reported with its line.
"""

import difflib
import io
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile

from polyphi.data.addresses import read_bytes
from polyphi.data.confinement import medium
from polyphi.data.limits import MAX_CHARACTERS, check_values, encoding_error, parse_json
from polyphi.data.sample import Sample
from polyphi.data.schema import OPTIONAL, SCHEMA
from polyphi.data.shards import Shards
from polyphi.media import media
from polyphi.media.file_types import AUDIO_FORMATS, IMAGE_FORMATS, IMAGE_SUFFIXES, sniff
from polyphi.processing.reasoning import with_reasoning
from polyphi.processing.template import DOCUMENT, ROLES
from polyphi.runtime import inputs
from polyphi.types.dialects import Attachments
from polyphi.types.messages import Message, with_tools
from polyphi.types.parts import Audio, Image, Item, Part, Text
from polyphi.types.tools import CALL, CALL_END, call_text, tool_call
from polyphi.types.transcript import TRANSCRIBE

if TYPE_CHECKING:  # it imports torch
    from polyphi.processing.reader import Reader

MEDIA = ("image", "images", "audio", "audios")
COMMON = ("id", "licence", "language", "rejected")
FORMS = {
    "messages": (("messages",), ("tools", *MEDIA)),
    "conversations": (("conversations",), ("system", "tools", "image", "images")),
    "instruction": (("instruction", "output"), ("input", "system", "history")),
    "answer": (("answer",), ("question", *MEDIA, "start", "seconds", "transcript", "spoken")),
    "text": (("text",), ("title", "url", "date", "pages")),
}
"""Form of a row -> columns that it must have, and columns that it may have beside `COMMON`."""
TRL = ("prompt", "completion", "chosen")
"""Columns that TRL's rows have; `_from_trl` makes them rows of messages, or of a question and an answer."""
COLUMNS = tuple(
    dict.fromkeys([*(c for pair in FORMS.values() for cs in pair for c in cs), *COMMON, *TRL])
)
"""Columns of a row that are read."""
NONE = "none"
"""The name of no column: `--columns image=none` for rows whose images aren't wanted."""
AUDIO_ENDINGS = {".wav", ".flac", ".ogg", ".mp3", ".m4a"}
LONGEST_PATH = 4096
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
Conversation = tuple[Message, ...]


# ------------------------------------------------------------------------------ a row


@dataclass(frozen=True)
class RowOrigin:
    """The origin of rows, and the defaults for rows that lack a field. Paths in them are relative to `root`, a folder
    or an address; None forbids them. They may not lead out of it, except into `allowed_media_path`, folders and
    addresses. `licence` and `language` are those of a row that has none, `question` that of one about an image or
    audio."""

    source: str = ""
    root: Path | str | None = None
    allowed_media_path: Sequence[str] = ()
    licence: str = ""
    language: str | None = None
    question: str | None = None


NO_ORIGIN = RowOrigin()


def sample(
    row: Any,
    location: str,
    origin: RowOrigin = NO_ORIGIN,
    *,
    columns: Mapping[str, str] | None = None,
    readers: Mapping[str, "Reader"] = {},
    decode: bool = True,
) -> tuple[Sample, set[str]]:
    """Return a row (its JSON, or the error of reading it) of any of the formats as a sample, and its columns that are
    not read. `location` names it in errors and is its id if it has none. `columns` maps names of `COLUMNS` to those of
    the row. `readers` are those of users' modalities, which are columns too. Without `decode` media are read for the
    row's hash, but not decoded. Raises ValueError."""
    try:
        if isinstance(row, ValueError):
            raise row
        row = parse_json(row) if isinstance(row, bytes | str) else row
        if not isinstance(row, Mapping):
            raise ValueError(f"expected an object, found {type(row).__name__}")
        row = {name: value for name, value in row.items() if value is not None}
        if set(SCHEMA.names) - OPTIONAL <= set(row):
            check_values(str(row["meta"]))
            parsed = Shards.parse(row)
            for message in parsed.messages:
                _with_media(message, NO_ORIGIN, readers, decode)
            _check(parsed.messages)
            language = {} if origin.language is None else {"language": origin.language}
            meta = {**language, **parsed.meta}
            return replace(parsed, meta=meta), set()
        row, form, unread = _recognized(row, columns or {}, readers)
        if form == "answer" and not row.get("question"):
            if not any(row.get(name) for name in (*MEDIA, *readers)):
                raise ValueError(
                    "expected a question, an image or audio beside the answer, found none"
                )
            row |= {} if origin.question is None else {"question": origin.question}
        if isinstance(tools := row.get("tools"), str):
            check_values(tools)
        messages, meta = _READERS[form](row)
        messages = _with_items(messages, row, readers)
        if spoken := row.get("language") or origin.language:
            meta = {**meta, "language": str(spoken)}
        if "rejected" in row:
            meta = {**meta, "rejected": _answer_text(row["rejected"])}
        messages = tuple(_with_media(message, origin, readers, decode) for message in messages)
        _check(messages)
    except UnicodeDecodeError as error:
        raise ValueError(f"{location}: {encoding_error(error)}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{location}: expected JSON, {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{location}: {reason}") from None
    file, comma, line = location.rpartition(", ")
    id = str(row["id"]) if row.get("id", "") != "" else f"{Path(file).name}{comma}{line}"
    licence = str(row.get("licence") or origin.licence)
    return Sample(id, messages, origin.source, licence, meta), unread


def _recognized(
    row: dict[str, Any], columns: Mapping[str, str], readers: Collection[str]
) -> tuple[dict[str, Any], str, set[str]]:
    """Return a row with our names of its columns, its form, and its columns that are not read. Raises ValueError for a
    row of no form, and for columns that look like ones that the row lacks."""
    unwanted = {ours for ours, theirs in columns.items() if theirs == NONE}
    named = {ours: theirs for ours, theirs in columns.items() if theirs != NONE}
    if missing := [column for column in named.values() if column not in row]:
        raise ValueError(f"expected a column {missing[0]!r}, found {', '.join(row)}")
    theirs = set(row) - set(named.values())
    row |= {ours: row[column] for ours, column in named.items()}
    if any(medium in row for medium in (*MEDIA, *readers)) and not any(
        f in row for f in (*FORMS, *TRL) if f != "text"
    ):
        captions = [name for name in ("text", "caption") if isinstance(row.get(name), str)]
        if captions:
            caption = row.pop(captions[0])
            theirs.discard(captions[0])
            if IMAGE in caption and {"image", "images"} & set(row):
                row["messages"] = [{"role": DOCUMENT, "content": _parts_at_marks(caption)}]
            else:
                row["answer"] = caption
    trl = _is_trl(row)
    row = _from_trl(row) if trl else row
    form = _form(row, set(named))
    needed, optional = FORMS[form]
    items = readers if form == "answer" else ()
    unread = theirs - {*needed, *optional, *COMMON, *items, *(TRL if trl else ())}
    for name in sorted(unread):
        medium_type = modality(row[name])
        chosen = form != "text" and not set(needed).isdisjoint(named)
        if medium_type not in {None, *optional, *unwanted} and not chosen:
            _check_medium(name, str(medium_type), form)
        _check_unread(name, row[name], set(optional), set(row) | unwanted)
    return row, form, unread


def _parts_at_marks(text: str) -> list[dict[str, str]]:
    """Return OpenAI's parts of a text, with a part for an image at each `<image>`."""
    pieces = (piece for piece in re.split(f"({IMAGE})", text) if piece)
    return [{"type": "image"} if p == IMAGE else {"type": "text", "text": p} for p in pieces]


def _form(row: Mapping[str, Any], named: Set[str]) -> str:
    """Return the form of a row: the only one that its columns allow, or that of a column that the user has named."""
    forms = [form for form, (needed, _) in FORMS.items() if set(needed) <= set(row)]
    if len(forms) > 1:  # an `answer` beside a conversation is its solution, a `text` its template's
        forms = [f for f in forms if named & set(FORMS[f][0])] or [
            f
            for f in forms
            if f not in ("answer", "text") or (f == "answer" and forms == ["answer", "text"])
        ]
    if len(forms) == 1:
        return forms[0]
    present = ", ".join(map(str, row)) or "nothing"
    if forms:
        raise ValueError(
            f"expected one of {', '.join(forms)}, found {present} ({_named_by(forms[0], forms[0])} chooses one)"
        )
    raise ValueError(
        "expected `messages` (OpenAI), `conversations` (ShareGPT; LLaVA with `image`), `instruction` with `output` "
        "(Alpaca), `prompt` with `completion` or `chosen` (TRL), `answer` with `question`, `image` or `audio`, or "
        f"`text`; found {present} ({_named_by('answer', 'NAME')} says which column it is)"
    )


def _check_unread(name: str, value: Any, optional: Set[str], present: Set[str]) -> None:
    """Raise ValueError for a column that isn't read and looks like one that the row lacks, by its content, which is an
    image or audio, or by its name. A misspelt `image` would train without images."""
    medium_type = modality(value)
    if medium_type in optional and not {medium_type, f"{medium_type}s"} & present:
        near = medium_type
    else:
        missing = sorted(optional - present)
        alike = "question" if name == "prompt" else name
        near = next(iter(difflib.get_close_matches(alike, missing, 1, cutoff=0.8)), None)
    if near is not None:
        raise ValueError(
            f"`{name}` isn't read: is it the {near}? {_named_by(near, name)} reads it, {NONE} instead of {name} leaves "
            "it out"
        )


def _check_medium(name: str, modality: str, form: str) -> None:
    """Raise ValueError for a column of images or audio in a row of a form that has none: it would train without them,
    and a caption or transcript would be a document."""
    reads = (
        f"{_named_by(modality, name)} reads both, if the text is that of the {modality}"
        if form == "text"
        else "write the row as messages, or as question and answer"
    )
    raise ValueError(
        f"`{name}` isn't read, since a row of the form {form} has no {modality}: {reads}; {modality}={NONE} leaves the "
        f"{modality} out"
    )


def _named_by(ours: str, theirs: str) -> str:
    """How a command line and a recipe file name a column."""
    return f'--columns {ours}={theirs} (columns = {{ {ours} = "{theirs}" }} in a recipe file)'


def modality(value: Any) -> str | None:
    """Return "image" or "audio" for the bytes or path of an image or audio, or a list that begins with one; else
    None."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        file_type = sniff(value)
        return (
            "image"
            if file_type in IMAGE_FORMATS
            else "audio"
            if file_type in AUDIO_FORMATS
            else None
        )
    if isinstance(value, str) and len(value) <= LONGEST_PATH:
        ending = Path(value).suffix.lower()
        return "image" if ending in IMAGE_SUFFIXES else "audio" if ending in AUDIO_ENDINGS else None
    return None


# ------------------------------------------------------------------------------ TRL


def _is_trl(row: Mapping[str, Any]) -> bool:
    """Whether TRL's columns hold the conversation; beside an `answer` they don't."""
    return "answer" not in row and ("chosen" in row or {"prompt", "completion"} <= set(row))


def _from_trl(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with TRL's columns as one with `question` and `answer`, or with `messages`; the dispreferred answer
    stays in `rejected`. The prompt may be in `prompt`, or begin both conversations."""
    if "chosen" not in row:
        prompt, answer = row["prompt"], row["completion"]
        if isinstance(prompt, str) and isinstance(answer, str):
            return {**row, "question": prompt, "answer": answer}
        return {**row, "messages": [*_turns_of("user", prompt), *_turns_of("assistant", answer)]}
    prompt, chosen, rejected = row.get("prompt", ()), row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(prompt, str):
        return {**row, "question": prompt, "answer": chosen}
    prompt = _turns_of("user", prompt)
    chosen, rejected = (_turns_of("assistant", value) for value in (chosen, rejected))
    same = [one == two for one, two in zip(chosen, rejected, strict=False)]
    shared = chosen[: [*same, False].index(False)]
    if shared and isinstance(shared[0], Mapping) and shared[0].get("role") != "assistant":
        prompt = []  # it is the beginning of both
    if (len(chosen) - len(shared), len(rejected) - len(shared)) != (1, 1):
        raise ValueError(
            "expected `chosen` and `rejected` to differ in their last message alone, found "
            f"{len(chosen)} and {len(rejected)} messages of which the first {len(shared)} are equal"
        )
    return {**row, "messages": [*prompt, *chosen], "rejected": rejected[-1]}


def _turns_of(role: str, value: Any) -> list[Any]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def _answer_text(value: Any) -> str:
    """Return the text of a dispreferred answer, which is a text or an assistant message, alone or in a list."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        message = Message.parse(with_reasoning([value])[0][0])
        if message.role == "assistant" and all(isinstance(part, Text) for part in message.parts):
            return message.text
    if not isinstance(value, str):
        raise ValueError(
            f"expected the rejected answer as a text or one assistant message of text, found {value!r:.80}"
        )
    return value


# ------------------------------------------------------------------------------ OpenAI, columns


def _from_messages(row: Mapping[str, Any]) -> tuple[Conversation, dict[str, Any]]:
    """Return chat messages with text, media, tools and tool calls."""
    raw_messages, omitted = with_reasoning(_list(row["messages"], "messages"))
    attachments = Attachments(_media(row, "image"), _media(row, "audio"), _source)
    messages = tuple(
        Message.parse(value, attachments=attachments) for value in _answers_in_order(raw_messages)
    )
    attachments.check_empty()
    # Answers without their reasoning would train the model to answer without it.
    meta = {"supervise": "last answer"} if omitted else {}
    return with_tools(messages, row.get("tools")), meta


def _answers_in_order(raw_messages: Sequence[Any]) -> list[Any]:
    """Return the messages with answers of tools in the order of their calls: the chat template has no call ids. Calls
    without ids are answered in the order of the messages. Raises ValueError for an answer to no call, and where only
    some of a message's calls are answered, or none and the conversation continues."""
    result: list[Any] = []
    open_calls: list[Any] = []  # ids of calls without an answer yet
    answers: dict[Any, Any] = {}
    unnamed = False
    for value in raw_messages:
        if not isinstance(value, Mapping):
            raise ValueError(f"a message is an object with role and content, found {value!r:.80}")
        if value.get("role") == "tool" and not (unnamed or "tool_call_id" not in value):
            id = value["tool_call_id"]
            if id not in open_calls or id in answers:
                raise ValueError(
                    f"a tool message answers call {id!r}, expected one of the open calls {open_calls} without an answer"
                )
            answers[id] = value
            if len(answers) == len(open_calls):
                result += [answers[one] for one in open_calls]
                open_calls, answers = [], {}
            continue
        if open_calls:
            raise ValueError(f"call {open_calls[0]!r} has no answer of role tool after it")
        result.append(value)
        if calls := value.get("tool_calls"):
            ids = [call.get("id") for call in calls if isinstance(call, Mapping)]
            open_calls = [id for id in ids if id is not None]
            unnamed = not open_calls
            if len(set(open_calls)) < len(open_calls):
                raise ValueError(f"two tool calls have the same id among {', '.join(open_calls)}")
    if answers:
        raise ValueError("some tool calls have answers and some don't")
    return result


def _from_columns(row: Mapping[str, Any]) -> tuple[Conversation, dict[str, Any]]:
    images, audios = _media(row, "image"), _media(row, "audio")
    if "start" in row or "seconds" in row:
        audios = [_segment(audio, row) for audio in audios]
    question = row.get("question", TRANSCRIBE if audios and not images else "")
    parts: tuple[Part, ...] = (*images, *audios, *((Text(question),) if question else ()))
    if images and IMAGE in question:
        parts = (*audios, *_at_marks([question], images)(question))
    meta = {name: str(row[name]) for name in ("transcript", "spoken") if name in row}
    return (Message("user", parts), Message.assistant(row["answer"])), meta


def _with_items(
    messages: Conversation, row: Mapping[str, Any], readers: Collection[str]
) -> Conversation:
    """Return the messages of a row with its columns of users' modalities before the question."""
    items = [
        Item(name, _source(name, value))
        for name in readers
        for value in (row[name] if isinstance(row.get(name), list) else [row.get(name)])
        if value is not None
    ]
    if not items or "answer" not in row:
        return messages
    first = messages[0]
    return (Message(first.role, (*items, *first.parts), first.tools), *messages[1:])


def _from_text(row: Mapping[str, Any]) -> tuple[Conversation, dict[str, Any]]:
    """Return a raw document, which begins with its title."""
    text, title = row["text"], row.get("title") or ""
    if not isinstance(text, str) or not isinstance(title, str):
        raise ValueError(f"expected text, found {text!r:.80}")
    full = text if text.startswith(title) else f"{title}\n{text}"
    meta = {name: row[name] for name in ("url", "date", "pages") if name in row}
    return (Message(DOCUMENT, (Text(full),)),), meta


def _segment(audio: Image | Audio, row: Mapping[str, Any]) -> Audio:
    """Return the segment of a recording from `start` on, of `seconds`; it is cut when the file is read."""
    start, seconds = row.get("start", 0), row.get("seconds")
    for name, value in (("start", start), ("seconds", seconds)):
        if value is not None and (not isinstance(value, int | float) or value < 0):
            raise ValueError(f"expected {name} as a number of seconds, found {value!r:.40}")
    assert isinstance(audio, Audio)
    return _Segment(audio.source, float(start), None if seconds is None else float(seconds))


@dataclass(frozen=True)
class _Segment(Audio):
    """A segment of an audio file, which `_with_media` cuts."""

    start: float = 0.0
    seconds: float | None = None


def _media(row: Mapping[str, Any], modality: str) -> list[Image | Audio]:
    """Return the media of the columns `image` and `images`, or `audio` and `audios`."""
    parts: list[Image | Audio] = []
    for value in (row[name] for name in (modality, f"{modality}s") if name in row):
        parts += [_medium(modality, v) for v in (value if isinstance(value, list) else [value])]
    return parts


def _medium(modality: str, value: Any) -> Image | Audio:
    source = _source(modality, value)
    return Image(source) if modality == "image" else Audio(source)


def _source(modality: str, value: Any) -> bytes | str:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str):
        raise ValueError(f"expected a path or bytes as {modality}, found {type(value).__name__}")
    return value


# ------------------------------------------------------------------------------ ShareGPT, LLaVA


def _from_conversations(row: Mapping[str, Any]) -> tuple[Conversation, dict[str, Any]]:
    """Return conversations of text, tool calls (`function_call`) and tool responses (`observation`). With `image`, each
    `<image>` of a human turn stands for the next one, and a line end right after it belongs to it; otherwise it is
    text."""
    turns = _list(row["conversations"], "conversations")
    if "image" not in row and "images" not in row:
        return _from_turns(row, turns, lambda text: (Text(text),)), {}
    prompts = [
        str(turn.get("value"))
        for turn in turns
        if isinstance(turn, Mapping) and SPEAKERS.get(str(turn.get("from"))) == "user"
    ]
    return _from_turns(row, turns, _at_marks(prompts, _media(row, "image"))), {}


def _at_marks(
    texts: Sequence[str], images: Sequence[Image | Audio]
) -> Callable[[str], tuple[Part, ...]]:
    """Return a function from text to parts, in which each `<image>` is the next one of `images`. Raises ValueError
    unless `texts` have as many."""
    marks, remaining = sum(text.count(IMAGE) for text in texts), iter(images)
    if marks != len(images):
        raise ValueError(f"expected one image for each {IMAGE}, found {len(images)} for {marks}")

    def parts(text: str) -> tuple[Part, ...]:
        pieces = re.split(rf"({IMAGE})\n?", text)
        return tuple(next(remaining) if p == IMAGE else Text(p) for p in pieces if p)

    return parts


def _from_turns(
    row: Mapping[str, Any],
    turns: Sequence[Any],
    parts_of_user: Callable[[str], tuple[Part, ...]],
) -> Conversation:
    messages = [Message.system(row["system"])] if row.get("system") else []
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise ValueError(
                f"a turn is an object with `from` and text as `value`, found {turn!r:.80}"
            )
        speaker, text = turn.get("from"), turn["value"]
        if speaker not in SPEAKERS:
            raise ValueError(f"unknown speaker {speaker!r}; expected one of {', '.join(SPEAKERS)}")
        role = SPEAKERS[speaker]
        if speaker == "function_call":
            calls = parse_json(text)
            call_list = calls if isinstance(calls, list) else [calls]
            parts: tuple[Part, ...] = (Text(call_text(call_list)),)
        else:
            parts = parts_of_user(text) if role == "user" else (Text(text),)
        messages.append(Message(role, parts))
    return with_tools(messages, row.get("tools"))


# ------------------------------------------------------------------------------ Alpaca


def _from_alpaca(row: Mapping[str, Any]) -> tuple[Conversation, dict[str, Any]]:
    """Return an instruction, with its input (if any) on the following lines, and the output; `history` precedes
    them."""
    messages = [Message.system(row["system"])] if row.get("system") else []
    for prompt, answer in row.get("history") or ():
        messages += [Message.user(prompt), Message.assistant(answer)]
    prompt = "\n".join(text for text in (row["instruction"], row.get("input")) if text)
    return (*messages, Message.user(prompt), Message.assistant(row["output"])), {}


_READERS: dict[str, Callable[[Mapping[str, Any]], tuple[Conversation, dict[str, Any]]]] = {
    "messages": _from_messages,
    "conversations": _from_conversations,
    "instruction": _from_alpaca,
    "answer": _from_columns,
    "text": _from_text,
}


# ------------------------------------------------------------------------------ checks


def _list(value: Any, name: str) -> list[Any]:
    value = parse_json(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise ValueError(f"expected a list of {name}, found {type(value).__name__}")
    return value


def _with_media(
    message: Message, origin: RowOrigin, readers: Mapping[str, "Reader"], decode: bool
) -> Message:
    """Return the message with its media as bytes, with `decode` after a test decoding. Raises ValueError if that fails,
    and for paths that aren't allowed."""
    parts = tuple(_decodable(part, origin, readers, decode) for part in message.parts)
    return Message(message.role, parts, message.tools)


def _decodable(
    part: Part, origin: RowOrigin, readers: Mapping[str, "Reader"], decode: bool
) -> Part:
    if isinstance(part, Text):
        # A plain text also of calls, whose marks the template reads in an assistant's text.
        return Text(part.text)
    data = part.source
    assert not isinstance(data, tuple)
    if not isinstance(data, bytes):
        if origin.root is None:
            raise ValueError(f"expected bytes, found the path {data}")
        path = medium(origin.root, str(data), origin.allowed_media_path)
        if isinstance(path, Path):
            inputs.note(Path(origin.root) / data)
        data = path if isinstance(path, Path) else read_bytes(path, redirects=False)
    if isinstance(part, _Segment):
        return Audio(_cut(data, part.start, part.seconds))
    if not decode:
        pass
    elif isinstance(part, Image):
        media.decode_image(data)
    elif isinstance(part, Audio):
        media.decode_audio(data)
    elif isinstance(part, Item):
        _check_readable(Item(part.modality, data), readers)
    content = data if isinstance(data, bytes) else read_bytes(str(data))
    return Item(part.modality, content) if isinstance(part, Item) else type(part)(content)


def _check_readable(item: Item, readers: Mapping[str, "Reader"]) -> None:
    """Raise ValueError where an item's reader can't read it, or there is none."""
    if item.modality not in readers:
        raise ValueError(
            f"a part of the modality {item.modality!r} needs the file that defines it (--modality FILE)"
        )
    readers[item.modality].tokens(item, None)


def _cut(data: bytes | Path, start: float, seconds: float | None) -> bytes:
    """Return a segment of an audio file as FLAC with its sampling rate."""
    wave, rate = media.decode_audio(data)
    first = round(start * rate)
    segment = wave[first:] if seconds is None else wave[first : first + round(seconds * rate)]
    if not len(segment):
        raise ValueError(
            f"expected a segment from {start:g} s on, found {len(wave) / rate:.2f} s of audio"
        )
    out = io.BytesIO()
    soundfile.write(out, segment, rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def _check(messages: Sequence[Message]) -> None:
    """Check roles and the last answer; raises ValueError for messages that can't be trained on."""
    for number, message in enumerate(messages, 1):
        if message.role not in (*ROLES, DOCUMENT):
            raise ValueError(
                f"message {number}: unknown role {message.role!r}; expected one of {', '.join(ROLES)}"
            )
        if message.role == "assistant":
            _check_call_marks(number, message.text)
    last = messages[-1].role if messages else "nothing"
    if last not in ("assistant", DOCUMENT):
        raise ValueError(f"a conversation ends with the assistant's answer, found {last} last")
    if (count := sum(len(message.text) for message in messages)) > MAX_CHARACTERS:
        raise ValueError(f"expected at most {MAX_CHARACTERS:,} characters of text, found {count:,}")
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
        parsed = [tool_call(call) for call in parse_json(calls.removesuffix(CALL_END))]
        assert parsed
    except (ValueError, TypeError, AssertionError):
        raise ValueError(
            f"message {number}: {CALL} and {CALL_END} become control tokens in an assistant's text and may only "
            "enclose a JSON list of calls at its end"
        ) from None
