"""The request body of Anthropic's Messages API, and its messages as turns.

`cache_control` and other hints that can't change an answer are ignored. Stored files, citations, and tools that
Anthropic's servers run are errors.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, Tag
from pydantic_core import PydanticCustomError

from polyphi.engine.rows import PromptEnd
from polyphi.serve.answer.conversation import InputTurn, MediaPart, with_call_parts
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.fields import (
    FAST,
    LIST,
    MAX_TEXT,
    STRING,
    Fields,
    FileName,
    JsonObject,
    MediaText,
    Refused,
    json_type,
    one_of,
    one_of_types,
    refuse,
)
from polyphi.serve.openai.extensions import Effort
from polyphi.serve.openai.schema import Sampling
from polyphi.types.parts import Text, file_text
from polyphi.types.sampling import Grammar


class TextBlock(Fields):
    ignored = frozenset({"cache_control", "citations", "parsed_output"})

    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)


class Base64Source(Fields):
    type: Literal["base64"]
    data: MediaText
    media_type: str | None = Field(
        default=None,
        description="The format is detected from the bytes. A document may not declare an image, audio or an archive.",
        max_length=80,
    )


class UrlSource(Fields):
    type: Literal["url"]
    url: MediaText


SOURCES = {"base64": "<base64>", "url": "<url>"}


class ImageBlock(Fields):
    ignored = frozenset({"cache_control", "transformations"})

    type: Literal["image"]
    source: Annotated[
        Annotated[Base64Source, Tag(SOURCES["base64"])] | Annotated[UrlSource, Tag(SOURCES["url"])],
        one_of_types(SOURCES, "a source"),
    ]


class TextSource(Fields):
    ignored = frozenset({"media_type"})

    type: Literal["text"]
    data: str = Field(max_length=MAX_TEXT)


CONTENT_BLOCKS = {"text": "<text>", "image": "<image>"}
ContentBlock = Annotated[
    Annotated[TextBlock, Tag(CONTENT_BLOCKS["text"])]
    | Annotated[ImageBlock, Tag(CONTENT_BLOCKS["image"])],
    one_of_types(CONTENT_BLOCKS, "a block"),
]


class ContentSource(Fields):
    type: Literal["content"]
    content: Annotated[
        Annotated[str, Field(max_length=MAX_TEXT), Tag(STRING)]
        | Annotated[list[ContentBlock], FAST, Tag(LIST)],
        one_of(json_type, "a text or a list of blocks"),
    ]


class Citations(Fields):
    enabled: Annotated[bool, refuse(True, "answers have no citations here")] | None = None


DOCUMENT_SOURCES = {**SOURCES, "text": "<text>", "content": "<content>", "file": "<file>"}


def _refuse_file(value: Any) -> Any:
    raise PydanticCustomError(
        "no_files", "expected base64, a URL or text, because this server stores no files"
    )


class DocumentBlock(Fields):
    ignored = frozenset({"cache_control"})

    type: Literal["document"]
    source: Annotated[
        Annotated[Base64Source, Tag(DOCUMENT_SOURCES["base64"])]
        | Annotated[UrlSource, Tag(DOCUMENT_SOURCES["url"])]
        | Annotated[TextSource, Tag(DOCUMENT_SOURCES["text"])]
        | Annotated[ContentSource, Tag(DOCUMENT_SOURCES["content"])]
        | Annotated[None, BeforeValidator(_refuse_file), Tag(DOCUMENT_SOURCES["file"])],
        one_of_types(DOCUMENT_SOURCES, "a source"),
    ]
    title: FileName | None = None
    context: str | None = Field(default=None, max_length=MAX_TEXT)
    citations: Citations | None = None


class ToolUseBlock(Fields):
    ignored = frozenset({"cache_control", "caller", "toolset_name"})

    type: Literal["tool_use"]
    id: str = Field(max_length=256)
    name: str = Field(max_length=256)
    input: JsonObject


RESULT_BLOCKS = {**CONTENT_BLOCKS, "document": "<document>"}
ResultBlock = Annotated[
    Annotated[TextBlock, Tag(RESULT_BLOCKS["text"])]
    | Annotated[ImageBlock, Tag(RESULT_BLOCKS["image"])]
    | Annotated[DocumentBlock, Tag(RESULT_BLOCKS["document"])],
    one_of_types(RESULT_BLOCKS, "a block"),
]


class ToolResultBlock(Fields):
    ignored = frozenset({"cache_control", "is_error", "toolset_name"})

    type: Literal["tool_result"]
    tool_use_id: str = Field(max_length=256)
    content: (
        Annotated[
            Annotated[str, Field(max_length=MAX_TEXT), Tag(STRING)]
            | Annotated[list[ResultBlock], FAST, Tag(LIST)],
            one_of(json_type, "a text or a list of blocks"),
        ]
        | None
    ) = None


class ThinkingBlock(Fields):
    """Reasoning of an earlier answer, which isn't part of the next prompt."""

    ignored = frozenset({"thinking", "signature", "data", "cache_control"})

    type: Literal["thinking", "redacted_thinking"]


