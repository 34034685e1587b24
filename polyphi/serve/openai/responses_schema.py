"""The request body of the Responses API, and its items as turns.

Fields that can't change an answer here are ignored; those that a client relies on and this server doesn't have
(`background`, `conversation`, built-in tools, references to items, files) are errors.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, Tag, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from polyphi.serve.answer.conversation import (
    ROLES,
    InputTurn,
    MediaPart,
    file_data,
    with_call_parts,
)
from polyphi.serve.http import refusals
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.fields import (
    FAST,
    LIST,
    MAX_TEXT,
    STRING,
    Fields,
    FileName,
    JsonObject,
    JsonText,
    MediaText,
    Refused,
    json_type,
    one_of,
    one_of_types,
)
from polyphi.serve.openai.extensions import Effort, ReasoningVariables
from polyphi.serve.openai.schema import InputAudio, RefusalPart, Sampling
from polyphi.types.parts import Text
from polyphi.types.sampling import Grammar

MAX_ITEMS = 10_000
CACHE = "prompt_cache_breakpoint"


class InputText(Fields):
    ignored = frozenset({CACHE})

    type: Literal["input_text"]
    text: str = Field(max_length=MAX_TEXT)


class InputImage(Fields):
    ignored = frozenset({CACHE})

    type: Literal["input_image"]
    image_url: MediaText = Field(
        description="A data URL, or an address if the server fetches from it."
    )
    detail: Literal["auto", "low", "high", "original"] | None = None
    file_id: None = Field(default=None, description="Files can't be uploaded; send a data URL.")


class InputAudioItem(Fields):
    ignored = frozenset({CACHE})

    type: Literal["input_audio"]
    input_audio: InputAudio


class InputFile(Fields):
    ignored = frozenset({CACHE})
    refused: ClassVar[Refused] = {"file_id": ()}

    type: Literal["input_file"]
    file_data: MediaText | None = Field(default=None, description="A data URL, or base64 alone.")
    file_url: MediaText | None = Field(
        default=None, description="An address, if the server fetches from it."
    )
    filename: FileName | None = None
    detail: Literal["auto", "low", "high"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.file_data is None) == (self.file_url is None):
            raise PydanticCustomError(
                "no_source", "expected either file_data or file_url, not both or neither"
            )
        return self


class OutputText(Fields):
    ignored = frozenset({"annotations", "logprobs", "parsed"})

    type: Literal["output_text"]
    text: str = Field(max_length=MAX_TEXT)


PARTS = {
    type_: f"<{type_}>"
    for type_ in (
        "input_text",
        "input_image",
        "input_audio",
        "input_file",
        "output_text",
        "refusal",
    )
}


ContentPart = Annotated[
    Annotated[InputText, Tag(PARTS["input_text"])]
    | Annotated[InputImage, Tag(PARTS["input_image"])]
    | Annotated[InputAudioItem, Tag(PARTS["input_audio"])]
    | Annotated[InputFile, Tag(PARTS["input_file"])]
    | Annotated[OutputText, Tag(PARTS["output_text"])]
    | Annotated[RefusalPart, Tag(PARTS["refusal"])],
    one_of_types(PARTS, "a part"),
]
Content = Annotated[
    Annotated[str, Field(max_length=MAX_TEXT), Tag(STRING)]
    | Annotated[list[ContentPart], FAST, Tag(LIST)],
    one_of(json_type, "a text or a list of parts"),
]


class InputMessage(Fields):
    ignored = frozenset({"id", "status", "phase"})

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class FunctionCall(Fields):
    ignored = frozenset(
        ["id", "status", "caller", "namespace", "async", "async_", "created_by", "parsed_arguments"]
    )

    type: Literal["function_call"]
    name: str = Field(max_length=256)
    arguments: JsonText
    call_id: str | None = Field(default=None, max_length=256)


class FunctionCallOutput(Fields):
    ignored = frozenset(["id", "status", "caller", "namespace", "created_by", "name"])

    type: Literal["function_call_output"]
    output: Content
    call_id: str | None = Field(default=None, max_length=256)


class ReasoningItem(Fields):
    """Reasoning of an earlier answer, which isn't part of the next prompt."""

    ignored = frozenset(["id", "status", "summary", "content", "encrypted_content"])

    type: Literal["reasoning"]


ITEMS = {
    type_: f"<{type_}>"
    for type_ in ("message", "function_call", "function_call_output", "reasoning")
}


Item = Annotated[
    Annotated[InputMessage, Tag(ITEMS["message"])]
    | Annotated[FunctionCall, Tag(ITEMS["function_call"])]
    | Annotated[FunctionCallOutput, Tag(ITEMS["function_call_output"])]
    | Annotated[ReasoningItem, Tag(ITEMS["reasoning"])],
    one_of_types(ITEMS, "an item", default="message"),
]
_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


def _is_function(value: Any) -> Any:
    type_ = value.get("type") if isinstance(value, dict) else "function"
    if isinstance(type_, str) and type_ != "function":
        why = "no namespaces are known here; put their functions into tools"
        raise PydanticCustomError(
            "no_member",
            "expected a tool of type 'function' ({why})",
            {"why": why if type_ == "namespace" else refusals.NO_TOOLS},
        )
    return value


class FunctionTool(Fields):
    ignored = frozenset({"async", "allowed_callers", "defer_loading", "output_schema"})

    type: Literal["function"]
    name: str = Field(max_length=256)
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    @property
    def function(self) -> dict[str, Any]:
        """The function as chat has it, without fields that have no value."""
        names = ("name", "description", "parameters", "strict")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


