"""What people and data sets speak: a conversation is a list of `Message`s, each made of typed parts.

>>> Message.user(Image("cat.png"), Text("What is this?")).role
'user'

`SamplingParams`, `Completion`, `Delta` and `Transcript` are what goes in and comes out beside it, and `Generate` is
the protocol by which evaluation sees any model, local or remote. This leaf imports nothing of ours.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

MediaSource = str | Path | bytes
TRANSCRIBE = "Transcribe the audio clip into text."
"""The published prompt of a transcription."""
TRANSLATE = "Translate the audio to {}."
TRANSCRIBE_AND_TRANSLATE = (
    "Transcribe the audio to text, and then translate the audio to {}. "
    "Use <sep> as a separator between the original transcript and the translation."
)
"""Those of a translation, direct and by chain of thought; a language's English name is filled in."""
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
"""Around the JSON of a tool call in an assistant's text (processing/template.py)."""


@dataclass(frozen=True)
class Text:
    """Plain text. Control tokens written in it are ordinary characters, never control tokens."""

    text: str


@dataclass(frozen=True)
class Calls(Text):
    """Tool calls of an earlier answer, as `call_text` writes them: its two marks are control tokens, as they were when
    the model wrote them, and no others can be within them."""


Detail = Literal["auto", "low", "high"]


@dataclass(frozen=True)
class Image:
    """A picture: a path, or the encoded bytes of a PNG, JPEG, WebP or GIF file.

    `detail` is OpenAI's: "low" shows it in one crop beside its global view, which costs few tokens; "high" and "auto"
    in as many crops as it needs, up to the model's own most. `max_crops` is such a bound of one's own instead; a larger
    one than the model's changes nothing. Shards of training data keep neither.
    """

    source: MediaSource
    detail: Detail = "auto"
    max_crops: int | None = None

    def __post_init__(self) -> None:
        _check_detail(self.detail, self.max_crops)

    @property
    def most_crops(self) -> int | None:
        """The bound on crops that this picture asks for; None leaves it to the model."""
        return self.max_crops or (1 if self.detail == "low" else None)


@dataclass(frozen=True)
class Audio:
    """A clip: a path, the encoded bytes of a WAV, FLAC, OGG or MP3 file, or (float32 samples [n] in [-1, 1], rate
    in Hz)."""

    source: MediaSource | tuple[np.ndarray, int]


@dataclass(frozen=True)
class Video:
    """A video without its sound: a path, or the bytes of an MP4, WebM, Matroska or AVI file. `frames` pictures that
    cover its time evenly stand for it (16 as in the report's 4.1.1), each with this `detail` and `max_crops`."""

    source: MediaSource
    frames: int = 16
    detail: Detail = "auto"
    max_crops: int | None = None

    def __post_init__(self) -> None:
        _check_detail(self.detail, self.max_crops)
        if not _counts(self.frames):
            raise ValueError(f"a video is read as at least one frame, found {self.frames!r}")


Part = Text | Image | Audio | Video


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_detail(detail: Any, max_crops: Any) -> None:
    if detail not in get_args(Detail):
        raise ValueError(f"detail is auto, low or high, found {detail!r}")
    if max_crops is not None and not _counts(max_crops):
        raise ValueError(f"max_crops is a number from 1 on, found {max_crops!r}")


@dataclass(frozen=True)
class Message:
    """One turn. `tools` (a JSON list, as text) belongs on a system message, as the models' chat template has it."""

    role: str
    parts: tuple[Part, ...]
    tools: str | None = None

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
        *,
        video: bool = False,
    ) -> "Message":
        """A `Message`, or an OpenAI-style dict, as a `Message`.

        Parts may be `text`, `image_url` (a path or a base64 data URL, with `detail` and our own `max_crops` beside it),
        `input_audio` (base64 `data`, or `path`) and, only with `video=True`, `video_url` (likewise, with our own
        `frames`): a server decodes no videos of strangers. Relative paths are taken from `root`. Remote addresses are
        refused: fetching is the server's business.
        `tool_calls` stand at the end of the text as the model writes them; a tool's answer to one (role "tool" with a
        `tool_call_id`) gets the model's role "tool_response".
        """
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
        if called := value.get("tool_calls"):
            said = cls.parse({"role": role, "content": content or ()}, root, video=video).parts
            return cls(role, with_calls(said, called, role), tools)
        if isinstance(content, str):
            return cls(role, (Text(content),), tools)
        if not isinstance(content, Sequence):
            raise ValueError(
                f"message content must be text or a list of parts, found {type(content).__name__}"
            )
        return cls(role, tuple(_parse_part(p, root, video) for p in content), tools)


