"""The format of conversations: a list of `Message`s, each with typed parts.

>>> Message.user(Image("cat.png"), Text("What is this?")).role
'user'

`SamplingParams`, `Completion`, `Delta` and `Transcript` are the other inputs and outputs of a model, and `Generate` is
the protocol through which evaluation uses any model, local or remote.
"""

import base64
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypedDict, Unpack, get_args

from polyphi.runtime.arguments import checked, checked_fields, describe
from polyphi.types.media_sources import (
    AnyAudio,
    AudioSource,
    ImageSource,
    MediaSource,
    PilImage,
    audio_source,
    declared_type,
    is_array,
    is_pil,
    png,
)
from polyphi.types.tools import FunctionCall, call_text, functions

TRANSCRIBE = "Transcribe the audio clip into text."
"""The published prompt of a transcription."""
TRANSLATE = "Translate the audio to {}."
TRANSCRIBE_AND_TRANSLATE = (
    "Transcribe the audio to text, and then translate the audio to {}. "
    "Use <sep> as a separator between the original transcript and the translation."
)
"""The published prompts of a translation, direct and with chain of thought, for a language's English name."""
LANGUAGES: dict[str, str] = {
    "en": "English",
    "zh": "Chinese",
    "fr": "French",
    "de": "German",
    "it": "Italian",
    "ja": "Japanese",
    "pt": "Portuguese",
    "es": "Spanish",
}
"""Code -> English name of the eight languages (the Tier-1 languages of the report's speech and safety work)."""


@checked_fields
@dataclass(frozen=True)
class Text:
    """Plain text. The names of control tokens in it are encoded as ordinary characters."""

    text: str


@dataclass(frozen=True)
class Calls(Text):
    """Tool calls of an earlier answer, in the format of `call_text`: its two marks are encoded as control tokens, as in
    the model's output, and no other control tokens can occur inside."""


Detail = Literal["auto", "low", "high"]


