"""Anthropic's Messages API: its messages -> a conversation, and the model's answer -> content blocks."""

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter
from pydantic_core import from_json
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from polyphi.decoding.forms import CallRules, with_rules
from polyphi.decoding.output import Output, OutputPart
from polyphi.decoding.reasoning import Reasoning
from polyphi.decoding.tool_calls import CallDelta
from polyphi.serve.answer.generation import Generation, answer, count_tokens, with_reasoning
from polyphi.serve.answer.jobs import Job
from polyphi.serve.answer.server import Server
from polyphi.serve.anthropic.schema import (
    CountTokensRequest,
    MessagesRequest,
    functions_of,
    message_turns,
    prompt_end,
)
from polyphi.serve.http.errors import STREAMED, ApiError, anthropic_body
from polyphi.serve.http.json_parser import JsonRoute
from polyphi.serve.http.response_json import EncodedJson, extra_fields
from polyphi.serve.openai.schema import Tool, available_tools, selected_tools
from polyphi.serve.openai.streams import named_stream
from polyphi.types.completion import Completion
from polyphi.types.sampling import SamplingParams

Event = dict[str, Any]
BlockType = Literal["thinking", "text", "tool_use"]
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def routes(server: Server) -> APIRouter:
    router = APIRouter(route_class=JsonRoute)

    @router.post(
        "/v1/messages",
        summary="Answer a conversation in Anthropic's format",
        responses=STREAMED,
    )
    async def messages(body: MessagesRequest, request: HttpRequest) -> Response:
        generation = _generation(server, body)
        tools = generation.tools

        def formatted(job: Job, sampling: SamplingParams) -> MessagesAnswer:
            body.messages = []
            return MessagesAnswer(server, request, body, job, Output(sampling, tools=tools))

        return await answer(server, request, generation, formatted, stream=body.stream)

    @router.post("/v1/messages/count_tokens", summary="Count the tokens of a conversation")
    async def count(body: CountTokensRequest, request: HttpRequest) -> Response:
        server.adapter(body.model, body.adapter)
        turns, (tools, _) = message_turns(body), _tools(body)
        tokens = await count_tokens(server, request, turns, tools, "messages", prompt_end(body))
        return JSONResponse({"input_tokens": tokens.total})

    return router


def _generation(server: Server, body: MessagesRequest) -> Generation:
    """The conversation to answer and its options. Raises ApiError for invalid ones."""
    adapter = server.adapter(body.model, body.adapter)
    tools, rules = _tools(body)
    sampling = body.sampling(grammar=None, max_tokens=body.max_tokens, logprobs=None)
    sampling = replace(sampling, stop=tuple(body.stop_sequences or ()))
    form = body.grammar()
    if tools or form is not None:
        sampling = with_rules(sampling, tools, form, rules)
    if server.settings.reasoning:
        effort = body.output_config.effort if body.output_config else None
        sampling = with_reasoning(sampling, effort, body.reasoning_budget)
    turns, end = message_turns(body), prompt_end(body)
    return Generation(turns, tools, adapter, sampling, body, "messages", end)


def _tools(body: CountTokensRequest) -> tuple[list[dict[str, Any]], CallRules]:
    """The functions that the model may call, and how."""
    choice = body.tool_choice
    functions = [Tool(type="function", function=one) for one in functions_of(body.tools)]
    if choice is None:
        return available_tools(functions), CallRules()
    if choice.type != "tool":
        mode: Literal["none", "auto", "required"] = (
            "required" if choice.type == "any" else choice.type
        )
        rules = CallRules(mode == "required", choice.disable_parallel_tool_use)
        return available_tools(functions, mode), rules
    if choice.name is None:
        raise ApiError(400, "tool_choice: expected the name of a tool", param="tool_choice.name")
    tools = selected_tools(available_tools(functions), [choice.name], "tool_choice.name")
    return tools, CallRules(required=True, single=True)