BLOCKS = {
    **RESULT_BLOCKS,
    "tool_use": "<tool_use>",
    "tool_result": "<tool_result>",
    "thinking": "<thinking>",
    "redacted_thinking": "<thinking>",
}
Block = Annotated[
    Annotated[TextBlock, Tag(BLOCKS["text"])]
    | Annotated[ImageBlock, Tag(BLOCKS["image"])]
    | Annotated[DocumentBlock, Tag(BLOCKS["document"])]
    | Annotated[ToolUseBlock, Tag(BLOCKS["tool_use"])]
    | Annotated[ToolResultBlock, Tag(BLOCKS["tool_result"])]
    | Annotated[ThinkingBlock, Tag(BLOCKS["thinking"])],
    one_of_types(BLOCKS, "a block"),
]


class MessageParam(Fields):
    ignored = frozenset({"id"})

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[str, Field(max_length=MAX_TEXT), Tag(STRING)]
        | Annotated[list[Block], FAST, Tag(LIST)],
        one_of(json_type, "a text or a list of blocks"),
    ]


def _is_custom(value: Any) -> Any:
    type_ = value.get("type") if isinstance(value, dict) else None
    if isinstance(type_, str) and type_ != "custom":
        raise PydanticCustomError(
            "no_member",
            "expected a tool of type 'custom', because this server runs no tools itself",
        )
    return value


class ToolParam(Fields):
    ignored = frozenset(
        [
            "cache_control",
            "allowed_callers",
            "defer_loading",
            "eager_input_streaming",
            "input_examples",
        ]
    )

    type: Literal["custom"] | None = None
    name: str = Field(max_length=256)
    description: str | None = None
    input_schema: JsonObject
    strict: bool | None = None

    @property
    def function(self) -> dict[str, Any]:
        """The function as chat has it, without fields that have no value."""
        values = {
            "name": self.name,
            "description": self.description,
            "parameters": self.input_schema,
            "strict": self.strict,
        }
        return {name: value for name, value in values.items() if value is not None}


class ToolChoice(Fields):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(default=None, max_length=256)
    disable_parallel_tool_use: bool = False


class Thinking(Fields):
    ignored = frozenset({"display"})

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(default=None, ge=0)


class OutputFormat(Fields):
    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Fields):
    effort: Effort | None = None
    format: OutputFormat | None = None


class CountTokensRequest(Sampling):
    """The request to count a prompt's tokens: the fields of a prompt; those of sampling are accepted and have no effect
    on it."""

    ignored = Sampling.ignored | {
        "context_management",
        "inference_geo",
        "diagnostics",
        "speed",
        "user_profile_id",
        "workspace_id",
    }

    refused: ClassVar[Refused] = {
        **Sampling.refused,
        "container": (),
        "n": (1,),
        "prompt_logprobs": (),
        "response_format": (),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "stop": (),
        "stream_options": (),
        "thread": (),
    }
    names: ClassVar[dict[str, str]] = {"stop": "stop_sequences"}

    messages: list[MessageParam] = Field(min_length=1, fail_fast=True)
    system: (
        Annotated[
            Annotated[str, Field(max_length=MAX_TEXT), Tag(STRING)]
            | Annotated[list[TextBlock], FAST, Tag(LIST)],
            one_of(json_type, "a text or a list of text blocks"),
        ]
        | None
    ) = None
    tools: list[Annotated[ToolParam, BeforeValidator(_is_custom)]] | None = Field(
        default=None, max_length=128
    )
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    stop_sequences: list[str] | None = Field(default=None, max_length=64, fail_fast=True)
    max_tokens: int | None = Field(default=None, ge=1)

    def _grammars(self) -> Iterator[tuple[str, Grammar]]:
        response = self.output_config.format if self.output_config else None
        if response is not None:
            yield "output_config.format", Grammar("json", json.dumps(response.schema_))
        yield from super()._grammars()

    @property
    def reasoning_budget(self) -> int | None:
        """Most tokens of the reasoning; None for no limit."""
        if self.thinking is None:
            return None
        return 0 if self.thinking.type == "disabled" else self.thinking.budget_tokens


