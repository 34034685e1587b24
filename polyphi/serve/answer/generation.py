"""One path for the three APIs that answer conversations: each translates its body to a `Generation`, and formats the
outputs of its job.

>>> return await answer(server, request, generation, lambda job, sampling: ChatAnswer(...), stream=True)
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyphi.engine.rows import PromptEnd
from polyphi.serve.answer.conversation import InputTurn, conversation
from polyphi.serve.answer.jobs import Job
from polyphi.serve.answer.prepare import is_large, prepare, with_expansion
from polyphi.serve.answer.server import AdmittedRequest, Server
from polyphi.serve.http.events import Events, unless_disconnected
from polyphi.serve.openai.schema import Sampling
from polyphi.types.batch import Batch
from polyphi.types.messages import Tokens, with_tools
from polyphi.types.sampling import SamplingParams


@dataclass
class Generation:
    """A conversation to answer: its `turns`, the functions in `tools`, an adapter, and sampling whose `max_tokens` is 0
    where the request has none. `param`: the request's field with the turns, for errors; `body`: the request; `end`: how
    the prompt ends."""

    turns: Sequence[InputTurn]
    tools: list[dict[str, Any]]
    adapter: str | None
    sampling: SamplingParams
    body: Sampling
    param: str
    end: PromptEnd = "generation_prompt"


class Answer(Protocol):
    """The outputs of a job in the format of an API."""

    async def whole(self) -> Response: ...

    def events(self) -> AsyncIterator[bytes]:
        """Server-sent events."""
        ...


def with_reasoning(
    sampling: SamplingParams, effort: str | None, budget: int | None
) -> SamplingParams:
    """Sampling with the reasoning of a model that has it, unless a grammar determines the answer from its first token
    on. Effort "none" closes its block at once; no other effort has an effect."""
    if sampling.grammar is not None:
        return sampling
    return replace(sampling, reasoning=True, reasoning_budget=0 if effort == "none" else budget)


async def answer(
    server: Server,
    request: HttpRequest,
    generation: Generation,
    formatted: Callable[[Job, SamplingParams], Answer],
    *,
    stream: bool | None,
) -> Response:
    """The response to a request. `formatted` also frees the request's copy of the conversation."""
    with server.admit(request) as admitted:
        admitted.use_adapter(generation.adapter)
        row, sampling = await unless_disconnected(
            request, _prepare(server, request, admitted, generation)
        )
        admitted.keep([row])
        (job,) = await server.submit(admitted, [row], sampling)
        del row  # its pixels are freed when the answers have ended
        generation.turns = ()
        result = formatted(job, sampling)
        if stream:
            return Events(result.events(), admitted.transfer())
        return await unless_disconnected(request, result.whole())


async def _prepare(
    server: Server, request: HttpRequest, admitted: AdmittedRequest, generation: Generation
) -> tuple[Batch, SamplingParams]:
    turns, param = generation.turns, generation.param
    sampling = await server.check_sampling(admitted, generation.sampling, generation.body)
    with server.media.request(admitted.caller.client, admitted.bytes) as media:
        messages = await conversation(media, turns, server.settings, param)
        if server.settings.log_prompts:
            server.log_prompt(request, [(m.role, m.text) for m in messages])
        if generation.tools:
            messages = with_tools(messages, generation.tools)
        with server.api_errors(param, turns):
            return await prepare(
                server, admitted, messages, generation.adapter, sampling, generation.end
            )


async def count_tokens(
    server: Server,
    request: HttpRequest,
    turns: Sequence[InputTurn],
    tools: Sequence[dict[str, Any]],
    param: str,
    end: PromptEnd = "generation_prompt",
) -> Tokens:
    """The tokens of a prompt, without running the model; of images and most audio only the headers are read."""

    async def counted(admitted: AdmittedRequest) -> Tokens:
        with server.media.request(admitted.caller.client, admitted.bytes) as media:
            messages = await conversation(media, turns, server.settings, param)
            messages = with_tools(messages, list(tools))
            expanded = await with_expansion(server, admitted, messages)
            count = server.engine.processor.count_steps(
                expanded.messages, continue_final=end == "final_message"
            )
            with expanded.errors():
                return await server.in_steps(is_large(messages), admitted.caller, count)

    with (
        server.admit(request) as admitted,
        server.api_errors(param, turns),
    ):
        return await unless_disconnected(request, counted(admitted))