@checked_fields
@dataclass(frozen=True, init=False, repr=False)
class Image:
    """An image: a path, the encoded bytes of a file (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC), a PIL image, or an
    array or tensor of pixels (media_sources.py has the shapes). A PIL image or an array becomes the bytes of its PNG
    file here, which lose nothing and don't change with it.

    `detail` is OpenAI's: "low" uses one crop and the global view, which need few tokens; "high" and "auto" use
    as many crops as the image needs, up to the model's maximum. `max_crops` sets another maximum; above the model's it
    has no effect. Shards of training data store neither.
    """

    source: MediaSource
    detail: Detail = "auto"
    max_crops: int | None = None
    modality: ClassVar[str] = "image"

    def __init__(
        self, source: ImageSource, detail: Detail = "auto", max_crops: int | None = None
    ) -> None:
        _check_detail(detail, max_crops)
        if not isinstance(source, str | Path | bytes):
            source = bytes(source) if isinstance(source, bytearray | memoryview) else png(source)
        for name, value in (("source", source), ("detail", detail), ("max_crops", max_crops)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        data = self.source
        source = f"<{len(data):,} bytes>" if isinstance(data, bytes) else repr(data)
        return f"Image({source}, detail={self.detail!r}, max_crops={self.max_crops})"

    @property
    def most_crops(self) -> int | None:
        """The requested maximum number of crops; None for the model's."""
        return self.max_crops or (1 if self.detail == "low" else None)


@checked_fields
@dataclass(frozen=True, init=False)
class Audio:
    """An audio clip: a path, the encoded bytes of a WAV, FLAC, OGG or MP3 file (with PyAV also M4A, MP4, WebM, AAC
    and AMR), or samples with their rate in Hz: `Audio(samples, 16000)`, `Audio((samples, 16000))` or the dict of
    `datasets` with "array" and "sampling_rate". Samples are floats in [-1, 1] or signed integers, [n] or [n channels],
    in an array, a tensor or a list."""

    source: AudioSource
    modality: ClassVar[str] = "audio"

    def __init__(self, source: AnyAudio, sample_rate: float | None = None) -> None:
        object.__setattr__(self, "source", audio_source(source, sample_rate))


@checked_fields
@dataclass(frozen=True)
class Video:
    """A video without its sound: a path, or the bytes of an MP4, WebM, Matroska or AVI file. It is represented by
    `frames` evenly spaced images (16 as in the report's 4.1.1), each with this `detail` and `max_crops`."""

    source: MediaSource
    frames: int = 16
    detail: Detail = "auto"
    max_crops: int | None = None
    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        _check_detail(self.detail, self.max_crops)
        if not _is_positive_int(self.frames):
            raise ValueError(
                f"frames: expected at least one frame of a video, found {self.frames!r}"
            )


@checked_fields
@dataclass(frozen=True)
class Document:
    """A PDF or a text file in UTF-8, by its content: a path, or bytes. The model sees the pages of a PDF as images with
    their text, and a text file as text, both after its `name` (default: that of the path). `detail` is that of the
    pages' images. `media_type` is the MIME type that its sender declares: a file whose name or type says that it is an
    image, audio, a video or an archive is refused."""

    source: MediaSource
    name: str = ""
    detail: Detail = "auto"
    media_type: str = ""
    modality: ClassVar[str] = "document"

    def __post_init__(self) -> None:
        _check_detail(self.detail, None)
        if not self.name:
            path = None if isinstance(self.source, bytes) else Path(self.source)
            object.__setattr__(self, "name", path.name if path else "document")


def file_text(name: str, text: str) -> Text:
    """The text that shows a text file to the model [ours]."""
    return Text(f"File {name}:\n{text}\n")


@checked_fields
@dataclass(frozen=True)
class Item:
    """An input of a further modality (docs/modality.md), by its name: a path or bytes, which its reader reads."""

    modality: str
    source: MediaSource


Media = Image | Audio | Item


PUBLISHED: dict[str, type[Image] | type[Audio]] = {"image": Image, "audio": Audio}
"""The parts of the report's modalities."""


def media_part(modality: str, source: MediaSource) -> Media:
    """The part of a message for a file of a modality."""
    part = PUBLISHED.get(modality)
    return part(source) if part is not None else Item(modality, source)


Part = Text | Image | Audio | Video | Document | Item


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_detail(detail: Any, max_crops: Any) -> None:
    if detail not in get_args(Detail):
        raise ValueError(f"detail: expected auto, low or high, found {detail!r}")
    if max_crops is not None and not _is_positive_int(max_crops):
        raise ValueError(f"max_crops: expected an integer of at least 1, found {max_crops!r}")


class Attachments:
    """The images and audio beside a conversation: the parts {"type": "image"} and {"type": "audio"} without content
    take the next one. `read` makes a source of a part's content; by default text is a path, a data: URL or base64."""

    def __init__(
        self,
        images: Iterable[Any] = (),
        audios: Iterable[Any] = (),
        read: Callable[[str, Any], Any] | None = None,
    ) -> None:
        self._remaining: dict[str, Iterator[Any]] = {"image": iter(images), "audio": iter(audios)}
        self.read = read

    def next(self, modality: str) -> "Image | Audio":
        """The next image or audio. Raises ValueError if none is left."""
        if (value := next(self._remaining.get(modality, iter(())), None)) is None:
            raise ValueError(
                f'a part {{"type": "{modality}"}} without {modality}, no {modality}s left'
            )
        return as_media(modality, value)

    def check_empty(self) -> None:
        """Raises ValueError for an image or audio that no part took."""
        for modality, remaining in self._remaining.items():
            if next(remaining, None) is not None:
                raise ValueError(f'more {modality}s than parts {{"type": "{modality}"}} for them')


def as_media(modality: str, value: Any) -> Image | Audio:
    """An image or audio from its source, or as it is."""
    part_class = PUBLISHED[modality]
    return value if isinstance(value, Image | Audio) else part_class(value)


PartLike = Part | str | PilImage | Mapping[str, Any]
Parts = str | Part | Sequence[PartLike] | Any
"""The parts of a message; `_as_part` checks them."""


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
        object.__setattr__(self, "parts", tuple(_as_part(part) for part in parts))
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
            parts = tuple(_as_part(part, root, attachments) for part in content)
        return cls(role, with_calls(parts, calls, role) if calls else parts, tools)


def _as_part(value: Any, root: Path | None = None, attachments: Attachments | None = None) -> Part:
    """The part of a message from all that may stand for one."""
    if isinstance(value, Part):
        return value
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, Mapping):
        return _parse_part(value, root, attachments or Attachments())
    if is_pil(value):
        return Image(value)
    wrapped = "; write Image(...) or Audio(...) around it" if is_array(value) else ""
    raise ValueError(
        "parts: expected a text, Text, Image, Audio, Video, Document or Item, a PIL image or a dict with a type, found "
        f"{describe(value)}{wrapped}"
    )


