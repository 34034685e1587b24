"""Completions of plain text, for log-likelihood harnesses and old clients.

A prompt is text without a template, or token ids. `echo` puts the prompt before the answer, and with `logprobs` also
returns the log-probabilities of the prompt's tokens; with `max_tokens: 0` only the prompt is returned.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyphi.engine.request import Client, Request
from polyphi.runtime.steps import Steps
from polyphi.serve.answer.jobs import Job
from polyphi.serve.answer.server import LARGE, Server
from polyphi.serve.answer.tokens import finite
from polyphi.serve.http.errors import STREAMED, ApiError
from polyphi.serve.http.events import Events, unless_disconnected
from polyphi.serve.http.json_parser import JsonRoute
from polyphi.serve.http.response_json import base_fields, token_usage, usage
from polyphi.serve.openai.prompt_logprobs import prompt_fields
from polyphi.serve.openai.schema import CompletionRequest
from polyphi.serve.openai.streams import merged, stream
from polyphi.types.batch import Batch
from polyphi.types.completion import TokenLogprob
from polyphi.types.sampling import SamplingParams

MAX_PROMPTS = 128


def routes(server: Server) -> APIRouter:
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions", summary="Continue a text", responses=STREAMED)
    async def completions(body: CompletionRequest, request: HttpRequest) -> Response:
        adapter = server.adapter(body.model, body.adapter)
        prompt_only = body.max_tokens == 0
        if prompt_only and not body.echo:
            raise ApiError(400, "max_tokens: 0 requires echo: true", param="max_tokens")
        requested = body.sampling(
            grammar=body.grammar(),
            max_tokens=1 if prompt_only else body.max_tokens or 16,
            logprobs=body.logprobs,
        )
        with server.admit(request) as admitted:
            admitted.use_adapter(adapter)
            sampling = await server.check_sampling(admitted, requested, body)
            rows = await unless_disconnected(
                request,
                text_rows(server, admitted.caller, body.prompt, adapter, "prompt", MAX_PROMPTS),
            )
            admitted.reserve(sum(row.nbytes for row in rows))
            if body.echo and body.logprobs is not None:
                most = max(body.logprobs, body.prompt_logprobs or 0)
                sampling = replace(sampling, prompt_logprobs=most)
            with server.api_errors("prompt"):
                await server.in_turn(
                    False,
                    admitted.caller,
                    lambda: [server.fit_sampling(row, sampling) for row in rows],
                )
            server.log_prompt(request, body.prompt)
            body.prompt = ""
            admitted.keep(rows)
            answer = CompletionsAnswer(server, request, body, sampling, rows)
            if prompt_only and sampling.prompt_logprobs is None and not body.return_token_ids:
                if body.stream:
                    return Events(answer.echo_events(), admitted.transfer())
                return await unless_disconnected(request, answer.echo_only())
            if prompt_only:
                sampling = replace(
                    sampling, max_tokens=0, n=1, prompt_logprobs=sampling.prompt_logprobs or 0
                )
            jobs = await server.submit(admitted, rows, sampling)
            if body.stream:
                return Events(answer.events(jobs), admitted.transfer())
            return await unless_disconnected(request, answer.whole(jobs))

    return router


async def text_rows(
    server: Server, caller: Client, texts: Any, adapter: str | None, param: str, most: int
) -> list[Batch]:
    """A row for each text or list of token ids of the field `param`, which has at most `most`. Text never becomes a
    control token; an empty text becomes the end-of-document token."""
    is_one = isinstance(texts, str) or (texts and isinstance(texts[0], int))
    prompts = [texts] if is_one else texts
    if not 1 <= len(prompts) <= most:
        raise ApiError(
            400, f"{param}: expected 1 to {most} texts, found {len(prompts)}", param=param
        )
    engine = server.engine

    def rows() -> Steps[list[Batch]]:
        processor, context, batches = engine.processor, engine.longest, []
        for item in prompts:
            yield
            (ids,) = processor.encode([item], context) if isinstance(item, str) else [item]
            ids = ids or [processor.tokenizer.eos_ids[-1]]
            batches.append(engine.rows.ids_row(ids, adapter=adapter, context=context))
        return batches

    with server.api_errors(param):
        return await server.in_steps(sum(map(len, prompts)) > LARGE, caller, rows())


class CompletionsAnswer:
    """The answers to the prompts of a request in OpenAI's format, in the order of the prompts."""

    def __init__(
        self,
        server: Server,
        request: HttpRequest,
        body: CompletionRequest,
        sampling: SamplingParams,
        rows: Sequence[Batch],
    ) -> None:
        self._server, self._request, self._rows = server, request, rows
        self._body, self._sampling = body, sampling
        self._head = base_fields("cmpl", "text_completion", server.adapters.model_name(body.model))

    async def echo_only(self) -> Response:
        """A response with the prompts only."""
        choices = [await self._echo(number, row) for number, row in enumerate(self._rows)]
        body = {**self._head, "choices": choices, "usage": self._echo_usage}
        return await self._server.answers.response(body)

    def echo_events(self) -> AsyncIterator[bytes]:
        """The prompts only, as a stream."""

        async def chunks() -> AsyncGenerator[dict[str, Any]]:
            for number, row in enumerate(self._rows):
                yield {**self._head, "choices": [await self._echo(number, row)]}

        def last() -> dict[str, Any]:
            return {**self._head, "choices": [], "usage": self._echo_usage}

        options, writer = self._body.stream_options, self._server.answers
        return stream(writer, chunks(), last, options, lambda: self._echo_usage)

    async def _echo(self, number: int, row: Batch) -> Any:
        return await self._choice_part(number, await self._text(row), (), reason="length")

    @property
    def _echo_usage(self) -> dict[str, Any]:
        return token_usage(sum(map(len, self._rows)), 0)

    async def whole(self, jobs: Sequence[Job]) -> Response:
        choices: list[Any] = []
        for row, job in zip(self._rows, jobs, strict=True):
            async for _ in job:
                pass
            before = await self._text(row) if self._body.echo else ""
            echoed = self._echoed_entries(row, job)
            prompt = await self._prompt_fields(job)
            for request, completion in zip(job.requests, job.answers(), strict=True):
                more = {"stop_reason": completion.stop_reason, **prompt}
                if self._body.return_token_ids:
                    more["token_ids"] = completion.tokens
                choice = await self._choice_part(
                    len(choices),
                    before + completion.text,
                    [*echoed, *completion.logprobs, *self._end_entries(request)],
                    reason=completion.finish_reason,
                    more=more,
                )
                choices.append(choice)
        self._log(jobs)
        body = {**self._head, "choices": choices, "usage": usage([job.answers() for job in jobs])}
        return await self._server.answers.response(body)

    def events(self, jobs: Sequence[Job]) -> AsyncIterator[bytes]:
        """The answers to all prompts as one stream."""

        def last() -> dict[str, Any]:
            return {**self._head, "choices": [], "usage": usage([job.answers() for job in jobs])}

        def usage_so_far() -> dict[str, Any]:
            prompts, answers = zip(*(job.usage for job in jobs), strict=True)
            return token_usage(sum(prompts), sum(answers))

        options, writer = self._body.stream_options, self._server.answers
        return stream(writer, self._chunks(jobs), last, options, usage_so_far)

    async def _chunks(self, jobs: Sequence[Job]) -> AsyncGenerator[dict[str, Any]]:
        """The deltas of all answers, as the engine produces them; with `echo` after a chunk with the prompt."""
        body, tokens = self._body, self._server.tokens
        lengths: dict[int, int] = {}  # characters of each answer so far
        async with aclosing(merged(jobs)) as pieces:
            async for number, output in pieces:
                index = number * self._sampling.n + output.number
                more: dict[str, Any] = {}
                if index not in lengths:
                    row, lengths[index] = self._rows[number], 0
                    more = await self._prompt_fields(jobs[number])
                    if body.echo:
                        echoed = self._echoed_entries(row, jobs[number])
                        text = await self._text(row)
                        choice = await self._choice_part(index, text, echoed, more=more)
                        yield {**self._head, "choices": [choice]}
                        ids = row.ids.tolist() if echoed else ()
                        lengths[index], more = sum(len(tokens.text(id)) for id in ids), {}
                if body.return_token_ids:
                    more["token_ids"] = output.tokens
                entries = output.logprobs
                if output.finish_reason:
                    entries += self._end_entries(jobs[number].requests[output.number])
                yield {
                    **self._head,
                    "choices": [
                        self._choice(
                            index,
                            output.text,
                            entries,
                            reason=output.finish_reason,
                            at=lengths[index],
                            more={"stop_reason": output.stop_reason, **more},
                        )
                    ],
                }
                lengths[index] += sum(len(tokens.text(entry.token)) for entry in output.logprobs)
        self._log(jobs)

    async def _prompt_fields(self, job: Job) -> dict[str, Any]:
        logprobs = job.requests[0].prompt_logprobs
        return await prompt_fields(
            self._server.answers, self._server.tokens, job, self._body, logprobs
        )

    def _echoed_entries(self, row: Batch, job: Job) -> list[TokenLogprob | int]:
        """The log-probabilities of an echoed prompt, if they are requested; the first token has none."""
        if not self._body.echo or self._body.logprobs is None:
            return []
        logprobs, count = job.requests[0].prompt_logprobs, self._body.logprobs
        return [int(row.ids[0]), *(replace(entry, top=entry.top[:count]) for entry in logprobs)]

    def _end_entries(self, request: Request) -> tuple[TokenLogprob, ...]:
        """The log-probability of the end token, after an echoed prompt. Harnesses score a prompt with `max_tokens: 1`
        and leave out the last entry as that of the generated token, so there has to be one."""
        return request.end_logprobs if self._body.echo else ()

    def _log(self, jobs: Sequence[Job]) -> None:
        """Log the texts of the ended jobs where that is enabled."""
        if self._server.settings.log_prompts:
            self._server.log_prompt(self._request, [c.text for job in jobs for c in job.answers()])

    async def _text(self, row: Batch) -> str:
        decode = self._server.engine.processor.tokenizer.decode
        caller = self._server.caller(self._request)
        return await self._server.in_turn(len(row) > LARGE, caller, decode, row.ids.tolist())

    async def _choice_part(
        self,
        index: int,
        text: str,
        entries: Sequence[TokenLogprob | int],
        *,
        reason: str | None = None,
        more: dict[str, Any] | None = None,
    ) -> Any:
        """A choice of the response; a large one comes already encoded."""
        size = len(entries) * (4 + (self._body.logprobs or 0))
        build = partial(self._choice, index, text, entries, reason=reason, more=more or {})
        return await self._server.answers.build_part(build, size)

    def _choice(
        self,
        index: int,
        text: str,
        entries: Sequence[TokenLogprob | int],
        *,
        reason: str | None,
        more: dict[str, Any],
        at: int = 0,
    ) -> dict[str, Any]:
        logprobs = None if self._body.logprobs is None else self._logprobs(entries, at)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**choice, "stop_reason": None, **more}

    def _logprobs(self, entries: Sequence[TokenLogprob | int], at: int) -> dict[str, Any]:
        """OpenAI's four lists. `at`: offset of the first of these tokens in the answer's text."""
        tokens = self._server.tokens
        name = partial(tokens.name, as_id=bool(self._body.return_tokens_as_token_ids))
        lists: dict[str, list[Any]] = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        for entry in entries:
            id = entry if isinstance(entry, int) else entry.token
            lists["tokens"].append(name(id))
            lists["text_offset"].append(at)
            at += len(tokens.text(id))
            if isinstance(entry, int):
                lists["token_logprobs"].append(None)
                lists["top_logprobs"].append(None)
                continue
            lists["token_logprobs"].append(finite(entry.logprob))
            top = {name(t): finite(v) for t, v in entry.top}
            # The token itself always comes first, so there may be one more than requested.
            own = {name(id): finite(entry.logprob)}
            lists["top_logprobs"].append({**own, **top, **own})
        return lists
