"""Output deltas that no client reads: they count, and end the stream where they are too many."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from polyphi.engine.engine import Engine
from polyphi.serve.admission.quotas import Pool
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer.jobs import UNCOUNTED, Job, OutputDelta
from polyphi.serve.answer.prepare import prepare
from polyphi.serve.answer.server import AdmittedRequest, Server
from polyphi.serve.http.errors import ApiError
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.fixtures.servers import request_of

LIMIT = 60_000
"""Bytes of all requests, with output that waits to be read."""
LONG = SamplingParams(temperature=0.0, max_tokens=450, logprobs=20)
Work = Callable[[Server, "Answers"], Coroutine[Any, Any, None]]


class Answers:
    """Jobs of clients."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.tickets: list[AdmittedRequest] = []

    async def start(self, client: bytes, sampling: SamplingParams = LONG) -> Job:
        ticket = self._server.admit(request_of(self._server, client))
        self.tickets.append(ticket)
        messages = [Message.user("hi")]
        row, sampling = await prepare(self._server, ticket, messages, "auto", sampling)
        ticket.keep([row])
        (job,) = await self._server.submit(ticket, [row], sampling)
        return job


def run(engine: Engine, work: Work) -> None:
    """Runs `work` with a server whose memory for requests is small, and partly taken."""

    async def main() -> None:
        server = Server(engine, Settings("tiny"))
        server.quotas.bytes = Pool("bytes of requests", LIMIT)
        server.quotas.bytes.take(b"other", 1)
        server.start()
        answers = Answers(server)
        try:
            await work(server, answers)
        finally:
            for ticket in answers.tickets:
                ticket.release()
                ticket.bytes.release()
            assert server.quotas.bytes.used == 1
            server.close()

    asyncio.run(main())
    assert engine.counters().requests == 0


async def ended(job: Job) -> None:
    async with asyncio.timeout(120):
        while any(request.finish_reason is None for request in job.requests):
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)


async def read(job: Job) -> list[OutputDelta]:
    return [delta async for delta in job]


def test_a_stream_that_is_not_read_ends(engine: Engine) -> None:
    async def work(server: Server, answers: Answers) -> None:
        job = await answers.start(b"a")
        await ended(job)
        assert 0 < server.quotas.bytes.used <= LIMIT
        waiting = [delta for delta in job._deltas._queue if delta.error is None]  # type: ignore[attr-defined]
        assert sum(delta.size for delta in waiting) <= LIMIT + UNCOUNTED
        with pytest.raises(ApiError) as caught:
            await read(job)
        assert (caught.value.status, caught.value.code) == (429, "unread_stream")
        assert job.delivered_tokens == len(waiting)
        assert server.quotas.bytes.used == 1

    run(engine, work)


def test_streams_that_are_read_go_on_beside_it(engine: Engine) -> None:
    """Also those of the same client, and where the limit of all is reached."""

    async def work(server: Server, answers: Answers) -> None:
        for client in (b"a", b"b"):
            await ended(await answers.start(client))
        assert server.quotas.bytes.used > 0.9 * LIMIT
        for client in (b"a", b"d"):
            job = await answers.start(client)
            deltas = await read(job)
            assert deltas[-1].finish_reason == "length" and job.delivered_tokens == LONG.max_tokens

    run(engine, work)


def test_output_without_log_probabilities_counts_too(engine: Engine) -> None:
    async def work(server: Server, answers: Answers) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=1500, n=2)
        job = await answers.start(b"a", sampling)
        await ended(job)
        assert server.quotas.bytes.used > LIMIT // 2

    run(engine, work)