CONTENT_KEYS = ("url", "path", "base64")
"""Where transformers' chat templates look for the content of a part, after the name of its type."""


def _parse_part(part: Mapping[str, Any], root: Path | None, attachments: Attachments) -> Part:
    part_type = part.get("type")
    if part_type == "text":
        return Text(part.get("text"))  # type: ignore[arg-type]
    if part_type in ("image_url", "video_url", "audio_url"):
        url = part.get(part_type)
        url = url if isinstance(url, Mapping) else {"url": url}
        source: Any = _parse_source(url.get("url"), root)
        options: dict[str, Any] = {
            "detail": url.get("detail") or "auto",
            "max_crops": url.get("max_crops"),
        }
        if part_type == "audio_url":
            return Audio(source)
        if part_type == "image_url":
            return Image(source, **options)
        return Video(source, url.get("frames", Video.frames), **options)
    if part_type == "file":
        file = part.get("file")
        if not (isinstance(file, Mapping) and isinstance(file.get("file_data"), str)):
            raise ValueError(f"file: expected an object with file_data, found {describe(file)}")
        text = file["file_data"]
        data = _decoded("file_data", text.rpartition(",")[2])
        return Document(data, file.get("filename") or "", media_type=declared_type(text))
    if part_type == "input_audio":
        return Audio(_parse_data(part_type, part.get(part_type), root))
    if part_type in ("image", "audio", "video"):
        keys = (part_type, *CONTENT_KEYS)
        key = next((key for key in keys if part.get(key) is not None), None)
        if key is None:
            return attachments.next(part_type)
        content = part[key]
        if key == "base64":
            source = _decoded(part_type, content)
        elif attachments.read is not None:
            source = attachments.read(part_type, content)
        else:
            source = _parse_source(content, root) if isinstance(content, str) else content
        return Video(source) if part_type == "video" else as_media(part_type, source)
    value = part.get(part_type) if isinstance(part_type, str) else None
    if (
        isinstance(part_type, str)
        and isinstance(value, Mapping)
        and ("data" in value or "path" in value)
    ):
        return Item(part_type, _parse_data(part_type, value, root))
    raise ValueError(
        f"unknown part type {part_type!r}; expected text, image, audio, video, image_url, input_audio, audio_url, "
        "video_url, or the name of a further modality with an object of its data or path"
    )


def _parse_data(name: str, value: Any, root: Path | None) -> MediaSource:
    if not isinstance(value, Mapping) or not ("data" in value or "path" in value):
        raise ValueError(f"{name}: expected an object with data or path, found {describe(value)}")
    return _decoded(name, value["data"]) if "data" in value else _parse_source(value["path"], root)


def _decoded(name: str, data: Any) -> bytes:
    try:
        return base64.b64decode(data)
    except (ValueError, TypeError):
        raise ValueError(f"{name}: expected base64, found {data!r:.40}") from None


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