class FunctionChoice(Fields):
    type: Literal["function"]
    name: str = Field(max_length=256)


class AllowedFunctions(Fields):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice] = Field(max_length=128)


CHOICES = {"function": "<named function>", "allowed_tools": "<allowed tools>"}


def _choice_type(value: Any) -> str | None:
    type_ = value.get("type") if isinstance(value, dict) else None
    return CHOICES.get(type_) if isinstance(type_, str) else json_type(value)


class TextFormat(Fields):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(default=None, max_length=256)
    description: str | None = None
    schema_: JsonObject | None = Field(alias="schema", default=None)
    strict: bool | None = None


class TextOptions(Fields):
    ignored = frozenset({"verbosity"})

    format: TextFormat | None = None


class ReasoningOptions(Fields):
    ignored = frozenset({"context", "mode", "generate_summary"})

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        default=None, description="Ignored: the reasoning itself is returned."
    )


Metadata = dict[
    Annotated[str, Field(max_length=64)],
    Annotated[str, Field(max_length=512)],
]


class ResponsesRequest(Sampling):
    ignored = (Sampling.ignored | {"max_tool_calls"}) - {"metadata", "store"}
    refused: ClassVar[Refused] = {
        **Sampling.refused,
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "n": (1,),
        "prompt": (),
        "prompt_logprobs": (),
        "response_format": (),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "truncation": ("disabled",),
    }
    names: ClassVar[dict[str, str]] = {"max_tokens": "max_output_tokens"}

    input: Annotated[
        Annotated[str, Field(max_length=MAX_TEXT), Tag(STRING)]
        | Annotated[
            list[Item], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True), Tag(LIST)
        ],
        one_of(json_type, "a text or a list of items"),
    ]
    instructions: str | None = Field(default=None, max_length=MAX_TEXT)
    max_output_tokens: int | None = Field(default=None, ge=1)
    metadata: Metadata | None = Field(default=None, max_length=16)
    store: bool | None = None
    previous_response_id: str | None = Field(default=None, max_length=64)
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    thinking_token_budget: int | None = Field(default=None, ge=0)
    chat_template_kwargs: ReasoningVariables | None = None
    tools: list[Annotated[FunctionTool, BeforeValidator(_is_function)]] | None = Field(
        default=None, max_length=128
    )
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag(STRING)]
            | Annotated[FunctionChoice, Tag(CHOICES["function"])]
            | Annotated[AllowedFunctions, Tag(CHOICES["allowed_tools"])],
            one_of(_choice_type, "'none', 'auto', 'required', a function or allowed_tools"),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    include: Annotated[list[str], FAST] | None = Field(default=None, max_length=32)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    def _grammars(self) -> Iterator[tuple[str, Grammar]]:
        response = self.text.format if self.text else None
        if response is not None and response.type != "text":
            schema = response.schema_ if response.type == "json_schema" else {"type": "object"}
            if schema is None:
                raise ApiError(
                    400, "expected a JSON schema, found none", param="text.format.schema"
                )
            yield "text.format", Grammar("json", json.dumps(schema))
        yield from super()._grammars()


def stored_items(values: Sequence[Any]) -> list[Item]:
    """The items of stored JSON."""
    return _ITEMS.validate_python(values)


def item_turns(items: Sequence[Item], path: str) -> list[InputTurn]:
    """The turns of items, whose path in the request is `path[0]`, `path[1]`, ... Calls belong to the assistant's
    message before them."""
    turns: list[InputTurn] = []
    calls: list[tuple[str, FunctionCall]] = []

    def flush() -> None:
        if not calls:
            return
        before = turns.pop().parts if turns and turns[-1].role == "assistant" else ()
        functions = [{"name": call.name, "arguments": call.arguments} for _, call in calls]
        turns.append(InputTurn("assistant", with_call_parts(before, functions, calls[0][0])))
        calls.clear()

    for number, item in enumerate(items):
        if isinstance(item, ReasoningItem):
            continue
        if isinstance(item, FunctionCall):
            calls.append((f"{path}[{number}].arguments", item))
            continue
        flush()
        if isinstance(item, InputMessage):
            parts = _parts(item.content, f"{path}[{number}].content")
            turns.append(InputTurn(ROLES.get(item.role, item.role), parts))
        else:
            parts = _parts(item.output, f"{path}[{number}].output")
            turns.append(InputTurn("tool_response", parts))
    flush()
    return turns


def _parts(content: str | list[ContentPart], path: str) -> tuple[Text | MediaPart, ...]:
    if isinstance(content, str):
        return (Text(content),)
    return tuple(_part(part, f"{path}[{i}]") for i, part in enumerate(content))


def _part(part: ContentPart, path: str) -> Text | MediaPart:
    if isinstance(part, InputImage):
        detail = part.detail or "auto"
        return MediaPart(
            "image",
            part.image_url,
            f"{path}.image_url",
            detail="auto" if detail == "original" else detail,
        )
    if isinstance(part, InputAudioItem):
        data_path = f"{path}.input_audio.data"
        return MediaPart("audio", part.input_audio.data, data_path, encoded=True)
    if isinstance(part, InputFile):
        return _file(part, path)
    return Text(part.refusal if isinstance(part, RefusalPart) else part.text)


def _file(part: InputFile, path: str) -> MediaPart:
    name, detail = part.filename or "", part.detail or "auto"
    if part.file_data is not None:
        return file_data(part.file_data, name, f"{path}.file_data", detail)
    assert part.file_url is not None
    return MediaPart("document", part.file_url, f"{path}.file_url", name=name, detail=detail)
