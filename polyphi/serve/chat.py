"""Chat completions: OpenAI's messages -> a conversation, and the model's answers -> OpenAI's answers.

Streamed and whole answers are made of the same pieces: where tools are offered, the text of each answer runs through
one parser of tool calls, so the deltas of a stream join to the message that comes without one.
"""

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyphi.batch import Batch
from polyphi.engine.tools import GrammarToolParser, ToolCall, ToolParser
from polyphi.messages import (
    Audio,
    Completion,
    Grammar,
    Image,
    Message,
    Part,
    SamplingParams,
    Text,
    TokenLogprob,
    with_calls,
    with_tools,
)
from polyphi.serve.answers import besides, head, usage
from polyphi.serve.errors import ApiError
from polyphi.serve.events import Events, unless_gone
from polyphi.serve.fetch import Media
from polyphi.serve.jobs import Job, News
from polyphi.serve.schema import (
    AudioPart,
    AudioUrlPart,
    ChatRequest,
    ImagePart,
    NamedTool,
    RefusalPart,
    Turn,
    offered,
)
from polyphi.serve.schema import Part as GivenPart
from polyphi.serve.server import Server, forget_body
from polyphi.serve.streams import stream

ROLES = {"developer": "system", "tool": "tool_response"}
LOGPROB = 8
"""Values of a token's log-probability, its bytes included."""


