"""The request bodies in OpenAI's format, as pydantic models that reject unknown fields.

OpenAI's fields that can't change an answer of this model (`user`, `store`, ...) are accepted and ignored. Any other
unknown field is an error that suggests the nearest known name, because to ignore a misspelt option would give a wrong
answer. Values are checked where they are used: sampling in engine/sampling.py, media in fetch.py.
"""

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from polyphi.messages import Grammar, SamplingParams, functions
from polyphi.serve.errors import ApiError
from polyphi.serve.fields import (
    BOOLEAN,
    FAST,
    LIST,
    MAX_TEXT,
    OBJECT,
    STRING,
    Body,
    Fields,
    json_type,
    needs,
    one_of,
)

STRINGS, TOKENS, TOKEN_LISTS = "<strings>", "<tokens>", "<lists of tokens>"
PARTS = {
    type_: f"<{type_}>" for type_ in ("text", "image_url", "input_audio", "audio_url", "refusal")
}


def _prompt_type(value: Any) -> str | None:
    if not isinstance(value, list):
        return json_type(value)
    first = type(value[0]) if value else str
    return {int: TOKENS, list: TOKEN_LISTS}.get(first, STRINGS)


def _part_type(value: Any) -> str | None:
    type_ = value.get("type") if isinstance(value, dict) else None
    return PARTS.get(type_) if isinstance(type_, str) else None


class TextPart(Fields):
    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)


class ImageUrl(Fields):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"
    max_crops: int | None = Field(default=None, ge=1, le=256)


class ImagePart(Fields):
    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Fields):
    data: str
    format: str | None = Field(
        default=None, description="Ignored: the format is detected from the bytes.", max_length=40
    )


class AudioPart(Fields):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrl(Fields):
    url: str


class AudioUrlPart(Fields):
    type: Literal["audio_url"]
    audio_url: AudioUrl


class RefusalPart(Fields):
    type: Literal["refusal"]
    refusal: str = Field(max_length=MAX_TEXT)


Part = Annotated[
    Annotated[TextPart, Tag(PARTS["text"])]
    | Annotated[ImagePart, Tag(PARTS["image_url"])]
    | Annotated[AudioPart, Tag(PARTS["input_audio"])]
    | Annotated[AudioUrlPart, Tag(PARTS["audio_url"])]
    | Annotated[RefusalPart, Tag(PARTS["refusal"])],
    one_of(_part_type, f"a part with a type of {', '.join(PARTS)}"),
]


class Function(Fields):
    ignored = frozenset({"parsed_arguments"})  # OpenAI's client adds it to parsed answers

    name: str = Field(max_length=256)
    arguments: str = Field(default="{}", max_length=MAX_TEXT)


class Call(Fields):
    ignored = frozenset({"index"})

    id: str | None = Field(default=None, max_length=256)
    type: Literal["function"] = "function"
    function: Function


class Turn(Fields):
    """A message. Fields that other servers add to their answers are ignored."""

    ignored = frozenset(
        [
            "name",
            "refusal",
            "audio",
            "annotations",
            "function_call",
            "reasoning_content",
            "reasoning",
            "parsed",
        ]
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[str, Field(max_length=MAX_TEXT), Tag(STRING)]
            | Annotated[list[Part], FAST, Tag(LIST)],
            one_of(json_type, "a text or a list of parts"),
        ]
        | None
    ) = None
    tool_calls: list[Call] | None = Field(default=None, max_length=128)
    tool_call_id: str | None = Field(default=None, max_length=256)


class JsonSchema(Fields):
    name: str | None = Field(default=None, max_length=256)
    description: str | None = None
    schema_: Annotated[
        Annotated[dict[str, Any], Tag(OBJECT)] | Annotated[bool, Tag(BOOLEAN)],
        one_of(json_type, "a JSON schema: an object, true or false"),
    ] = Field(alias="schema", default=True)
    strict: bool | None = None


class ResponseFormat(Fields):
    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: JsonSchema | None = None
    regex: str | None = None


class StreamOptions(Fields):
    ignored = frozenset({"include_obfuscation"})

    include_usage: bool = False


class Tool(Fields):
    type: Literal["function"]
    function: dict[str, Any]


class NamedFunction(Fields):
    name: str


class NamedTool(Fields):
    type: Literal["function"]
    function: NamedFunction


IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "verbosity",
        "prediction",
    }
)
Number = float | None
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Sampling(Body):
    """The sampling fields of all routes that generate text. Without them, decoding is greedy. `names`: of fields that
    have another name than in `SamplingParams`."""

    ignored = IGNORED
    names: ClassVar[dict[str, str]] = {"grammar": "response_format"}

    model: str | None = Field(default=None, max_length=512)
    adapter: str | None = Field(default="auto", max_length=256)
    temperature: Number = None
    top_p: Number = None
    top_k: int | None = None
    min_p: Number = None
    repetition_penalty: Number = None
    presence_penalty: Number = None
    frequency_penalty: Number = None
    seed: int | None = None
    stop: (
        Annotated[
            Annotated[str, Field(max_length=256), Tag(STRING)]
            | Annotated[list[str], FAST, Tag(LIST)],
            one_of(json_type, "a text or a list of texts"),
        ]
        | None
    ) = None
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _refuse_options_without_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise needs("stream_options", "stream")
        return self

    def sampling(
        self, *, grammar: Grammar | None, max_tokens: int | None, logprobs: int | None
    ) -> SamplingParams:
        """The fields as `SamplingParams`. Without a length `max_tokens` is 0, without a seed a random one is drawn.
        Raises ApiError for unsupported values."""
        if self.logit_bias:
            raise ApiError(400, "logit_bias isn't supported; leave it out", param="logit_bias")
        if max_tokens is not None and max_tokens < 1:
            raise ApiError(400, "max_tokens: expected at least 1", param="max_tokens")
        names = (
            "temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty n"
        )
        values = {name: getattr(self, name) for name in names.split()}
        return SamplingParams(
            max_tokens=max_tokens or 0,
            seed=secrets.randbits(62) if self.seed is None else self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            grammar=grammar,
            logprobs=logprobs,
            **{name: value for name, value in values.items() if value is not None},
        )

    def grammar(self) -> Grammar | None:
        """The grammar of `response_format`, None for free text."""
        response = self.response_format
        if response is None or response.type == "text":
            return None
        if response.type == "json_object":
            return Grammar("json", '{"type": "object"}')
        if response.type == "regex":
            if response.regex is None:
                raise ApiError(
                    400, "expected a regular expression, found none", param="response_format.regex"
                )
            return Grammar("regex", response.regex)
        if response.json_schema is None:
            raise ApiError(
                400, "expected a JSON schema, found none", param="response_format.json_schema"
            )
        return Grammar("json", json.dumps(response.json_schema.schema_))


class ChatRequest(Sampling):
    messages: list[Turn] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag(STRING)]
            | Annotated[NamedTool, Tag(OBJECT)],
            one_of(json_type, "'none', 'auto', 'required' or an object that names a function"),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    thinking_token_budget: int | None = Field(default=None, ge=0)
    modalities: Annotated[list[Literal["text"]], FAST] | None = None

    @model_validator(mode="after")
    def _refuse_top_without_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise needs("top_logprobs", "logprobs")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def available_tools(
    tools: Sequence[Tool], choice: Literal["none", "auto", "required"] | NamedTool | None = None
) -> list[dict[str, Any]]:
    """The functions that the model may call. Raises ApiError for an invalid tool, two tools with one name, or a choice
    that isn't among the tools."""
    try:
        available = functions([tool.function for tool in tools]) or []
    except ValueError as error:
        raise ApiError(400, str(error), param="tools") from None
    for name, count in Counter(tool["name"] for tool in available).most_common(1):
        if count > 1:
            raise ApiError(
                400,
                f"tools: expected each name once, found {count} tools named {name!r:.80}; rename or leave out all but "
                "one of them",
                param="tools",
            )
    if choice == "none":
        return []
    if choice == "required" and not available:
        raise ApiError(
            400, "tool_choice is 'required', but the request has no tools", param="tools"
        )
    if not isinstance(choice, NamedTool):
        return available
    if matches := [tool for tool in available if tool["name"] == choice.function.name]:
        return matches
    raise ApiError(
        400,
        f"tool_choice names {choice.function.name!r:.80}, which is not among the tools",
        param="tool_choice.function.name",
    )


Ids = Annotated[list[int], FAST]


class CompletionRequest(Sampling):
    prompt: Annotated[
        Annotated[str, Field(max_length=MAX_TEXT), Tag(STRING)]
        | Annotated[list[str], Field(max_length=MAX_TEXT, fail_fast=True), Tag(STRINGS)]
        | Annotated[list[int], Field(max_length=MAX_TEXT, fail_fast=True), Tag(TOKENS)]
        | Annotated[list[Ids], Field(max_length=MAX_TEXT, fail_fast=True), Tag(TOKEN_LISTS)],
        one_of(_prompt_type, "a text, a list of texts, token ids or lists of token ids"),
    ] = ""
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None


class TokenizeRequest(Body):
    model: str | None = None
    prompt: str | None = Field(default=None, max_length=MAX_TEXT)
    messages: Annotated[list[Turn], FAST] | None = Field(default=None, min_length=1)
    tools: list[Tool] | None = Field(default=None, max_length=128)


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[int] = Field(max_length=1_000_000, fail_fast=True)
