"""The request bodies in OpenAI's format, as pydantic models that reject unknown fields (fields.py).

Values are checked where they are used: sampling in engine/sampling.py, media in fetch.py. docs/fields.md lists every
field of every route; tests/core/serve/http/test_fields.py sends each one.
"""

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from polyphi.decoding.forms import CallRules
from polyphi.engine.rows import PromptEnd
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.fields import (
    FAST,
    LIST,
    MAX_TEXT,
    OBJECT,
    STRING,
    AnyObject,
    Fields,
    FileName,
    JsonText,
    MediaText,
    Refused,
    json_type,
    needs,
    one_of,
    one_of_types,
)
from polyphi.serve.openai.extensions import Effort, Extensions, TemplateOptions, reasoning_limits
from polyphi.types.sampling import Grammar, SamplingParams
from polyphi.types.tools import functions

STRINGS, TOKENS, TOKEN_LISTS = "<strings>", "<tokens>", "<lists of tokens>"
PARTS = {
    type_: f"<{type_}>"
    for type_ in ("text", "image_url", "input_audio", "audio_url", "video_url", "file", "refusal")
}


ITEM = "<item>"


def _item_tag(value: Mapping[str, Any]) -> str | None:
    """The member for a part of a further modality: its type names an object with data."""
    inner = value.get(value["type"])
    return ITEM if isinstance(inner, dict) and "data" in inner else None


def _prompt_type(value: Any) -> str | None:
    if not isinstance(value, list):
        return json_type(value)
    first = type(value[0]) if value else str
    return {int: TOKENS, list: TOKEN_LISTS}.get(first, STRINGS)


class PartFields(Fields):
    """A part of a message. Hints for caches of other servers are ignored."""

    ignored = frozenset({"cache_control", "prompt_cache_breakpoint", "uuid"})


class TextPart(PartFields):
    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)


class ImageUrl(Fields):
    ignored = frozenset({"format"})  # detected from the bytes

    url: MediaText
    detail: Literal["auto", "low", "high"] = "auto"
    max_crops: int | None = Field(default=None, ge=1, le=256)


class ImagePart(PartFields):
    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Fields):
    data: MediaText
    format: str | None = Field(
        default=None, description="Ignored: the format is detected from the bytes.", max_length=40
    )


class AudioPart(PartFields):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrl(Fields):
    url: MediaText


class AudioUrlPart(PartFields):
    type: Literal["audio_url"]
    audio_url: AudioUrl


class VideoUrl(Fields):
    url: MediaText
    frames: int = Field(default=16, ge=1, le=1024, description="Evenly spaced in time.")
    detail: Literal["auto", "low", "high"] = "auto"
    max_crops: int | None = Field(default=None, ge=1, le=256)


class VideoPart(PartFields):
    type: Literal["video_url"]
    video_url: VideoUrl


class FileData(Fields):
    refused: ClassVar[Refused] = {"file_id": ()}

    file_data: MediaText = Field(description="A data URL, or base64 alone.")
    filename: FileName | None = None


class FilePart(PartFields):
    type: Literal["file"]
    file: FileData


class ItemData(Fields):
    data: MediaText
    format: str | None = Field(
        default=None, description="Ignored: the modality's reader decides.", max_length=40
    )


class ItemPart(PartFields):
    """A part of a further modality, whose name is its type and the field of its data."""

    type: str
    item: ItemData

    @model_validator(mode="before")
    @classmethod
    def _from_named(cls, value: Any) -> Any:
        if isinstance(value, dict) and (name := value.get("type")) in value:
            others = {key: inner for key, inner in value.items() if key != name}
            return {**others, "item": value[name]}
        return value


class RefusalPart(PartFields):
    type: Literal["refusal"]
    refusal: str = Field(max_length=MAX_TEXT)


