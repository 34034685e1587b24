"""The format of conversations: a list of `Message`s, each with typed parts.

>>> Message.user(Image("cat.png"), Text("What is this?")).role
'user'

`SamplingParams`, `Completion`, `Delta` and `Transcript` are the other inputs and outputs of a model, and `Generate` is
the protocol through which evaluation uses any model, local or remote. This module imports nothing from polyphi.
"""

import base64
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np

MediaSource = str | Path | bytes
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
CALL, CALL_END = "<|tool_call|>", "<|/tool_call|>"
"""The marks around the JSON of tool calls in an assistant's text (processing/template.py)."""


@dataclass(frozen=True)
class Text:
    """Plain text. The names of control tokens in it are encoded as ordinary characters."""

    text: str


@dataclass(frozen=True)
class Calls(Text):
    """Tool calls of an earlier answer, in the format of `call_text`: its two marks are encoded as control tokens, as in
    the model's output, and no other control tokens can occur inside."""


Detail = Literal["auto", "low", "high"]


@dataclass(frozen=True)
class Image:
    """An image: a path, or the encoded bytes of a PNG, JPEG, WebP or GIF file.

    `detail` is OpenAI's: "low" uses one crop and the global view, which need few tokens; "high" and "auto" use
    as many crops as the image needs, up to the model's maximum. `max_crops` sets another maximum; above the model's it
    has no effect. Shards of training data store neither.
    """

    source: MediaSource
    detail: Detail = "auto"
    max_crops: int | None = None
    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        _check_detail(self.detail, self.max_crops)

    @property
    def most_crops(self) -> int | None:
        """The requested maximum number of crops; None for the model's."""
        return self.max_crops or (1 if self.detail == "low" else None)


@dataclass(frozen=True)
class Audio:
    """An audio clip: a path, the encoded bytes of a WAV, FLAC, OGG or MP3 file (with PyAV also M4A, MP4, WebM, AAC
    and AMR), or (float32 samples [n] in [-1, 1], rate in Hz)."""

    source: MediaSource | tuple[np.ndarray, int]
    modality: ClassVar[str] = "audio"


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


Part = Text | Image | Audio | Video | Item


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_detail(detail: Any, max_crops: Any) -> None:
    if detail not in get_args(Detail):
        raise ValueError(f"detail: expected auto, low or high, found {detail!r}")
    if max_crops is not None and not _is_positive_int(max_crops):
        raise ValueError(f"max_crops: expected an integer of at least 1, found {max_crops!r}")


@dataclass(frozen=True)
class Message:
    """One turn. `tools` (a JSON list, as text) belongs to a system message, as in the models' chat template."""

    role: str
    parts: tuple[Part, ...]
    tools: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.parts, str):  # a text alone, which would be a sequence of letters
            object.__setattr__(self, "parts", (Text(self.parts),))

    @classmethod
    def system(cls, text: str, tools: str | None = None) -> "Message":
        return cls("system", (Text(text),), tools)

    @classmethod
    def user(cls, *parts: Part | str) -> "Message":
        return cls("user", tuple(Text(p) if isinstance(p, str) else p for p in parts))

    @classmethod
    def assistant(cls, text: str) -> "Message":
        return cls("assistant", (Text(text),))

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(p.text for p in self.parts if isinstance(p, Text))

    @classmethod
    def parse(
        cls,
        value: "Message | Mapping[str, Any]",
        root: Path | None = None,
    ) -> "Message":
        """The `Message` of an OpenAI-style dict; a `Message` is returned unchanged.

        Parts may be `text`, `image_url` (a path or a base64 data URL, with `detail` and polyphi's `max_crops`),
        `input_audio` (base64 `data`, or `path`), `video_url` (as images, with polyphi's `frames`), and of a further
        modality its name (an object of that name has base64 `data`, or `path`). Relative paths are resolved against
        `root`. Remote URLs raise ValueError: only the server fetches media. `tool_calls` are appended to the text in
        the model's format; a tool's response to one (role "tool" with a `tool_call_id`) gets the model's role
        "tool_response"."""
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
        if calls := value.get("tool_calls"):
            parts = cls.parse({"role": role, "content": content or ()}, root).parts
            return cls(role, with_calls(parts, calls, role), tools)
        if isinstance(content, str):
            return cls(role, (Text(content),), tools)
        if not isinstance(content, Sequence):
            raise ValueError(
                f"message content must be text or a list of parts, found {type(content).__name__}"
            )
        return cls(role, tuple(_parse_part(p, root) for p in content), tools)


