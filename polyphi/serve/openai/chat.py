"""Chat completions: OpenAI's messages -> a conversation, and the model's answers -> OpenAI's format."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyphi.decoding.forms import with_rules
from polyphi.decoding.output import Output, OutputPart
from polyphi.decoding.reasoning import Reasoning
from polyphi.decoding.tool_calls import ToolCall
from polyphi.serve.answer.conversation import chat_turns
from polyphi.serve.answer.generation import Generation, answer, with_reasoning
from polyphi.serve.answer.jobs import Job, OutputDelta
from polyphi.serve.answer.server import Server
from polyphi.serve.http.errors import STREAMED
from polyphi.serve.http.json_parser import JsonRoute
from polyphi.serve.http.response_json import base_fields, extra_fields, token_usage, usage
from polyphi.serve.openai.prompt_logprobs import prompt_fields
from polyphi.serve.openai.schema import ChatRequest, prompt_end
from polyphi.serve.openai.streams import stream
from polyphi.types.completion import TokenLogprob
from polyphi.types.sampling import SamplingParams

LOGPROB = 8
"""JSON values of one token's log-probability entry, its bytes included."""


def routes(server: Server) -> APIRouter:
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions", summary="Answer a conversation", responses=STREAMED)
    async def chat_completions(body: ChatRequest, request: HttpRequest) -> Response:
        generation = chat_generation(server, body)
        tools = generation.tools

        def formatted(job: Job, sampling: SamplingParams) -> ChatAnswer:
            body.messages = []
            return ChatAnswer(server, request, body, job, sampling, tools)

        return await answer(server, request, generation, formatted, stream=body.stream)

    return router


