"""The Responses API: items -> a conversation, and the model's answer -> items; responses are stored for later requests.

A response is stored unless `store` is false. Another request continues it by `previous_response_id`: its prompt is then
the items and outputs of the whole chain, and the new items.
"""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from polyphi.decoding.forms import CallRules, with_rules
from polyphi.decoding.output import Output
from polyphi.engine.request import Client
from polyphi.serve.answer.conversation import InputTurn
from polyphi.serve.answer.generation import Generation, answer, count_tokens, with_reasoning
from polyphi.serve.answer.jobs import Job
from polyphi.serve.answer.server import LARGE, Server
from polyphi.serve.answer.store import BLOB, ResponseStore, StoredItem, StoredResponse, stored_item
from polyphi.serve.http.errors import STREAMED, ApiError
from polyphi.serve.http.fields import Fields
from polyphi.serve.http.json_parser import JsonRoute
from polyphi.serve.http.response_json import EncodedJson, extra_fields, json_pieces, usage
from polyphi.serve.openai.extensions import reasoning_limits
from polyphi.serve.openai.response_items import Event, Items, new_id
from polyphi.serve.openai.responses_schema import (
    AllowedFunctions,
    FunctionChoice,
    InputMessage,
    Item,
    ReasoningItem,
    ResponsesRequest,
    item_turns,
    stored_items,
)
from polyphi.serve.openai.schema import Tool, available_tools, selected_tools
from polyphi.serve.openai.streams import named_stream
from polyphi.types.parts import Text
from polyphi.types.sampling import SamplingParams

LOGPROBS = "message.output_text.logprobs"
ENDS = ("response.completed", "response.incomplete")
"""Events at the end of an answer."""


def routes(server: Server, store: ResponseStore) -> APIRouter:
    router = APIRouter(route_class=JsonRoute)

    @router.post(
        "/v1/responses",
        summary="Answer a list of items, or continue a stored response",
        responses=STREAMED,
    )
    async def create(body: ResponsesRequest, request: HttpRequest) -> Response:
        caller = server.caller(request)
        previous = await _previous_turns(server, store, caller, body)
        generation = _generation(server, body, previous)
        tools = generation.tools
        items: tuple[StoredItem, ...] | None = None
        if body.store is not False and store.max_size:
            values = _input_items(body.input)
            if _characters(values) < store.max_size:
                items = await server.answers.in_thread(partial(_encoded_items, values))

        def formatted(job: Job, sampling: SamplingParams) -> ResponsesAnswer:
            nonlocal items
            body.input = ""
            record = _Record(store, caller.client, body.previous_response_id, items)
            items = None  # only the store refers to them, and may drop them
            head = _head(server, body, tools, sampling, record)
            return ResponsesAnswer(
                server, request, head, job, Output(sampling, tools=tools), record
            )

        return await answer(server, request, generation, formatted, stream=body.stream)

    @router.post("/v1/responses/input_tokens", summary="Count the tokens of a request's input")
    async def input_tokens(body: ResponsesRequest, request: HttpRequest) -> Response:
        previous = await _previous_turns(server, store, server.caller(request), body)
        generation = _generation(server, body, previous)
        tokens = await count_tokens(server, request, generation.turns, generation.tools, "input")
        return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens.total})

    return router


def _input_items(own: str | Sequence[Item]) -> list[dict[str, Any]]:
    """A request's own items with ids, as they are stored. Reasoning isn't."""
    items = [InputMessage(role="user", content=own)] if isinstance(own, str) else own
    values = []
    for item in items:
        if isinstance(item, ReasoningItem):
            continue
        value = item.model_dump(exclude_none=True)
        if isinstance(item, InputMessage) and isinstance(item.content, str):
            type_ = "output_text" if item.role == "assistant" else "input_text"
            value["content"] = [{"type": type_, "text": item.content}]
        values.append({"id": new_id("msg"), **value, "status": "completed"})
    return values


def _encoded_items(values: list[dict[str, Any]]) -> tuple[StoredItem, ...]:
    """Items as the store keeps them: each long text or medium is a piece, so that equal ones take memory once."""
    return tuple(stored_item(v["id"], json_pieces(_with_long_strings_apart(v))) for v in values)