def _parse_source(url: Any, root: Path | None) -> MediaSource:
    if isinstance(url, Path):
        url = str(url)
    if not isinstance(url, str):
        raise ValueError(f"url: expected a path or a data: URL, found {describe(url)}")
    if url.startswith("data:"):
        return _decoded("url", url.partition(",")[2])
    if "://" in url and not url.startswith("file://"):
        raise ValueError(
            f"remote media are not fetched here, found {url[:80]!r}; use a path or a data: URL"
        )
    path = Path(url.removeprefix("file://"))
    return path if root is None or path.is_absolute() else root / path


def media(messages: Sequence[Message], part_type: type) -> list[Any]:
    """All parts of the type `part_type` (`Image`, `Audio`, `Video`) in a conversation, in order."""
    return [p for m in messages for p in m.parts if isinstance(p, part_type)]


Routes = Mapping[frozenset[str], str | None]
ROUTES: dict[frozenset[str], str | None] = {
    frozenset(): None,
    frozenset({"image"}): "vision",
    frozenset({"audio"}): "speech",
    frozenset({"image", "audio"}): "vision",
}
"""Modalities of a conversation -> its adapter (report 2.2; `input_mode` of the published code). A further modality adds
its lines."""


def route(modalities: Collection[str], routes: Routes = ROUTES) -> str | None:
    """The adapter for content of these modalities: image or video -> vision, audio only -> speech, text -> none. Raises
    ValueError for a combination that no line has."""
    if (present := frozenset(modalities)) not in routes:
        raise ValueError(
            f"no adapter is trained for {' with '.join(sorted(present))} in one conversation; name one, or add the "
            "combination to the modality's `beside`"
        )
    return routes[present]


def modalities_of(messages: Sequence[Message]) -> list[str]:
    """The modalities of a conversation beside text, in the order of their first part; those of documents are known when
    they are expanded (processing/expansion.py)."""
    parts = (part for message in messages for part in message.parts)
    media = (part for part in parts if not isinstance(part, Text | Document))
    return list(dict.fromkeys(part.modality for part in media))


def adapter_for(messages: Sequence[Message]) -> str | None:
    """The adapter for a conversation's content, as `route`."""
    return route(modalities_of(messages))


def normalize_adapter(adapter: str | None) -> str | None:
    """The name of an adapter; None for "none"."""
    return None if adapter == "none" else adapter


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


@checked_fields
@dataclass(frozen=True)
class Grammar:
    """The required form of an answer. `kind`: "json" (`text` is a JSON schema), "regex" (the whole answer matches it),
    "ebnf" (a context-free grammar in Lark or GBNF, decoding/grammars.py) or "tools" (a JSON list of tools: the answer
    is calls of them).

    Only for "tools": `max_calls` limits the number of calls in the answer; with an `alternative` of another kind the
    model chooses between calls and an answer of that form."""

    kind: Literal["json", "regex", "ebnf", "tools"]
    text: str
    max_calls: int | None = None
    alternative: "Grammar | None" = None


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword options, with the types that they are accepted in."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: str | Sequence[str]
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logprobs: int | None
    n: int
    grammar: Grammar | None
    draft: int | Literal["auto"]
    rope: Literal["dynamic", "bound"]
    prompt_logprobs: int | None
    embed: bool
    stop_at_calls: str | Sequence[str]
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: int | Sequence[int]
    include_stop: bool
    skip_special_tokens: bool
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]]
    reasoning: bool
    reasoning_budget: int | None