class Blocks:
    """The content blocks of one answer, and the events of their growth. The input of a call that is cut off has the
    members that are complete, as Anthropic's clients read it from a stream."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []
        self._open: BlockType | None = None  # the type of the last block, while it grows
        self._texts: list[str] = []

    def add(self, parts: list[OutputPart]) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            if isinstance(part, CallDelta):
                events += self._call(part)
                continue
            type_: BlockType = "thinking" if isinstance(part, Reasoning) else "text"
            if self._open != type_:
                more = {"signature": ""} if type_ == "thinking" else {}
                events += [*self.close(), self._start(type_, **{type_: ""}, **more)]
            text = part.text if isinstance(part, Reasoning) else part
            self._texts.append(text)
            events.append(self._delta({"type": f"{type_}_delta", type_: text}))
        return events

    def close(self) -> list[Event]:
        """The events that end the open content block."""
        if self._open is None:
            return []
        text = "".join(self._texts)
        # Arguments are JSON already, and parsing could change them: 1e999 is infinite.
        value = EncodedJson((text.encode(),)) if self._open == "tool_use" else text
        name = "input" if self._open == "tool_use" else self._open
        self.blocks[-1], self._open = {**self.blocks[-1], name: value}, None
        return [self._event("stop")]

    def _event(self, name: str, **fields: Any) -> Event:
        return {"type": f"content_block_{name}", "index": len(self.blocks) - 1, **fields}

    def _start(self, type_: BlockType, **fields: Any) -> Event:
        self.blocks.append({"type": type_, **fields})
        self._open, self._texts = type_, []
        return self._event("start", content_block=self.blocks[-1])

    def _delta(self, delta: dict[str, Any]) -> Event:
        return self._event("delta", delta=delta)

    def _call(self, part: CallDelta) -> list[Event]:
        events: list[Event] = []
        if part.name is not None:
            id = f"toolu_{secrets.token_hex(12)}"
            events += [*self.close(), self._start("tool_use", id=id, name=part.name, input={})]
        if part.arguments:
            self._texts.append(part.arguments)
            events.append(self._delta({"type": "input_json_delta", "partial_json": part.arguments}))
        if part.complete is False:
            self._texts = [_complete_members("".join(self._texts))]
        return events if part.complete is None else [*events, *self.close()]


def _complete_members(arguments: str) -> str:
    """A JSON object that is cut off, without the member that is incomplete."""
    try:
        return json.dumps(from_json(arguments or "{}", allow_partial=True), allow_nan=False)
    except ValueError:  # a number that JSON doesn't have
        return "{}"


class MessagesAnswer:
    """A job's answer as a message in Anthropic's format."""

    def __init__(
        self, server: Server, request: HttpRequest, body: MessagesRequest, job: Job, output: Output
    ) -> None:
        self._server, self._request, self._job = server, request, job
        self._output, self._blocks = output, Blocks()
        self._head: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": server.adapters.model_name(body.model),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _ended(self) -> tuple[dict[str, Any], dict[str, Any], Completion]:
        """(stop reason and stop sequence, usage, completion) of the ended answer."""
        (completion,) = self._job.answers()
        texts = [block for block in self._blocks.blocks if block["type"] != "tool_use"]
        self._server.log_prompt(self._request, texts)
        reason = STOP_REASONS[self._output.finish_reason or "stop"]
        ended_by = completion.stop_reason
        sequence = ended_by if isinstance(ended_by, str) else None
        if sequence is not None and reason == "end_turn":
            reason = "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": sequence}, _usage(completion), completion

    async def whole(self) -> Response:
        async for delta in self._job:
            self._blocks.add(self._output.add(delta))
        self._blocks.close()
        stop, usage, completion = self._ended()
        message = {**self._head, "content": self._blocks.blocks, **stop, "usage": usage}
        return await self._server.answers.response({**message, **extra_fields([completion])})

    def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""
        return named_stream(self._server.answers, self._events(), anthropic_body)

    async def _events(self) -> AsyncGenerator[Event]:
        prompt_tokens = len(self._job.requests[0].row.result())
        counts = {"input_tokens": prompt_tokens, "output_tokens": 0}
        yield {"type": "message_start", "message": {**self._head, "usage": counts}}
        yield {"type": "ping"}
        async for delta in self._job:
            for event in self._blocks.add(self._output.add(delta)):
                yield event
        for event in self._blocks.close():
            yield event
        stop, usage, completion = self._ended()
        yield {"type": "message_delta", "delta": stop, "usage": usage, **extra_fields([completion])}
        yield {"type": "message_stop"}


def _usage(completion: Completion) -> dict[str, Any]:
    """`usage` of a response: the counts of tokens; cached tokens aren't among the input tokens."""
    return {
        "input_tokens": completion.prompt_tokens - completion.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": completion.cached,
        "output_tokens": len(completion.tokens),
        "output_tokens_details": {"thinking_tokens": completion.reasoning_tokens},
    }
