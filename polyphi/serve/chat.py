"""Chat completions: OpenAI's messages -> a conversation, and the model's answers -> OpenAI's responses.

Streamed and whole answers use the same code: where tools are offered, the text of each answer goes through one parser
of tool calls, so the joined deltas of a stream equal the message without streaming.
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
    Video,
    with_calls,
    with_tools,
)
from polyphi.serve.answers import base_fields, extra_fields, token_usage, usage
from polyphi.serve.errors import ApiError
from polyphi.serve.events import Events, unless_disconnected
from polyphi.serve.fetch import Media
from polyphi.serve.jobs import Job, OutputDelta
from polyphi.serve.prompts import prompt_fields
from polyphi.serve.schema import (
    AudioPart,
    AudioUrlPart,
    ChatRequest,
    ImagePart,
    NamedTool,
    RefusalPart,
    Turn,
    VideoPart,
    available_tools,
    prompt_end,
)
from polyphi.serve.schema import Part as RequestPart
from polyphi.serve.server import Server, release_body
from polyphi.serve.streams import stream

ROLES = {"developer": "system", "tool": "tool_response"}
LOGPROB = 8
"""JSON values of one token's log-probability entry, its bytes included."""


def routes(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", summary="Answer a conversation")
    async def chat_completions(body: ChatRequest, request: HttpRequest) -> Response:
        adapter = server.adapter(body.model, body.adapter)
        tools = available_tools(body.tools or (), body.tool_choice)
        end = prompt_end(body)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        requested = body.sampling(
            grammar=answer_grammar(body, tools),
            max_tokens=body.token_limit,
            logprobs=logprobs,
        )
        if tools and requested.grammar is None and body.parallel_tool_calls is False:
            requested = replace(requested, stop_at_call=True)

        async def prepare_row() -> tuple[Batch, SamplingParams]:
            sampling = await server.check_sampling(ticket.caller, requested, body)
            with server.media.request() as media:
                messages = await conversation(server, media, body.messages)
                server.log_prompt(request, [(m.role, m.text) for m in messages])
                with server.api_errors("messages", body.messages):
                    return await server.prepare(
                        ticket, with_tools(messages, tools), adapter, sampling, end
                    )

        with server.admit(server.caller(request)) as ticket:
            row, sampling = await unless_disconnected(request, prepare_row())
            (job,) = await server.submit(ticket, [row], sampling)
            del row  # its pixels are freed when the answers have ended
            body.messages = []
            release_body(request)
            answer = Answer(server, request, body, job, sampling, bool(tools))
            if body.stream:
                return Events(answer.events(), ticket.transfer())
            return await unless_disconnected(request, answer.whole())

    return router


def answer_grammar(body: ChatRequest, tools: Sequence[dict[str, Any]]) -> Grammar | None:
    """The grammar of an answer: tool calls where `tool_choice` requires them; otherwise the response format, with tool
    calls as an alternative where tools are offered. None for free text, which may also contain calls."""
    response = body.grammar()
    required = body.tool_mode == "required"
    if not tools or (response is None and not required):
        return response
    single = isinstance(body.tool_choice, NamedTool) or body.parallel_tool_calls is False
    return Grammar(
        "tools",
        json.dumps(tools),
        max_calls=1 if single else None,
        alternative=None if required else response,
    )


async def conversation(server: Server, media: Media, turns: Sequence[Turn]) -> tuple[Message, ...]:
    """OpenAI's messages as `Message`s, with the bytes of all media loaded."""
    if len(turns) > server.settings.max_messages:
        raise ApiError(
            400,
            f"expected at most {server.settings.max_messages} messages in a conversation, found {len(turns)}",
            param="messages",
        )
    parts = [part for turn in turns if isinstance(turn.content, list) for part in turn.content]
    frames = sum(part.video_url.frames for part in parts if isinstance(part, VideoPart))
    clips = sum(isinstance(part, ImagePart | AudioPart | AudioUrlPart) for part in parts)
    for count, limit, name in (
        (frames, server.settings.max_video_frames, "frames of videos"),
        (frames + clips, server.settings.max_parts, "images, audio clips and frames of videos"),
    ):
        if count > limit:
            raise ApiError(
                400,
                f"expected at most {limit} {name} in a request, found {count}",
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
                f"{where}.tool_calls: expected role 'assistant' for tool calls, found {turn.role!r}",
                param=f"{where}.tool_calls",
            )
        try:
            parts_with_calls = with_calls(
                parts, [call.function.model_dump() for call in turn.tool_calls]
            )
        except ValueError as error:
            where = f"{where}.tool_calls"
            raise ApiError(400, f"{where}: {error}", param=where) from None
        return Message(turn.role, parts_with_calls)
    if turn.content is None:
        raise ApiError(400, f"{where}.content: expected text or parts", param=f"{where}.content")
    return Message(ROLES.get(turn.role, turn.role), tuple(parts))


async def _part(media: Media, part: RequestPart, where: str) -> Part:
    if isinstance(part, ImagePart):
        image = part.image_url
        data = await media.image(image.url, f"{where}.image_url.url")
        return Image(data, image.detail, image.max_crops)
    if isinstance(part, AudioPart):
        return Audio(await media.input_audio(part.input_audio.data, f"{where}.input_audio.data"))
    if isinstance(part, AudioUrlPart):
        return Audio(await media.audio(part.audio_url.url, f"{where}.audio_url.url"))
    if isinstance(part, VideoPart):
        video = part.video_url
        data = await media.video(video.url, f"{where}.video_url.url")
        return Video(data, video.frames, video.detail, video.max_crops)
    return Text(part.refusal if isinstance(part, RefusalPart) else part.text)


@dataclass
class ParsedAnswer:
    """One answer during generation, parsed into content and tool calls. Unless calls are `parallel`, everything after
    the first call is dropped. Where a call is `required`, the answer has no content."""

    parser: ToolParser | GrammarToolParser | None
    parallel: bool = True
    required: bool = False
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = True
    """Whether the last call is complete."""
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, output: OutputDelta) -> list[dict[str, Any]]:
        """The chat deltas of one output delta."""
        parts: list[str | ToolCall] = [output.text] if output.text else []
        if self.parser is not None:
            parts = self.parser.add(output.text)
            if output.finish_reason:
                parts += self.parser.finish()
        self.logprobs += output.logprobs
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
        """The content of a delta or message without text: null where a call is required."""
        return None if self.required else ""

    @property
    def message(self) -> dict[str, Any]:
        content = self.content or (None if self.calls else self.no_content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        return {**message, "tool_calls": self.calls} if self.calls else message

    def reason(self, output: OutputDelta) -> str | None:
        """The finish reason: "tool_calls" if the answer stopped with complete calls, otherwise the engine's reason."""
        has_calls = self.calls and self.complete
        return (
            "tool_calls" if output.finish_reason == "stop" and has_calls else output.finish_reason
        )


class Answer:
    """A job's answers in OpenAI's format. `tools`: whether tools are offered."""

    def __init__(
        self,
        server: Server,
        request: HttpRequest,
        body: ChatRequest,
        job: Job,
        sampling: SamplingParams,
        tools: bool,
    ) -> None:
        self._server, self._request, self._body, self._job = server, request, body, job
        grammar = sampling.grammar if tools else None
        required = grammar is not None and grammar.alternative is None
        self._parsed = [
            ParsedAnswer(
                _parser(grammar) if tools else None,
                parallel=not sampling.stop_at_call,
                required=required,
            )
            for _ in job.requests
        ]

    def _head(self, object_type: str) -> dict[str, Any]:
        return base_fields("chatcmpl", object_type, self._body.model or self._server.settings.name)

    def _completions(self) -> list[Completion]:
        """The completions of the ended job; also logs the messages where that is enabled."""
        self._server.log_prompt(self._request, [parsed.message for parsed in self._parsed])
        return self._job.answers()

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return {
            "content": [self._server.tokens.with_alternatives(token) for token in logprobs],
            "refusal": None,
        }

    async def whole(self) -> Response:
        reasons: dict[int, str | None] = {}
        async for output in self._job:
            parsed = self._parsed[output.number]
            parsed.add(output)
            if output.finish_reason:
                reasons[output.number] = parsed.reason(output)
        completions = self._completions()
        answers, top = self._server.answers, self._body.top_logprobs or 0
        choices = [
            {
                "index": number,
                "message": parsed.message,
                "logprobs": await answers.build_part(
                    partial(self._logprobs, parsed.logprobs),
                    LOGPROB * len(parsed.logprobs) * (1 + top),
                ),
                "finish_reason": reasons[number],
                "stop_reason": completions[number].stop_reason,
                **(
                    {"token_ids": completions[number].tokens} if self._body.return_token_ids else {}
                ),
            }
            for number, parsed in enumerate(self._parsed)
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
            return {**start, "choices": [], "usage": usage([self._completions()])}

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
        prompt = await prompt_fields(self._server.answers, self._server.tokens, self._job, body)
        for number, parsed in enumerate(self._parsed):
            yield {**chunk(number, {"role": "assistant", "content": parsed.no_content}), **prompt}
            prompt = {}
        async for output in self._job:
            parsed = self._parsed[output.number]
            deltas = parsed.add(output)
            if ((output.logprobs and body.logprobs) or body.return_token_ids) and not deltas:
                deltas = [{} if parsed.required else {"content": ""}]
            for i, delta in enumerate(deltas):
                more: dict[str, Any] = {"logprobs": None if i else self._logprobs(output.logprobs)}
                if body.return_token_ids:
                    more["token_ids"] = [] if i else output.tokens
                yield chunk(output.number, delta, **more)
            if output.finish_reason:
                start |= extra_fields([self._job.requests[output.number].completion()])
                reasons = {
                    "finish_reason": parsed.reason(output),
                    "stop_reason": output.stop_reason,
                }
                yield chunk(output.number, {}, **reasons)


def _parser(grammar: Grammar | None) -> ToolParser | GrammarToolParser:
    """The parser of an answer that may call tools: of free text, or of a tool grammar's output."""
    if grammar is None:
        return ToolParser()
    return GrammarToolParser(alternative=grammar.alternative is not None)