@checked_fields(accepts=SamplingOptions)
@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters. Temperature 0 is greedy. `stop` strings and `stop_token_ids` end the answer and are not part
    of it, unless `include_stop` is set; the first complete call of one of the tools `stop_at_calls` ends it too and is
    part of it (decoding/tool_calls.py). `min_tokens`: neither an end token nor a stop string ends the answer before.
    `ignore_eos`: end tokens don't end it. A grammar takes precedence over both: an answer always ends where its grammar
    does.

    `min_p` drops tokens below this fraction of the highest probability. `repetition_penalty` divides (logits above 0)
    or multiplies (below) the logit of every token of prompt and answer; `presence_penalty` (once) and
    `frequency_penalty` (for each occurrence) are subtracted for tokens of the answer. `logit_bias`: pairs of a token id
    and a number from -100 to 100 that is added to its logit. `skip_special_tokens`: whether control tokens that the
    model samples are left out of the text (those of tool calls never are). `logprobs`: return the log-probability of
    each token and of this many most likely ones; `prompt_logprobs`: the same for the prompt's tokens; `embed`: return
    the mean of the prompt's last hidden states; with either, `max_tokens` may be 0. `n` answers are sampled, the i-th
    with seed + i. `draft`: maximum draft tokens per step of speculative decoding from prompt and answer, which
    never changes the answer; "auto": the engine decides. `rope`: "dynamic" recomputes a sequence that grows past the
    LongRoPE switch with the long table, as the published code does; "bound" selects the table for prompt and
    `max_tokens` together from the start.

    `reasoning`: the answer may begin with `<think>...</think>` (decoding/reasoning.py), closed after `reasoning_budget`
    tokens."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    n: int = 1
    grammar: Grammar | None = None
    draft: int | Literal["auto"] = "auto"
    rope: Literal["dynamic", "bound"] = "dynamic"
    prompt_logprobs: int | None = None
    embed: bool = False
    stop_at_calls: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    logit_bias: tuple[tuple[int, float], ...] = ()
    reasoning: bool = False
    reasoning_budget: int | None = None

    def __post_init__(self) -> None:
        alone = {
            "stop": isinstance(self.stop, str),
            "stop_at_calls": isinstance(self.stop_at_calls, str),
            "stop_token_ids": isinstance(self.stop_token_ids, int),
        }
        for name, is_alone in alone.items():
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if is_alone else tuple(value))
        pairs: Any = self.logit_bias
        pairs = pairs.items() if isinstance(pairs, Mapping) else pairs
        object.__setattr__(self, "logit_bias", tuple(tuple(pair) for pair in pairs))

    @classmethod
    def of(
        cls, sampling: "SamplingParams | Mapping[str, Any]", **options: Unpack[SamplingOptions]
    ) -> "SamplingParams":
        """Sampling parameters, or a dict of them, with `options` instead of their values."""
        if isinstance(sampling, SamplingParams):
            values: dict[str, Any] = dict(options)  # the constructor converts them
            return replace(sampling, **values) if values else sampling
        return cls(**{**sampling, **options})


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer or a prompt, its natural log-probability before temperature and truncation, and the most
    likely (id, log-probability) pairs at its position, in descending order."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """An output delta of a streamed answer. The last one has `finish_reason` ("stop", "length" or "abort") and, if
    available, the whole `completion`. `tokens`: the ids sampled since the previous delta; joined they equal
    `Completion.tokens`. An endpoint reports none."""

    text: str
    finish_reason: str | None = None
    completion: "Completion | None" = None
    tokens: tuple[int, ...] = ()


@checked_fields
@dataclass(frozen=True, repr=False)
class Completion:
    """An answer with its token counts and adapter. `tokens`: the generated ids without the end token; `text` is ""
    if the model has no tokenizer. `input_tokens`: those of `prompt_tokens` that images, audio and further
    modalities have, by modality. `rope`: the LongRoPE tables that were used; `cached`: prompt tokens from the
    prefix cache; `others`: answers 2 to n. `prompt_logprobs`, if requested, has an entry for each prompt token but
    the first; `embedding` is the mean of its last hidden states [D], if requested. `reasoning_tokens`: those of a
    `<think>` block, with `SamplingParams.reasoning`. `stop_reason`: the stop string or the id of `stop_token_ids`
    that ended the answer, otherwise None. `tool_calls`: the calls in `text` that are complete, of an answer to a
    conversation with tools (`Phi`). Printed, an answer is its text."""

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: str = "stop"
    adapter: str | None = None
    prompt_tokens: int = 0
    input_tokens: Mapping[str, int] = field(default_factory=dict, hash=False)
    rope: str = "short"
    cached: int = field(default=0, compare=False)
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    embedding: tuple[float, ...] | None = None
    others: tuple["Completion", ...] = ()
    reasoning_tokens: int = 0
    stop_reason: str | int | None = None
    tool_calls: tuple[FunctionCall, ...] = ()

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        is_long = len(self.text) > 200
        values = {
            "text": f"{self.text[:199]}\N{HORIZONTAL ELLIPSIS}" if is_long else self.text,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "tool_calls": self.tool_calls,
            "others": len(self.others),
            "adapter": self.adapter,
        }
        parts = ", ".join(f"{name}={value!r}" for name, value in values.items() if value)
        tokens = f"{len(self.tokens)} token{'s' * (len(self.tokens) != 1)}"
        return f"Completion({parts}, {tokens})"

    @property
    def image_tokens(self) -> int:
        return self.input_tokens.get("image", 0)

    @property
    def audio_tokens(self) -> int:
        return self.input_tokens.get("audio", 0)


TimeSource = Literal["window", "aligned", "estimated"]
"""The source of a time. "window": the bounds of the segment of audio that the model transcribed. "aligned": the
decoder's attention to the audio (transcription/align.py). "estimated": character counts over voiced time."""