RequestPart = Annotated[
    Annotated[TextPart, Tag(PARTS["text"])]
    | Annotated[ImagePart, Tag(PARTS["image_url"])]
    | Annotated[AudioPart, Tag(PARTS["input_audio"])]
    | Annotated[AudioUrlPart, Tag(PARTS["audio_url"])]
    | Annotated[VideoPart, Tag(PARTS["video_url"])]
    | Annotated[FilePart, Tag(PARTS["file"])]
    | Annotated[RefusalPart, Tag(PARTS["refusal"])]
    | Annotated[ItemPart, Tag(ITEM)],
    one_of_types(PARTS, "a part", other=_item_tag),
]


class HistoryFields(Fields):
    """An object of an earlier answer. Clients and servers add fields to it, which don't belong to the prompt."""

    @classmethod
    def ignores_unknown(cls, value: Mapping[str, Any]) -> bool:
        return True


class Function(HistoryFields):
    name: str = Field(max_length=256)
    arguments: JsonText = "{}"


class Call(HistoryFields):
    id: str | None = Field(default=None, max_length=256)
    type: Literal["function"] = "function"
    function: Function


class Turn(Fields):
    """A message of a conversation. Fields that servers and clients add to earlier answers are ignored."""

    ignored = frozenset(
        [
            "annotations",
            "artifact",
            "cache_control",
            "id",
            "is_error",
            "metadata",
            "name",
            "parsed",
            "reasoning",
            "reasoning_content",
            "refusal",
            "status",
            "timestamp",
        ]
    )
    refused: ClassVar[Refused] = {
        "audio": (),
        "partial": (False,),  # `continue_final_message` under other names
        "prefix": (False,),
    }

    @classmethod
    def ignores_unknown(cls, value: Mapping[str, Any]) -> bool:
        return value.get("role") == "assistant"

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Annotated[
            Annotated[str, Field(max_length=MAX_TEXT), Tag(STRING)]
            | Annotated[list[RequestPart], FAST, Tag(LIST)],
            one_of(json_type, "a text or a list of parts"),
        ]
        | None
    ) = None
    tool_calls: list[Call] | None = Field(default=None, max_length=128)
    function_call: Function | None = None
    tool_call_id: str | None = Field(default=None, max_length=256)


class Tool(Fields):
    ignored = frozenset({"cache_control"})

    type: Literal["function"]
    function: AnyObject


class NamedFunction(Fields):
    name: str


class NamedTool(Fields):
    type: Literal["function"]
    function: NamedFunction


class ToolSelection(Fields):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(max_length=128)


class AllowedTools(Fields):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: ToolSelection


ALLOWED_TOOLS = "<allowed_tools>"


def _choice_type(value: Any) -> str | None:
    is_allowed = isinstance(value, dict) and value.get("type") == "allowed_tools"
    return ALLOWED_TOOLS if is_allowed else json_type(value)


FunctionChoice = Annotated[
    Annotated[Literal["none", "auto"], Tag(STRING)] | Annotated[NamedFunction, Tag(OBJECT)],
    one_of(json_type, "'none', 'auto' or an object that names a function"),
]
ToolMode = Literal["none", "auto", "required"]
ToolChoice = Annotated[
    Annotated[ToolMode, Tag(STRING)]
    | Annotated[NamedTool, Tag(OBJECT)]
    | Annotated[AllowedTools, Tag(ALLOWED_TOOLS)],
    one_of(
        _choice_type, "'none', 'auto', 'required' or an object that names a function or several"
    ),
]