def _parse_part(part: Any, root: Path | None, video: bool) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return Text(part["text"])
    if kind == "image_url" or (kind == "video_url" and video):
        url = part[kind]
        url = url if isinstance(url, Mapping) else {"url": url}
        source = _parse_source(url["url"], root)
        bounds: dict[str, Any] = {
            "detail": url.get("detail") or "auto",
            "max_crops": url.get("max_crops"),
        }
        if kind == "image_url":
            return Image(source, **bounds)
        return Video(source, url.get("frames", Video.frames), **bounds)
    if kind == "input_audio":
        clip = part["input_audio"]
        return Audio(
            base64.b64decode(clip["data"]) if "data" in clip else _parse_source(clip["path"], root)
        )
    if kind == "video_url":
        raise ValueError(
            "videos aren't decoded here; send some of its frames as image_url parts, in their order"
        )
    raise ValueError(f"unknown part type {kind!r}; expected text, image_url or input_audio")


def tool_call(value: Any) -> dict[str, Any]:
    """A call as {"name", "arguments"}, from OpenAI's form or a plain one; raises ValueError for anything else."""
    call = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise ValueError(f"a tool call has a name and arguments, found {value!r:.80}")
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
    """Calls as the model writes them: JSON between the two marks."""
    text = json.dumps([tool_call(call) for call in calls], ensure_ascii=False)
    # Marks inside an argument would be read as control tokens; in JSON strings "<" may be written so:
    text = text.replace(CALL, "\\u003c" + CALL[1:]).replace(CALL_END, "\\u003c" + CALL_END[1:])
    return f"{CALL}{text}{CALL_END}"


def with_calls(
    parts: Iterable[Part], calls: Iterable[Any], role: str = "assistant"
) -> tuple[Part, ...]:
    """A message's parts with the tools that it called at their end; only an assistant's are the model's own words."""
    kind = Calls if role == "assistant" else Text
    return (*(part for part in parts if part != Text("")), kind(call_text(calls)))


def functions(tools: Any) -> list[dict[str, Any]] | None:
    """OpenAI's list of tools (or its JSON), or a list of functions, as the latter; None where there are none."""
    if isinstance(tools, str):
        tools = json.loads(tools) if tools.strip() else None
    if not tools:
        return None
    if not isinstance(tools, list):
        raise ValueError(f"expected a list of tools, found {type(tools).__name__}")
    found = [t.get("function", t) if isinstance(t, Mapping) else t for t in tools]
    for tool in found:
        if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str):
            raise ValueError(f"a tool is an object with a name, found {tool!r:.80}")
    return [dict(tool) for tool in found]


def with_tools(messages: Sequence[Message], tools: Any) -> tuple[Message, ...]:
    """A conversation with tools (as `functions` reads them) on its system message; one is made where there is none."""
    if (found := functions(tools)) is None:
        return tuple(messages)
    text = json.dumps(found, ensure_ascii=False)
    if messages and messages[0].role == "system":
        return (Message("system", messages[0].parts, text), *messages[1:])
    return (Message("system", (), text), *messages)


def _parse_source(url: str, root: Path | None) -> MediaSource:
    if url.startswith("data:"):
        return base64.b64decode(url.partition(",")[2])
    if "://" in url and not url.startswith("file://"):
        raise ValueError(
            f"remote media are not fetched here, found {url[:80]!r}; give a path or a data: URL"
        )
    path = Path(url.removeprefix("file://"))
    return path if root is None or path.is_absolute() else root / path


def media(messages: Sequence[Message], kind: type) -> list[Any]:
    """All parts of a kind (`Image`, `Audio`, `Video`) of a conversation, in order of appearance."""
    return [p for m in messages for p in m.parts if isinstance(p, kind)]


def adapter_for(messages: Sequence[Message]) -> str | None:
    """The adapter that a conversation's content calls for: image or video -> vision, audio only -> speech, text -> none
    (report 2.2; `input_mode` of the published code)."""
    if media(messages, Image) or media(messages, Video):
        return "vision"
    return "speech" if media(messages, Audio) else None


def normalize_adapter(adapter: str | None) -> str | None:
    """The name of an adapter as given, but None for "none"."""
    return None if adapter == "none" else adapter