@dataclass(frozen=True)
class Word:
    """A word (a character in scripts without spaces), from `start` to `end` in seconds."""

    text: str
    start: float
    end: float
    source: TimeSource = "estimated"


@dataclass(frozen=True)
class Segment:
    """A segment of speech from `start` to `end` in seconds with its text (the translation if only that was requested;
    with both, the translation is in `translation`). `tokens`: the model's tokens of `text`; `logprobs`: their natural
    log-probabilities, empty if not recorded; `avg_logprob`: the mean of these; `temperature`: the one they were sampled
    at; `seek`: start of the window of the recording that was transcribed, in seconds; `silence`: the share of its time
    without speech (transcription/vad.py)."""

    start: float
    end: float
    text: str
    avg_logprob: float | None = None
    source: TimeSource = "window"
    temperature: float = 0.0
    translation: str | None = None
    seek: float = 0.0
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    silence: float | None = None


@checked_fields
@dataclass(frozen=True)
class Transcript:
    """The transcript of a recording; `translation` if requested. `warnings` name problems and their times in the
    recording. `words` are present if requested; they and `segments` are in order of time and don't overlap. The token
    counts include all answers, also repeated ones."""

    text: str
    seconds: float = 0.0
    translation: str | None = None
    warnings: tuple[str, ...] = field(default=())
    segments: tuple[Segment, ...] = ()
    words: tuple[Word, ...] = ()
    adapter: str | None = None
    prompt_tokens: int = 0
    audio_tokens: int = 0
    answer_tokens: int = 0

    def __str__(self) -> str:
        return self.text if self.translation is None else self.translation


class Answers(Protocol):
    """A model that only generates answers."""

    def generate(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = ...,
        adapter: str | None = "auto",
    ) -> Completion: ...


class Generate(Answers, Protocol):
    """A model as evaluation uses it: generates answers, and returns log-probabilities of given ones."""

    def stream(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = ...,
        adapter: str | None = "auto",
    ) -> Iterator[Delta]: ...

    def score(
        self, messages: Sequence[Message], continuation: str, *, adapter: str | None = "auto"
    ) -> list[float]:
        """Natural log-probability of each token of `continuation` as the assistant's answer."""
        ...