def chat_generation(server: Server, body: ChatRequest) -> Generation:
    """The conversation to answer and its options. Raises ApiError for invalid ones."""
    adapter = server.adapter(body.model, body.adapter)
    tools = body.available_tools()
    sampling = body.sampling(
        grammar=None,
        max_tokens=body.token_limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    form = body.grammar()
    if tools or form is not None:
        sampling = with_rules(sampling, tools, form, body.call_rules)
    if server.settings.reasoning:
        sampling = with_reasoning(sampling, *body.reasoning)
    turns, end = chat_turns(body.messages), prompt_end(body)
    return Generation(turns, tools, adapter, sampling, body, "messages", end)


class ChatMessage:
    """One answer as a message in OpenAI's format, during generation. `old_form`: a call is a `function_call`, as for
    requests with `functions`; `reasoning`: whether it is returned."""

    def __init__(self, output: Output, *, old_form: bool = False, reasoning: bool = True) -> None:
        self.output = output
        self.no_content = None if output.required else ""
        """The content of a delta or message without text: null where a call is required."""
        self._old_form, self._with_reasoning = old_form, reasoning
        self._ids: list[str] = []  # of the calls

    def add(self, delta: OutputDelta) -> list[dict[str, Any]]:
        """The chat deltas of one output delta."""
        return [d for part in self.output.add(delta) if (d := self._delta(part))]

    def _delta(self, part: OutputPart) -> dict[str, Any]:
        if isinstance(part, str):
            return {"content": part}
        if isinstance(part, Reasoning):
            return _reasoning(part.text) if self._with_reasoning else {}
        if part.name is None and not part.arguments:  # the last delta of a call
            return {}
        function = {"arguments": part.arguments}
        head: dict[str, Any] = {}
        if part.name is not None:
            function = {"name": part.name, **function}
            self._ids.append(f"call_{secrets.token_hex(12)}")
            head = {"id": self._ids[-1], "type": "function"}
        if self._old_form:
            return {"function_call": function}
        return {"tool_calls": [{"index": len(self._ids) - 1, **head, "function": function}]}

    @property
    def finish_reason(self) -> str | None:
        reason = self.output.finish_reason
        return "function_call" if self._old_form and reason == "tool_calls" else reason

    @property
    def whole(self) -> dict[str, Any]:
        reasoning = self.output.reasoning if self._with_reasoning else ""
        calls = [_call(*pair) for pair in zip(self._ids, self.output.calls, strict=True)]
        content = self.output.content or (None if calls or reasoning else self.no_content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reasoning:
            message |= _reasoning(reasoning)
        if self._old_form and calls:
            return {**message, "function_call": calls[0]["function"]}
        return {**message, "tool_calls": calls} if calls else message


def _reasoning(text: str) -> dict[str, str]:
    """The fields of a message or delta with reasoning: clients read one of two names."""
    return {"reasoning_content": text, "reasoning": text}


def _call(id: str, call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": id, "type": "function", "function": function}


class ChatAnswer:
    """A job's answers in OpenAI's format. `tools`: the functions that are offered."""

    def __init__(
        self,
        server: Server,
        request: HttpRequest,
        body: ChatRequest,
        job: Job,
        sampling: SamplingParams,
        tools: Sequence[dict[str, Any]],
    ) -> None:
        self._server, self._request, self._body, self._job = server, request, body, job
        old_form, reasoning = bool(body.functions), body.include_reasoning is not False
        self._messages = [
            ChatMessage(Output(sampling, tools=tools), old_form=old_form, reasoning=reasoning)
            for _ in job.requests
        ]

    def _head(self, object_type: str) -> dict[str, Any]:
        return base_fields(
            "chatcmpl", object_type, self._server.adapters.model_name(self._body.model)
        )

    def _log(self) -> None:
        """Log the messages of the ended job where that is enabled."""
        if self._server.settings.log_prompts:
            self._server.log_prompt(self._request, [message.whole for message in self._messages])

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        tokens, as_ids = self._server.tokens, bool(self._body.return_tokens_as_token_ids)
        content = [tokens.with_alternatives(token, as_ids=as_ids) for token in logprobs]
        return {"content": content, "refusal": None}

    async def whole(self) -> Response:
        async for delta in self._job:
            self._messages[delta.number].add(delta)
        self._log()
        completions = self._job.answers()
        answers, top = self._server.answers, self._body.top_logprobs or 0
        choices = [
            {
                "index": number,
                "message": message.whole,
                "logprobs": await answers.build_part(
                    partial(self._logprobs, completion.logprobs),
                    LOGPROB * len(completion.logprobs) * (1 + top),
                ),
                "finish_reason": message.finish_reason,
                "stop_reason": completion.stop_reason,
                **({"token_ids": completion.tokens} if self._body.return_token_ids else {}),
            }
            for number, (message, completion) in enumerate(
                zip(self._messages, completions, strict=True)
            )
        ]
        start = self._head("chat.completion")
        prompt = await prompt_fields(
            answers, self._server.tokens, self._job, self._body, completions[0].prompt_logprobs
        )
        return await answers.response(
            {
                **start,
                "choices": choices,
                "usage": usage([completions]),
                **extra_fields(completions),
                **prompt,
            }
        )

    def events(self) -> AsyncIterator[bytes]:
        """The answers as server-sent events."""
        start = self._head("chat.completion.chunk")

        def last() -> dict[str, Any]:
            return {**start, "choices": [], "usage": usage([self._job.answers()])}

        return stream(
            self._server.answers,
            self._chunks(start),
            last,
            self._body.stream_options,
            lambda: token_usage(*self._job.usage),
        )

    async def _chunks(self, start: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Chunks that begin with `start`; when an answer ends, its adapter and rope are added to `start`."""

        def chunk(number: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
            choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}
            return {**start, "choices": [{**choice, **more}]}

        body = self._body
        prompt = {"prompt_token_ids": self._job.prompt_ids} if body.return_token_ids else {}
        for number, message in enumerate(self._messages):
            yield {**chunk(number, {"role": "assistant", "content": message.no_content}), **prompt}
            prompt = {}
        async for output in self._job:
            message = self._messages[output.number]
            deltas = message.add(output)
            if ((output.logprobs and body.logprobs) or body.return_token_ids) and not deltas:
                deltas = [{} if message.output.required else {"content": ""}]
            for i, delta in enumerate(deltas):
                more: dict[str, Any] = {"logprobs": None if i else self._logprobs(output.logprobs)}
                if body.return_token_ids:
                    more["token_ids"] = [] if i else output.tokens
                yield chunk(output.number, delta, **more)
            if output.finish_reason:
                start |= extra_fields([self._job.requests[output.number].completion()])
                reasons = {
                    "finish_reason": message.finish_reason,
                    "stop_reason": output.stop_reason,
                }
                yield chunk(output.number, {}, **reasons)
        self._log()