class Sampling(Extensions):
    """The sampling fields of all routes that generate text. Without them, decoding is greedy. `names`: of fields that
    have another name than in `SamplingParams`."""

    names: ClassVar[Mapping[str, str]] = {}

    model: str | None = Field(default=None, max_length=512)
    adapter: str | None = Field(default="auto", max_length=256)
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
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

    def sampling(
        self, *, grammar: Grammar | None, max_tokens: int | None, logprobs: int | None
    ) -> SamplingParams:
        """The fields as `SamplingParams`. Without a length `max_tokens` is 0, without a seed a random one is drawn.
        Raises ApiError for unsupported values."""
        if max_tokens is not None and max_tokens < 1:
            raise ApiError(400, "max_tokens: expected at least 1", param="max_tokens")
        if max_tokens is not None and (self.min_tokens or 0) > max_tokens:
            raise ApiError(
                400,
                f"min_tokens: expected at most max_tokens, {max_tokens}, found {self.min_tokens}",
                param="min_tokens",
            )
        names = (
            "temperature top_p min_p repetition_penalty presence_penalty frequency_penalty n min_tokens ignore_eos "
            "skip_special_tokens prompt_logprobs"
        )
        values = {name: getattr(self, name) for name in names.split()}
        return SamplingParams(
            max_tokens=max_tokens or 0,
            seed=secrets.randbits(62) if self.seed is None else self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            grammar=grammar,
            logprobs=logprobs,
            top_k=0 if self.top_k == -1 else self.top_k or 0,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            include_stop=bool(self.include_stop_str_in_output),
            logit_bias=tuple(map(_bias, (self.logit_bias or {}).items())),
            **{name: value for name, value in values.items() if value is not None},
        )

    def sampling_field(self, message: str) -> str | None:
        """The field that an error about sampling parameters names."""
        parameters = {field.name for field in fields(SamplingParams)}
        named = [self.names.get(word, word) for word in message.split() if word in parameters]
        return next((name for name in named if name in type(self).model_fields), None)


def _bias(pair: tuple[str, float]) -> tuple[int, float]:
    """A token id and the number that is added to its logit."""
    name, bias = pair
    if not (name.isascii() and name.isdecimal() and len(name) < 10 and str(int(name)) == name):
        raise ApiError(
            400, f"logit_bias: expected token ids as names, found {name!r:.80}", param="logit_bias"
        )
    return int(name), bias


class ChatRequest(Sampling):
    ignored = Sampling.ignored | {"separate_reasoning", "stream_reasoning"}
    refused: ClassVar[Refused] = {
        **Sampling.refused,
        "audio": (),
        "chat_template": (),
        "echo": (False,),
        "web_search_options": (),
    }

    messages: list[Turn] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    functions: list[AnyObject] | None = Field(default=None, max_length=128)
    function_call: FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    reasoning_effort: Effort | None = None
    thinking_token_budget: int | None = Field(default=None, ge=0)
    modalities: Annotated[list[Literal["text"]], FAST] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise needs("top_logprobs", "logprobs")
        old = {"functions": self.functions, "function_call": self.function_call}
        used = [name for name, value in old.items() if value]
        if used and (self.tools or self.tool_choice):
            raise PydanticCustomError(
                "misplaced_field",
                "{field} is an old form of tools and tool_choice; send one of the two forms",
                {"field": used[0]},
            )
        return self

    @property
    def choice(self) -> ToolMode | NamedTool | AllowedTools | None:
        """The choice among the tools, also in the old form."""
        if isinstance(self.function_call, NamedFunction):
            return NamedTool(type="function", function=self.function_call)
        return self.function_call or self.tool_choice

    def available_tools(self) -> list[dict[str, Any]]:
        """The functions that the model may call, also in the old form. Raises ApiError as the function does."""
        if self.function_call is None and not self.functions:
            return available_tools(self.tools or (), self.choice)
        tools = [Tool(type="function", function=function) for function in self.functions or ()]
        return available_tools(tools, self.choice, "function_call.name")

    @property
    def reasoning(self) -> tuple[Effort | None, int | None]:
        """The effort and the budget of the reasoning."""
        own = self.reasoning_effort, self.thinking_token_budget
        return reasoning_limits(self.chat_template_kwargs, *own)

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def call_rules(self) -> CallRules:
        """Whether the answer must have a tool call, and may have several; in the old form it has one at most."""
        choice = self.choice
        if isinstance(choice, AllowedTools):
            mode: str | None = choice.allowed_tools.mode
        else:
            mode = "required" if isinstance(choice, NamedTool) else choice
        single = isinstance(choice, NamedTool) or self.parallel_tool_calls is False
        return CallRules(required=mode == "required", single=single or bool(self.functions))