def routes(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", summary="An answer to a conversation")
    async def chat_completions(wanted: ChatRequest, request: HttpRequest) -> Response:
        adapter = server.adapter(wanted.model, wanted.adapter)
        tools = offered(wanted.tools or (), wanted.tool_choice)
        logprobs = (wanted.top_logprobs or 0) if wanted.logprobs else None
        asked = wanted.sampling(
            grammar=answer_grammar(wanted, tools),
            max_tokens=wanted.wanted_tokens,
            logprobs=logprobs,
        )
        if tools and asked.grammar is None and wanted.parallel_tool_calls is False:
            asked = replace(asked, stop_at_call=True)

        async def prepared() -> tuple[Batch, SamplingParams]:
            sampling = await server.looked_at(ticket.caller, asked, wanted)
            with server.media.request() as media:
                messages = await conversation(server, media, wanted.messages)
                server.note(request, [(m.role, m.text) for m in messages])
                with server.explained("messages", wanted.messages):
                    return await server.prepare(
                        ticket, with_tools(messages, tools), adapter, sampling
                    )

        with server.admit(server.caller(request)) as ticket:
            row, sampling = await unless_gone(request, prepared())
            (job,) = await server.enter(ticket, [row], sampling)
            del row  # its pixels go when the answers have ended
            wanted.messages = []
            forget_body(request)
            answer = Answer(server, request, wanted, job, sampling, bool(tools))
            if wanted.stream:
                return Events(answer.events(), ticket.handed())
            return await unless_gone(request, answer.whole())

    return router


def answer_grammar(wanted: ChatRequest, tools: Sequence[dict[str, Any]]) -> Grammar | None:
    """The grammar of an answer: calls where `tool_choice` requires them, otherwise the response format, beside which
    calls are possible where tools are offered. None for free text, in which calls are possible too."""
    response = wanted.grammar()
    required = wanted.tool_choice not in (None, "auto")
    if not tools or (response is None and not required):
        return response
    single = isinstance(wanted.tool_choice, NamedTool) or wanted.parallel_tool_calls is False
    return Grammar(
        "tools",
        json.dumps(tools),
        max_calls=1 if single else None,
        alternative=None if required else response,
    )


async def conversation(server: Server, media: Media, turns: Sequence[Turn]) -> tuple[Message, ...]:
    """OpenAI's messages as ours, with the bytes of all media there."""
    if len(turns) > server.settings.max_messages:
        raise ApiError(
            400,
            f"a conversation has at most {server.settings.max_messages} messages, found {len(turns)}",
            param="messages",
        )
    given = sum(
        part.type in ("image_url", "input_audio", "audio_url")
        for turn in turns
        if isinstance(turn.content, list)
        for part in turn.content
    )
    if given > server.settings.max_parts:
        raise ApiError(
            400,
            f"a request has at most {server.settings.max_parts} pictures and clips, found {given}",
            param="messages",
        )
    return tuple([await _message(media, turn, f"messages[{i}]") for i, turn in enumerate(turns)])


async def _message(media: Media, turn: Turn, where: str) -> Message:
    parts: list[Part] = []
    if isinstance(turn.content, str):
        parts.append(Text(turn.content))
    for number, part in enumerate(turn.content if isinstance(turn.content, list) else ()):
        parts.append(await _part(media, part, f"{where}.content[{number}]"))
    if turn.tool_calls:
        if turn.role != "assistant":
            raise ApiError(
                400,
                f"{where}.tool_calls: only an assistant calls tools, found role {turn.role!r}",
                param=f"{where}.tool_calls",
            )
        try:
            called = with_calls(parts, [call.function.model_dump() for call in turn.tool_calls])
        except ValueError as error:
            where = f"{where}.tool_calls"
            raise ApiError(400, f"{where}: {error}", param=where) from None
        return Message(turn.role, called)
    if turn.content is None:
        raise ApiError(400, f"{where}.content: expected text or parts", param=f"{where}.content")
    return Message(ROLES.get(turn.role, turn.role), tuple(parts))


async def _part(media: Media, part: GivenPart, where: str) -> Part:
    if isinstance(part, ImagePart):
        asked = part.image_url
        data = await media.image(asked.url, f"{where}.image_url.url")
        return Image(data, asked.detail, asked.max_crops)
    if isinstance(part, AudioPart):
        return Audio(await media.input_audio(part.input_audio.data, f"{where}.input_audio.data"))
    if isinstance(part, AudioUrlPart):
        return Audio(await media.audio(part.audio_url.url, f"{where}.audio_url.url"))
    return Text(part.refusal if isinstance(part, RefusalPart) else part.text)


@dataclass
class Said:
    """One answer while it comes: what its text turned out to be. Where calls aren't `parallel`, nothing after the first
    is part of it. Where a call is `required`, it has no content."""

    parser: ToolParser | GrammarToolParser | None
    parallel: bool = True
    required: bool = False
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = True
    """Whether the last call is."""
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, news: News) -> list[dict[str, Any]]:
        """The deltas of what came."""
        parts: list[str | ToolCall] = [news.text] if news.text else []
        if self.parser is not None:
            parts = self.parser.add(news.text)
            if news.finish_reason:
                parts += self.parser.finish()
        self.logprobs += news.logprobs
        deltas = []
        for part in parts:
            if self.calls and not self.parallel:
                break
            deltas.append(self._delta(part))
        return deltas

    def _delta(self, part: str | ToolCall) -> dict[str, Any]:
        if isinstance(part, str):
            self.content += part
            return {"content": part}
        call = {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        self.calls.append(call)
        self.complete = part.complete
        return {"tool_calls": [{"index": len(self.calls) - 1, **call}]}

    @property
    def no_content(self) -> str | None:
        """The content of a delta or message that has none: null where a call is required."""
        return None if self.required else ""

    @property
    def message(self) -> dict[str, Any]:
        content = self.content or (None if self.calls else self.no_content)
        found: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        return {**found, "tool_calls": self.calls} if self.calls else found

    def reason(self, news: News) -> str | None:
        """Why the answer ended: complete calls are a reason of their own, whatever comes after them."""
        called = self.calls and self.complete
        return "tool_calls" if news.finish_reason == "stop" and called else news.finish_reason


class Answer:
    """A job's answers in OpenAI's shapes. `tools`: whether any are offered."""

    def __init__(
        self,
        server: Server,
        request: HttpRequest,
        wanted: ChatRequest,
        job: Job,
        sampling: SamplingParams,
        tools: bool,
    ) -> None:
        self._server, self._request, self._wanted, self._job = server, request, wanted, job
        grammar = sampling.grammar if tools else None
        required = grammar is not None and grammar.alternative is None
        self._said = [
            Said(
                _parser(grammar) if tools else None,
                parallel=not sampling.stop_at_call,
                required=required,
            )
            for _ in job.requests
        ]

    def _head(self, object_type: str) -> dict[str, Any]:
        return head("chatcmpl", object_type, self._wanted.model or self._server.settings.name)

    def _completions(self) -> list[Completion]:
        """What it all came to, once it has; told to the log where that was asked for."""
        self._server.note(self._request, [said.message for said in self._said])
        return self._job.answers()

    def _logprobs(self, some: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._wanted.logprobs:
            return None
        return {"content": [self._server.tokens.told(one) for one in some], "refusal": None}

    async def whole(self) -> Response:
        reasons: dict[int, str | None] = {}
        async for news in self._job:
            said = self._said[news.number]
            said.add(news)
            if news.finish_reason:
                reasons[news.number] = said.reason(news)
        completions = self._completions()
        answers, top = self._server.answers, self._wanted.top_logprobs or 0
        choices = [
            {
                "index": number,
                "message": said.message,
                "logprobs": await answers.built(
                    partial(self._logprobs, said.logprobs), LOGPROB * len(said.logprobs) * (1 + top)
                ),
                "finish_reason": reasons[number],
            }
            for number, said in enumerate(self._said)
        ]
        start = self._head("chat.completion")
        return await answers.response(
            {**start, "choices": choices, "usage": usage([completions]), **besides(completions)}
        )

    def events(self) -> AsyncIterator[bytes]:
        """The answers as a stream."""
        start = self._head("chat.completion.chunk")

        def last() -> dict[str, Any]:
            return {**start, "choices": [], "usage": usage([self._completions()])}

        return stream(self._chunks(start), last, self._wanted.stream_options)

    async def _chunks(self, start: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Chunks that begin with `start`, which gets what is known of an answer once it has ended."""

        def chunk(number: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
            choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}
            return {**start, "choices": [{**choice, **more}]}

        for number, said in enumerate(self._said):
            yield chunk(number, {"role": "assistant", "content": said.no_content})
        async for news in self._job:
            said = self._said[news.number]
            deltas = said.add(news)
            if news.logprobs and self._wanted.logprobs and not deltas:
                deltas = [{} if said.required else {"content": ""}]
            for i, delta in enumerate(deltas):
                logprobs = self._logprobs(news.logprobs) if not i else None
                yield chunk(news.number, delta, logprobs=logprobs)
            if news.finish_reason:
                start |= besides([self._job.requests[news.number].completion()])
                yield chunk(news.number, {}, finish_reason=said.reason(news))


def _parser(grammar: Grammar | None) -> ToolParser | GrammarToolParser:
    """What reads an answer that may call tools: free text, or one of a grammar of tools."""
    if grammar is None:
        return ToolParser()
    return GrammarToolParser(alternative=grammar.alternative is not None)