def _parse_part(part: Any, root: Path | None) -> Part:
    part_type = part.get("type") if isinstance(part, Mapping) else None
    if part_type == "text":
        return Text(part["text"])
    if part_type in ("image_url", "video_url"):
        url = part[part_type]
        url = url if isinstance(url, Mapping) else {"url": url}
        source = _parse_source(url["url"], root)
        options: dict[str, Any] = {
            "detail": url.get("detail") or "auto",
            "max_crops": url.get("max_crops"),
        }
        if part_type == "image_url":
            return Image(source, **options)
        return Video(source, url.get("frames", Video.frames), **options)
    if part_type == "input_audio":
        return Audio(_parse_data(part["input_audio"], root))
    value = part.get(part_type) if isinstance(part_type, str) else None
    if (
        isinstance(part_type, str)
        and isinstance(value, Mapping)
        and ("data" in value or "path" in value)
    ):
        return Item(part_type, _parse_data(value, root))
    raise ValueError(
        f"unknown part type {part_type!r}; expected text, image_url, input_audio, video_url, or the name of a further "
        "modality with an object of its data or path"
    )


def _parse_data(value: Mapping[str, Any], root: Path | None) -> MediaSource:
    return (
        base64.b64decode(value["data"]) if "data" in value else _parse_source(value["path"], root)
    )


def tool_call(value: Any) -> dict[str, Any]:
    """A tool call as {"name", "arguments"}, from OpenAI's format or a plain one; raises ValueError for other values."""
    call = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise ValueError(f"expected a tool call with a name and arguments, found {value!r:.80}")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise ValueError(
                f"the arguments of a call of {call['name']} are no JSON: {arguments!r:.80}"
            ) from None
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"the arguments of a call of {call['name']} are no object: {arguments!r:.80}"
        )
    return {"name": call["name"], "arguments": dict(arguments)}


def call_text(calls: Iterable[Any]) -> str:
    """Tool calls in the model's format: JSON between the two marks."""
    text = json.dumps([tool_call(call) for call in calls], ensure_ascii=False)
    # Marks inside an argument would be encoded as control tokens; JSON strings may escape "<":
    text = text.replace(CALL, "\\u003c" + CALL[1:]).replace(CALL_END, "\\u003c" + CALL_END[1:])
    return f"{CALL}{text}{CALL_END}"


def with_calls(
    parts: Iterable[Part], calls: Iterable[Any], role: str = "assistant"
) -> tuple[Part, ...]:
    """A message's parts with its tool calls appended; only an assistant's calls get control tokens."""
    part_class = Calls if role == "assistant" else Text
    return (*(part for part in parts if part != Text("")), part_class(call_text(calls)))


def functions(tools: Any) -> list[dict[str, Any]] | None:
    """The list of functions in OpenAI's list of tools (or its JSON) or a list of functions; None for an empty one."""
    if isinstance(tools, str):
        tools = json.loads(tools) if tools.strip() else None
    if not tools:
        return None
    if not isinstance(tools, list):
        raise ValueError(f"expected a list of tools, found {type(tools).__name__}")
    function_list = [t.get("function", t) if isinstance(t, Mapping) else t for t in tools]
    for tool in function_list:
        if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str):
            raise ValueError(f"a tool is an object with a name, found {tool!r:.80}")
    return [dict(tool) for tool in function_list]