def available_tools(
    tools: Sequence[Tool],
    choice: ToolMode | NamedTool | AllowedTools | None = None,
    name_path: str = "tool_choice.function.name",
) -> list[dict[str, Any]]:
    """The functions that the model may call. Raises ApiError for an invalid tool, two tools with one name, or a choice
    that isn't among the tools; `name_path`: the field with the name of one."""
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
    param, names = "", list[str]()
    if isinstance(choice, NamedTool):
        param, names = name_path, [choice.function.name]
    elif isinstance(choice, AllowedTools):
        param = "tool_choice.allowed_tools.tools"
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        choice = choice.allowed_tools.mode
    if param:
        available = selected_tools(available, names, param)
    if choice == "required" and not available:
        raise ApiError(
            400, "tool_choice requires a call, but the request has no tools", param=param or "tools"
        )
    return available


def selected_tools(
    tools: Sequence[dict[str, Any]], names: Sequence[str], param: str
) -> list[dict[str, Any]]:
    """The tools with these names. Raises ApiError for a name that none of them has; `param`: the field with it."""
    known = {tool["name"] for tool in tools}
    if unknown := next((name for name in names if name not in known), None):
        raise ApiError(
            400, f"{param} names {unknown!r:.80}, which is not among the tools", param=param
        )
    return [tool for tool in tools if tool["name"] in set(names)]


Ids = Annotated[list[int], FAST]
Prompts = Annotated[
    Annotated[str, Field(max_length=MAX_TEXT), Tag(STRING)]
    | Annotated[list[str], Field(max_length=MAX_TEXT, fail_fast=True), Tag(STRINGS)]
    | Annotated[list[int], Field(max_length=MAX_TEXT, fail_fast=True), Tag(TOKENS)]
    | Annotated[list[Ids], Field(max_length=MAX_TEXT, fail_fast=True), Tag(TOKEN_LISTS)],
    one_of(_prompt_type, "a text, a list of texts, token ids or lists of token ids"),
]


class CompletionRequest(Sampling):
    ignored = Sampling.ignored | {"include_reasoning", "reasoning_effort", "thinking_token_budget"}

    prompt: Prompts = ""
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None


class TokenizeRequest(Fields):
    ignored = frozenset({"add_special_tokens"})
    refused: ClassVar[Refused] = {"chat_template": (), "mm_processor_kwargs": ({},)}

    model: str | None = None
    prompt: str | None = Field(default=None, max_length=MAX_TEXT)
    messages: Annotated[list[Turn], FAST] | None = Field(default=None, min_length=1)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None


class DetokenizeRequest(Fields):
    model: str | None = None
    tokens: list[int] = Field(max_length=1_000_000, fail_fast=True)


def prompt_end(body: ChatRequest | TokenizeRequest) -> PromptEnd:
    """How the prompt of a conversation ends. Raises ApiError for an answer to continue with a generation prompt."""
    options = body.chat_template_kwargs or TemplateOptions()
    prompt, more = body.add_generation_prompt, body.continue_final_message
    prompt = options.add_generation_prompt if prompt is None else prompt
    more = options.continue_final_message if more is None else more
    if more and prompt:
        raise ApiError(
            400,
            "continue_final_message and add_generation_prompt exclude each other; set one of them to false",
            param="continue_final_message",
        )
    if more and (last := (body.messages or ())[-1:]) and last[0].role != "assistant":
        raise ApiError(
            400,
            f"continue_final_message requires an assistant's message at the end, found one of role {last[0].role!r}",
            param="continue_final_message",
        )
    if more:
        return "final_message"
    return "end_of_text" if prompt is False else "generation_prompt"