def _with_long_strings_apart(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_long_strings_apart(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_long_strings_apart(item) for item in value]
    if isinstance(value, str) and len(value) >= BLOB:
        return EncodedJson((b"".join(json_pieces(value)),))
    return value


def _characters(values: list[dict[str, Any]]) -> int:
    """The number of characters in the strings of JSON values."""
    stack: list[Any] = [values]
    count = 0
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            count += len(value)
        else:
            stack += value.values() if isinstance(value, dict) else value
    return count


async def _previous_turns(
    server: Server, store: ResponseStore, caller: Client, body: ResponsesRequest
) -> list[InputTurn]:
    """The turns of the responses that a request continues."""
    if body.previous_response_id is None:
        return []
    try:
        chain = store.chain(caller.client, body.previous_response_id)
    except KeyError as error:
        raise ApiError(
            400,
            f"there is no response {error.args[0]!r:.80}: it was not stored, was deleted, or was dropped when memory "
            "was needed; send the whole conversation as input",
            param="previous_response_id",
            code="previous_response_not_found",
        ) from None
    large = sum(stored.size for stored in chain) > LARGE
    return await server.in_turn(large, caller, _chain_turns, chain)


def _chain_turns(chain: Sequence[StoredResponse]) -> list[InputTurn]:
    values: list[dict[str, Any]] = []
    for stored in chain:
        output = json.loads(b"".join(stored.response))["output"]
        # A call that was cut off has no valid arguments.
        calls = ("function_call", "incomplete")
        values += (json.loads(b"".join(item.json)) for item in stored.items)
        values += [item for item in output if (item["type"], item["status"]) != calls]
    return item_turns(stored_items(values), "previous_response_id")


def _generation(
    server: Server, body: ResponsesRequest, previous: Sequence[InputTurn]
) -> Generation:
    """The conversation to answer and its options. Raises ApiError for invalid ones."""
    adapter = server.adapter(body.model, body.adapter)
    tools, required = _tools(body)
    wants_logprobs = body.top_logprobs is not None or LOGPROBS in (body.include or ())
    sampling = body.sampling(
        grammar=None,
        max_tokens=body.max_output_tokens,
        logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
    )
    single = isinstance(body.tool_choice, FunctionChoice) or body.parallel_tool_calls is False
    form = body.grammar()
    if tools or form is not None:
        sampling = with_rules(sampling, tools, form, CallRules(required, single))
    if server.settings.reasoning:
        effort = body.reasoning.effort if body.reasoning else None
        variables, budget = body.chat_template_kwargs, body.thinking_token_budget
        sampling = with_reasoning(sampling, *reasoning_limits(variables, effort, budget))
    turns = [InputTurn("system", (Text(body.instructions),))] if body.instructions else []
    own = body.input
    turns += previous
    turns += [InputTurn("user", (Text(own),))] if isinstance(own, str) else item_turns(own, "input")
    return Generation(turns, tools, adapter, sampling, body, "input")


def _tools(body: ResponsesRequest) -> tuple[list[dict[str, Any]], bool]:
    """The functions that the model may call, and whether it must call one."""
    choice = body.tool_choice
    functions = [Tool(type="function", function=tool.function) for tool in body.tools or ()]
    if isinstance(choice, FunctionChoice):
        return selected_tools(available_tools(functions), [choice.name], "tool_choice.name"), True
    if isinstance(choice, AllowedFunctions):
        names = [tool.name for tool in choice.tools]
        tools = selected_tools(available_tools(functions, choice.mode), names, "tool_choice.tools")
        return tools, choice.mode == "required"
    return available_tools(functions, choice), choice == "required"


class _Record:
    """A response in the store, from the start of its answer on; not stored without `items`, or if they are too
    large."""

    def __init__(
        self,
        store: ResponseStore,
        owner: bytes,
        previous: str | None,
        items: tuple[StoredItem, ...] | None,
    ) -> None:
        self.id = new_id("resp")
        self._store, self._owner = store, owner
        self.enabled = items is not None and store.add(
            owner, StoredResponse(self.id, previous, items)
        )

    def complete(self, response: EncodedJson) -> None:
        self._store.complete(self._owner, self.id, response.pieces)

    def discard(self) -> None:
        """Removes a response that didn't end."""
        self._store.discard(self._owner, self.id)


class ResponsesAnswer:
    """A job's answer as a response. `head`: the response before its first output."""

    def __init__(
        self,
        server: Server,
        request: HttpRequest,
        head: dict[str, Any],
        job: Job,
        output: Output,
        record: _Record,
    ) -> None:
        self._server, self._request, self._head, self._job = server, request, head, job
        self._output, self._record = output, record
        has_logprobs = job.requests[0].sampling.logprobs is not None
        self._items = Items(server.tokens.with_alternatives if has_logprobs else None)
        self._sequence = 0

    def _response(self, **fields: Any) -> dict[str, Any]:
        return {**self._head, **fields}

    async def _ended(self) -> tuple[str, dict[str, Any] | EncodedJson]:
        """The status and the response at the end of the answer; also stores it. A large response that is stored comes
        encoded."""
        self._server.log_prompt(self._request, self._items.items)
        completions = self._job.answers()
        incomplete = self._output.finish_reason == "length"
        response = self._response(
            status="incomplete" if incomplete else "completed",
            incomplete_details={"reason": "max_output_tokens"} if incomplete else None,
            completed_at=None if incomplete else int(time.time()),
            output=self._items.items,
            usage=_usage(usage([completions])),
            **extra_fields(completions),
        )
        if not self._record.enabled:
            return response["status"], response
        encoded = await self._server.answers.encoded(response)
        self._record.complete(encoded)
        return response["status"], encoded if len(encoded.pieces) > 1 else response

    async def whole(self) -> Response:
        async with aclosing(self._events()) as events:
            async for event in events:
                if event["type"] in ENDS:
                    return await self._server.answers.response(event["response"])
        raise AssertionError("a stream of events ends with one of ENDS")

    def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""

        def failure(error: ApiError) -> Event:
            details = {"code": "server_error", "message": error.message}
            response = self._response(
                status="failed", error=details, output=self._items.items, usage=None
            )
            return self._numbered({"type": "response.failed", "response": response})

        return named_stream(self._server.answers, self._events(), failure)

    async def _events(self) -> AsyncGenerator[Event]:
        try:
            for type_ in ("response.created", "response.in_progress"):
                yield self._numbered({"type": type_, "response": self._response()})
            async for delta in self._job:
                for event in self._items.add(self._output.add(delta), delta.logprobs):
                    yield self._numbered(event)
            for event in self._items.finish(self._output.finish_reason):
                yield self._numbered(event)
            status, response = await self._ended()
            yield self._numbered({"type": f"response.{status}", "response": response})
        finally:
            self._record.discard()

    def _numbered(self, event: Event) -> Event:
        self._sequence += 1
        return {**event, "sequence_number": self._sequence - 1}


def _head(
    server: Server,
    body: ResponsesRequest,
    tools: Sequence[dict[str, Any]],
    sampling: SamplingParams,
    record: _Record,
) -> dict[str, Any]:
    """A response before its first output. `tools`: the functions in the prompt, which the context bounds."""
    choice, response_format = body.tool_choice, body.text.format if body.text else None
    return {
        "id": record.id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": server.adapters.model_name(body.model),
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": body.reasoning.model_dump() if body.reasoning else None,
        "store": record.enabled,
        "temperature": sampling.temperature,
        "text": {
            "format": response_format.model_dump(by_alias=True, exclude_none=True)
            if response_format
            else {"type": "text"}
        },
        "tool_choice": choice.model_dump() if isinstance(choice, Fields) else choice or "auto",
        "tools": [{"type": "function", "parameters": None, "strict": None, **t} for t in tools],
        "top_p": sampling.top_p,
        "top_logprobs": body.top_logprobs,
        "truncation": "disabled",
        "usage": None,
        "metadata": body.metadata or {},
    }


def _usage(counts: dict[str, Any]) -> dict[str, Any]:
    """Chat's counts under the names of the Responses API."""
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {**counts["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": counts["completion_tokens_details"],
        "total_tokens": counts["total_tokens"],
    }
