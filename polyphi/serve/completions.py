"""Completions of plain text: what log-likelihood harnesses and old clients use.

A prompt is text without a template, or token ids. `echo` puts the prompt before the answer, and with `logprobs` tells
what the model thought of each of its tokens; with `max_tokens: 0` that is all.
"""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyphi.batch import Batch
from polyphi.engine.request import Caller
from polyphi.messages import Completion, SamplingParams, TokenLogprob
from polyphi.serve.answers import head, usage
from polyphi.serve.errors import ApiError
from polyphi.serve.events import Events, unless_gone
from polyphi.serve.jobs import Job
from polyphi.serve.schema import CompletionRequest
from polyphi.serve.server import LARGE, Server, forget_body
from polyphi.serve.streams import merged, stream
from polyphi.serve.tokens import finite

MAX_PROMPTS = 128


def routes(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", summary="What follows a text")
    async def completions(wanted: CompletionRequest, request: HttpRequest) -> Response:
        adapter = server.adapter(wanted.model, wanted.adapter)
        if wanted.suffix:
            raise ApiError(400, "suffix isn't supported; leave it out", param="suffix")
        if wanted.stream and wanted.echo:
            raise ApiError(400, "echo and stream don't go together; leave one out", param="echo")
        silent = wanted.max_tokens == 0
        if silent and not wanted.echo:
            raise ApiError(400, "max_tokens: 0 only goes with echo", param="max_tokens")
        asked = wanted.sampling(
            grammar=wanted.grammar(),
            max_tokens=1 if silent else wanted.max_tokens or 16,
            logprobs=wanted.logprobs,
        )
        with server.admit(server.caller(request)) as ticket:
            sampling = await server.looked_at(ticket.caller, asked, wanted)
            rows = await _rows(server, ticket.caller, wanted.prompt, adapter)
            ticket.reserve(sum(row.nbytes for row in rows), len(rows))
            if wanted.echo:
                sampling = replace(sampling, prompt_logprobs=wanted.logprobs)
            with server.explained("prompt"):
                await server.in_thread(lambda: [server.bounded(row, sampling) for row in rows])
            server.note(request, wanted.prompt)
            wanted.prompt = ""
            forget_body(request)
            answer = Answer(server, request, wanted, sampling, rows)
            if silent and wanted.logprobs is None:
                return await unless_gone(request, answer.echoed())
            if silent:
                sampling = replace(sampling, max_tokens=0, n=1)
            jobs = await server.enter(ticket, rows, sampling)
            if wanted.stream:
                return Events(answer.events(jobs), ticket.handed())
            return await unless_gone(request, answer.whole(jobs))

    return router


async def _rows(server: Server, caller: Caller, prompt: Any, adapter: str | None) -> list[Batch]:
    """Each prompt as a row. Text never becomes a control token; an empty one is begun as documents are."""
    prompts = (
        [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt
    )
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise ApiError(
            400, f"prompt: expected 1 to {MAX_PROMPTS}, found {len(prompts)}", param="prompt"
        )
    engine = server.engine

    def rows() -> list[Batch]:
        processor, context, found = engine.processor, engine.longest, []
        for one in prompts:
            (ids,) = processor.encode([one], context) if isinstance(one, str) else [one]
            ids = ids or [processor.tokenizer.eos_ids[-1]]
            found.append(engine.ids_row(ids, adapter=adapter, context=context))
        return found

    with server.explained("prompt"):
        return await server.in_turn(sum(map(len, prompts)) > LARGE, caller, rows)


class Answer:
    """The answers to some prompts, in OpenAI's shape: those to the first prompt, then those to the second."""

    def __init__(
        self,
        server: Server,
        request: HttpRequest,
        wanted: CompletionRequest,
        sampling: SamplingParams,
        rows: Sequence[Batch],
    ) -> None:
        self._server, self._request, self._rows = server, request, rows
        self._wanted, self._sampling = wanted, sampling
        self._head = head("cmpl", "text_completion", wanted.model or server.settings.name)

    async def echoed(self) -> Response:
        """The prompts alone."""
        choices: list[Any] = []
        for row in self._rows:
            choices.append(await self._written(len(choices), await self._text(row), [], "length"))
        count = sum(len(row) for row in self._rows)
        cost = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
        body = {**self._head, "choices": choices, "usage": cost}
        return await self._server.answers.response(body)

    async def whole(self, jobs: Sequence[Job]) -> Response:
        choices: list[Any] = []
        for row, job in zip(self._rows, jobs, strict=True):
            async for _ in job:
                pass
            answers = job.answers()
            before = await self._text(row) if self._wanted.echo else ""
            # The model says nothing of the first token.
            thought: list[TokenLogprob | int] = []
            if self._wanted.echo:
                thought = [int(row.ids[0]), *answers[0].prompt_logprobs]
            for found in answers:
                said = [*thought, *found.logprobs]
                reason = found.finish_reason
                choice = await self._written(len(choices), before + found.text, said, reason)
                choices.append(choice)
        body = {**self._head, "choices": choices, "usage": usage(self._completions(jobs))}
        return await self._server.answers.response(body)

    def events(self, jobs: Sequence[Job]) -> AsyncIterator[bytes]:
        """The answers to all prompts as one stream."""

        def last() -> dict[str, Any]:
            return {**self._head, "choices": [], "usage": usage(self._completions(jobs))}

        return stream(self._chunks(jobs), last, self._wanted.stream_options)

    async def _chunks(self, jobs: Sequence[Job]) -> AsyncGenerator[dict[str, Any]]:
        """The pieces of all answers, as they come."""
        lengths: Counter[int] = Counter()  # characters of each answer so far
        async with aclosing(merged(jobs)) as pieces:
            async for number, news in pieces:
                index = number * self._sampling.n + news.number
                logprobs, at = list(news.logprobs), lengths[index]
                choice = self._choice(index, news.text, logprobs, news.finish_reason, at)
                lengths[index] += sum(len(self._server.tokens.text(p.token)) for p in logprobs)
                yield {**self._head, "choices": [choice]}

    def _completions(self, jobs: Sequence[Job]) -> list[list[Completion]]:
        """What it all came to, once it has; told to the log where that was asked for."""
        answers = [job.answers() for job in jobs]
        self._server.note(self._request, [c.text for some in answers for c in some])
        return answers

    async def _text(self, row: Batch) -> str:
        decode = self._server.engine.processor.tokenizer.decode
        caller = self._server.caller(self._request)
        return await self._server.in_turn(len(row) > LARGE, caller, decode, row.ids.tolist())

    async def _written(
        self, index: int, text: str, said: Sequence[TokenLogprob | int], reason: str | None
    ) -> Any:
        """A choice; a large one is written already."""
        size = len(said) * (4 + (self._wanted.logprobs or 0))
        build = partial(self._choice, index, text, said, reason)
        return await self._server.answers.built(build, size)

    def _choice(
        self,
        index: int,
        text: str,
        said: Sequence[TokenLogprob | int],
        reason: str | None,
        at: int = 0,
    ) -> dict[str, Any]:
        told = None if self._wanted.logprobs is None else self._logprobs(said, at)
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}

    def _logprobs(self, said: Sequence[TokenLogprob | int], at: int) -> dict[str, Any]:
        """OpenAI's four lists. `at`: where in the answer's text the first of these tokens stands."""
        tokens = self._server.tokens
        found: dict[str, list[Any]] = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        for one in said:
            id = one if isinstance(one, int) else one.token
            found["tokens"].append(tokens.text(id))
            found["text_offset"].append(at)
            at += len(tokens.text(id))
            if isinstance(one, int):
                found["token_logprobs"].append(None)
                found["top_logprobs"].append(None)
                continue
            found["token_logprobs"].append(finite(one.logprob))
            top = {tokens.text(t): finite(v) for t, v in one.top}
            # The token itself is always among them, so there may be one more than requested.
            found["top_logprobs"].append({**top, tokens.text(id): finite(one.logprob)})
        return found