@dataclass(frozen=True)
class TokensPrompt:
    """A prompt of token ids. `images` and `audios` fill the placeholders among the ids, in order: each image and clip
    has one placeholder, or a run of as many as it has tokens. They are what `Image` and `Audio` take (a path, bytes,
    (samples, rate)), or `Image`s and `Audio`s."""

    ids: Sequence[int]
    images: Sequence[Image | MediaSource] = ()
    audios: Sequence[Audio | MediaSource | tuple[np.ndarray, int]] = ()


@dataclass(frozen=True)
class Tokens:
    """What a conversation costs before anything runs; `text` counts control tokens too."""

    text: int = 0
    image: int = 0
    audio: int = 0

    @property
    def total(self) -> int:
        return self.text + self.image + self.audio


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like. `kind`: "json" (`text` is a JSON schema), "regex" (the whole answer matches it) or
    "tools" (a JSON list of tools: the answer is calls of them).

    Only for "tools": `max_calls` limits the number of calls in the answer; with an `alternative` of another kind the
    model chooses between calls and an answer of that form.
    """

    kind: Literal["json", "regex", "tools"]
    text: str
    max_calls: int | None = None
    alternative: "Grammar | None" = None


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens. Temperature 0 is greedy. `stop` strings end the answer and are not part of it; with
    `stop_at_call` the first complete tool call ends it too (engine/tools.py) and is part of it.

    `min_p` drops tokens less likely than that share of the likeliest. `repetition_penalty` divides (above 0) or
    multiplies (below) the score of every token of prompt and answer; `presence_penalty` and `frequency_penalty` are
    taken off for tokens of the answer, once or for every time. `logprobs` asks for the log-probability of each token
    and of so many likeliest ones, `prompt_logprobs` for the same of the prompt's tokens; with it `max_tokens` may be 0.
    `n` answers are drawn, the i-th with seed + i. `draft` tokens at most are guessed from prompt and answer in each
    step, as many as pay, which never changes the answer; "auto" leaves it to the engine. `rope`: "dynamic" runs a
    sequence that grows past the LongRoPE switch once more with the long table, as the published code does; "bound"
    takes the table of prompt and `max_tokens` together from the start.
    """

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


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer or a prompt, its natural log-probability before temperature and cuts, and the likeliest (id,
    log- probability) pairs in its place, the likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of a streamed answer; the last one carries `finish_reason` ("stop", "length" or "abort") and, where it is
    known, the whole answer with what it cost. `tokens` are the ids drawn since the piece before; joined they are
    `Completion.tokens`. An endpoint reports none."""

    text: str
    finish_reason: str | None = None
    completion: "Completion | None" = None
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Completion:
    """An answer, with what it cost and which adapter gave it. `tokens` are the generated ids without the one that ended
    the answer; `text` is "" where the model has no tokenizer. `rope` says which LongRoPE tables were used, `cached` how
    many prompt tokens were remembered from earlier requests, `others` holds answers 2 to n. `prompt_logprobs`, where
    asked for, has an entry for each prompt token but the first."""

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: str = "stop"
    adapter: str | None = None
    prompt_tokens: int = 0
    image_tokens: int = 0
    audio_tokens: int = 0
    rope: str = "short"
    cached: int = field(default=0, compare=False)
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    others: tuple["Completion", ...] = ()


TimeSource = Literal["window", "aligned", "estimated"]
"""How a time is known. "window": the model heard this piece of the recording alone, so its words were said in it.
"aligned": by the decoder's attention to the audio (engine/align.py). "estimated": by letters over voiced time."""


@dataclass(frozen=True)
class Word:
    """A word (a character where no spaces are written), from `start` to `end` in seconds."""

    text: str
    start: float
    end: float
    source: TimeSource = "estimated"


@dataclass(frozen=True)
class Segment:
    """A stretch of speech from `start` to `end` in seconds and what was said in it (its translation where only that was
    asked for; beside it where both were). `tokens` are the model's for `text`, `logprobs` their natural
    log-probabilities, none where the engine didn't tell, and `avg_logprob` the mean of these; `temperature` is the one
    that they were drawn at, `seek` where the piece of the recording that it was heard in begins, in seconds."""

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


@dataclass(frozen=True)
class Transcript:
    """What was said; `translation` when one was asked for. `warnings` tells what the reader must know, and when in the
    recording. `words` are there when asked for; both they and `segments` are in order of time and don't overlap.
    `adapter` and the numbers of tokens are those of all answers that it took, also of those asked for again."""

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
    """What is needed of whoever is only asked: no more than answers."""

    def generate(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = ...,
        adapter: str | None = "auto",
    ) -> Completion: ...


class Generate(Answers, Protocol):
    """What evaluation needs of a model: answers, and log-probabilities of given ones."""

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