def with_tools(messages: Sequence[Message], tools: Any) -> tuple[Message, ...]:
    """A conversation with tools (as for `functions`) on its system message, which is added if there is none."""
    if (function_list := functions(tools)) is None:
        return tuple(messages)
    text = json.dumps(function_list, ensure_ascii=False)
    if messages and messages[0].role == "system":
        return (Message("system", messages[0].parts, text), *messages[1:])
    return (Message("system", (), text), *messages)


def _parse_source(url: str, root: Path | None) -> MediaSource:
    if url.startswith("data:"):
        return base64.b64decode(url.partition(",")[2])
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
    """The modalities of a conversation beside text, in the order of their first part."""
    parts = (part for message in messages for part in message.parts)
    return list(dict.fromkeys(part.modality for part in parts if not isinstance(part, Text)))


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


@dataclass(frozen=True)
class Grammar:
    """The required form of an answer. `kind`: "json" (`text` is a JSON schema), "regex" (the whole answer matches it),
    "ebnf" (a context-free grammar in Lark or GBNF, engine/grammars.py) or "tools" (a JSON list of tools: the answer
    is calls of them).

    Only for "tools": `max_calls` limits the number of calls in the answer; with an `alternative` of another kind the
    model chooses between calls and an answer of that form."""

    kind: Literal["json", "regex", "ebnf", "tools"]
    text: str
    max_calls: int | None = None
    alternative: "Grammar | None" = None


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters. Temperature 0 is greedy. `stop` strings and `stop_token_ids` end the answer and are not part
    of it, unless `include_stop` is set; with `stop_at_call` the first complete tool call ends it too (engine/tools.py)
    and is part of it. `min_tokens`: neither an end token nor a stop string ends the answer before. `ignore_eos`: end
    tokens don't end it. A grammar takes precedence over both: an answer always ends where its grammar does.

    `min_p` drops tokens below this fraction of the highest probability. `repetition_penalty` divides (logits above 0)
    or multiplies (below) the logit of every token of prompt and answer; `presence_penalty` (once) and
    `frequency_penalty` (for each occurrence) are subtracted for tokens of the answer. `logit_bias`: pairs of a token id
    and a number from -100 to 100 that is added to its logit. `skip_special_tokens`: whether control tokens that the
    model samples are left out of the text (those of tool calls never are). `logprobs`: return the
    log-probability of each token and of this many most likely ones; `prompt_logprobs`: the same for the prompt's
    tokens; with it `max_tokens` may be 0. `n` answers are sampled, the i-th with seed + i. `draft`: maximum draft
    tokens per step of speculative decoding from prompt and answer, which never changes the answer; "auto": the engine
    decides. `rope`: "dynamic" recomputes a sequence that grows past the LongRoPE switch with the long table, as the
    published code does; "bound" selects the table for prompt and `max_tokens` together from the start.

    `reasoning`: the answer may begin with `<think>...</think>` (engine/reasoning.py), closed after `reasoning_budget`
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
    stop_at_call: bool = False
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    logit_bias: tuple[tuple[int, float], ...] = ()
    reasoning: bool = False
    reasoning_budget: int | None = None


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


@dataclass(frozen=True)
class Completion:
    """An answer with its token counts and adapter. `tokens`: the generated ids without the end token; `text` is "" if
    the model has no tokenizer. `input_tokens`: those of `prompt_tokens` that images, audio and further modalities have,
    by modality. `rope`: the LongRoPE tables that were used; `cached`: prompt tokens from the prefix
    cache; `others`: answers 2 to n. `prompt_logprobs`, if requested, has an entry for each prompt token but the
    first. `reasoning_tokens`: those of a `<think>` block, with `SamplingParams.reasoning`. `stop_reason`: the stop
    string or the id of `stop_token_ids` that ended the answer, otherwise None."""

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
    others: tuple["Completion", ...] = ()
    reasoning_tokens: int = 0
    stop_reason: str | int | None = None

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