class MessagesRequest(CountTokensRequest):
    max_tokens: int = Field(ge=1)


def message_turns(body: CountTokensRequest) -> list[InputTurn]:
    """The turns of a request. Each tool result is a turn; other blocks of its message follow it. Raises ApiError for
    blocks that don't belong to their role."""
    turns: list[InputTurn] = []
    if body.system:
        blocks = body.system if isinstance(body.system, list) else []
        text = body.system if isinstance(body.system, str) else "".join(b.text for b in blocks)
        turns.append(InputTurn("system", (Text(text),)))
    for number, message in enumerate(body.messages):
        turns += _turns(message, f"messages[{number}].content")
    return turns


def prompt_end(body: CountTokensRequest) -> PromptEnd:
    """How the prompt ends: the answer continues a last message of the assistant. Raises ApiError if it has calls."""
    last, number = body.messages[-1], len(body.messages) - 1
    if last.role != "assistant":
        return "generation_prompt"
    if any(isinstance(block, ToolUseBlock) for block in last.content):
        raise ApiError(
            400,
            f"messages[{number}]: expected the results of its calls in a message of role 'user' after it, found none",
            param=f"messages[{number}]",
        )
    return "final_message"


def _turns(message: MessageParam, path: str) -> list[InputTurn]:
    if isinstance(message.content, str):
        return [InputTurn(message.role, (Text(message.content),))]
    results: list[InputTurn] = []
    parts: list[Text | MediaPart] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(message.content):
        block_path = f"{path}[{number}]"
        role = {ToolUseBlock: "assistant", ToolResultBlock: "user"}.get(type(block), message.role)
        if message.role != role:
            raise ApiError(
                400,
                f"{block_path}: expected a block of type {block.type!r} in a message of role {role!r}, found "
                f"{message.role!r}",
                param=block_path,
            )
        if isinstance(block, ToolUseBlock):
            calls.append({"name": block.name, "arguments": block.input})
        elif isinstance(block, ToolResultBlock):
            results.append(InputTurn("tool_response", _result(block, f"{block_path}.content")))
        elif not isinstance(block, ThinkingBlock):
            parts += _parts(block, block_path)
    whole = with_call_parts(parts, calls, path) if calls else tuple(parts)
    return [*results, InputTurn(message.role, whole)] if whole or not results else results


def _result(block: ToolResultBlock, path: str) -> tuple[Text | MediaPart, ...]:
    if isinstance(block.content, list):
        return tuple(
            part for i, inner in enumerate(block.content) for part in _parts(inner, f"{path}[{i}]")
        )
    return (Text(block.content or ""),)


def _parts(
    block: TextBlock | ImageBlock | DocumentBlock, path: str
) -> tuple[Text | MediaPart, ...]:
    if isinstance(block, DocumentBlock):
        context = (Text(f"{block.context}\n"),) if block.context else ()
        return (*context, *_document(block, f"{path}.source"))
    return (_part(block, path),)


def _document(block: DocumentBlock, path: str) -> tuple[Text | MediaPart, ...]:
    source, name = block.source, block.title or "document"
    if isinstance(source, UrlSource):
        return (MediaPart("document", source.url, f"{path}.url", name=name),)
    if isinstance(source, Base64Source):
        return (
            MediaPart(
                "document",
                source.data,
                f"{path}.data",
                encoded=True,
                name=name,
                media_type=source.media_type or "",
            ),
        )
    if isinstance(source, TextSource):
        return (file_text(name, source.data),)
    assert isinstance(source, ContentSource)
    if isinstance(source.content, str):
        return (file_text(name, source.content),)
    parts = (_part(one, f"{path}.content[{i}]") for i, one in enumerate(source.content))
    return (Text(f"File {name}:\n"), *parts, Text("\n"))


def _part(block: TextBlock | ImageBlock, path: str) -> Text | MediaPart:
    if isinstance(block, TextBlock):
        return Text(block.text)
    if isinstance(block.source, UrlSource):
        return MediaPart("image", block.source.url, f"{path}.source.url")
    return MediaPart("image", block.source.data, f"{path}.source.data", encoded=True)


def functions_of(tools: Sequence[ToolParam] | None) -> list[dict[str, Any]]:
    return [tool.function for tool in tools or ()]
