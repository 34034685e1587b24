"""The engine behind the routes: one thread steps it for all requests, and handlers wait for its output.

>>> with server.admit(server.caller(request)) as ticket:            # or 429
...     row, sampling = await server.prepare(ticket, messages, "auto", sampling)   # raises for errors
...     (job,) = await server.submit(ticket, [row], sampling)
...     async for delta in job: ...                      # OutputDelta: number of the answer, text, finish reason

`unless_disconnected` and `Events` notice when a client disconnects; the release of the ticket then ends its requests
within a step. Nothing here waits for the engine in the event loop's thread.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, TypeVar

from starlette.requests import HTTPConnection

from polyphi.batch import Batch
from polyphi.engine.adapters import UnknownAdapter
from polyphi.engine.engine import Engine
from polyphi.engine.media import MediaError
from polyphi.engine.memory import OutOfMemory, ran_out
from polyphi.engine.prompt import PromptEnd
from polyphi.engine.request import Caller, Request
from polyphi.engine.rows import AnswerTooLong, PromptTooLong
from polyphi.engine.structured import Matcher
from polyphi.messages import (
    Grammar,
    Message,
    SamplingParams,
    Text,
)
from polyphi.runtime import cpu
from polyphi.runtime.heap import give_back
from polyphi.serve.adapters import AdapterModels
from polyphi.serve.answers import Writer
from polyphi.serve.budget import Budget, Share
from polyphi.serve.conversation import InputTurn, media_paths
from polyphi.serve.errors import ApiError, as_api_error, context_exceeded
from polyphi.serve.fetch import Media, media_api_error
from polyphi.serve.jobs import Job
from polyphi.serve.json_parser import Parser
from polyphi.serve.metrics import Load, Metrics
from polyphi.serve.schema import Sampling
from polyphi.serve.settings import MIB, Settings
from polyphi.serve.shares import Shares, client_of
from polyphi.serve.store import ResponseStore
from polyphi.serve.tokens import Tokens
from polyphi.serve.turns import Turns
from polyphi.serve.videos import caps, frames_of

log = logging.getLogger("polyphi.serve")
T = TypeVar("T")
FRAMES_PER_SECOND = 100
"""Log-mel frames per second of audio."""
SMALL_THREADS = 4
"""Threads for small requests and other short work."""
LARGE_THREADS = max(1, min(4, cpu.usable() // 4))
"""Threads for large requests: few, so that most cores remain for steps and other work."""
TRIM_IDLE, TRIM_BUSY = 5.0, 60.0
"""Minimum seconds between two returns of free memory to the system: without running requests, and with them."""
LARGE = 32 << 10
"""Characters of text, or token ids, above which a request is large; one with images or audio always is."""


class Ticket:
    """The slot of an admitted request, until its release, which also ends its jobs within a step.

    The end of a `with` block releases it, unless `transfer` was called.
    """

    def __init__(self, server: "Server", caller: Caller, live: bool) -> None:
        self.caller, self.live = caller, live
        self.admitted_at = time.monotonic()
        self._server = server
        self._jobs: list[Job] = []
        self._share: Share | None = None
        self._adapter: str | None = None
        self._released = self._transferred = False

    @property
    def released(self) -> bool:
        return self._released

    def reserve(self, count: int, rows: int = 1) -> Share:
        """Reserves memory for the rows of this request, until their answers have ended. Raises ApiError 429 where other
        requests leave too little."""
        self._share = share = self._server.reserve(count, rows)
        if self._released:  # the client disconnected while the rows were prepared
            share.release()
        return share

    def use_adapter(self, key: str | None) -> None:
        """Keeps the adapter of this request from being removed before the release."""
        self._adapter = key
        self._server.adapters.use(key)

    def add(self, job: Job) -> None:
        job.share = self._share
        self._jobs.append(job)
        if self._released:  # the client disconnected while the job was created
            self._server.drop(job)

    def transfer(self) -> Callable[[], None]:
        """The function that releases the ticket; the end of the `with` block no longer does."""
        self._transferred = True
        return self.release

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._server.release(self)
            self._server.adapters.release(self._adapter)
            for job in self._jobs:
                self._server.drop(job)
            if self._share is not None:
                self._share.release()

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        if error_type is not None or not self._transferred:
            self.release()


class Server:
    """An engine with its settings and the admitted requests. The app's lifespan calls `start` and `close`."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.shares = Shares(settings)
        self.parser = Parser(self.shares.parsing)
        self.media = Media(settings)
        self.store = ResponseStore(settings.max_stored_bytes)
        self.metrics = Metrics(settings.name, self._load, vllm_names=settings.vllm_names)
        self.adapters = AdapterModels(engine, settings, self.metrics)
        self.adapter = self.adapters.select
        self.tokens = Tokens(engine.processor.tokenizer)
        self.started = int(time.time())
        self.draining = False
        self._tickets: set[Ticket] = set()
        self._seconds = 1.0  # moving average of a request's duration
        self._jobs: set[Job] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.answers = Writer()
        self.budget = Budget(settings.max_prepared_bytes)
        self._small_pool = ThreadPoolExecutor(SMALL_THREADS, "prepare")
        self._large_pool = ThreadPoolExecutor(LARGE_THREADS, "prepare large")
        self._turns = Turns(LARGE_THREADS)
        self._heap_used = False  # since free memory was last returned to the system, at `_trimmed`
        self._trimmed = time.monotonic()
        self._abort_pool = ThreadPoolExecutor(1, "drop")
        engine.processor.caps = caps(settings)
        engine.encoders.on_encode = self.metrics.encoded

    def start(self) -> None:
        self.engine.core.on_step = self.metrics.step
        self._thread.start()
        if self.structured:  # otherwise the first grammar waits seconds for the tokenizer's trie
            self._small_pool.submit(
                Matcher, Grammar("json", "true"), self.engine.processor.tokenizer
            )

    def close(self) -> None:
        """Aborts all running requests and stops the engine thread and the pools."""
        self.draining = True
        for job in list(self._jobs):
            for request in job.requests:
                self.engine.abort(request)
        self._poll_jobs(None)
        self._stop.set()
        self._thread.join()
        self._small_pool.shutdown(cancel_futures=True)
        self._large_pool.shutdown(cancel_futures=True)
        self._abort_pool.shutdown()
        self.parser.close()
        self.adapters.close()
        self.answers.close()
        self.media.close()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        return self.alive and not self.draining

    @property
    def structured(self) -> bool:
        """Whether structured output is available."""
        return find_spec("llguidance") is not None

    def _run(self) -> None:
        self.engine.run(self._stop, self._poll_jobs)

    def _poll_jobs(self, error: BaseException | None) -> None:
        if error is not None:
            log.error("a step failed", exc_info=error)
        for job in list(self._jobs):
            try:
                running = job.poll()
            except Exception as exception:  # an error in one job must not end the engine thread
                log.error("the output of a job could not be delivered", exc_info=exception)
                running = False
            if not running:
                self._jobs.discard(job)
        interval = TRIM_BUSY if self._tickets else TRIM_IDLE
        if self._heap_used and time.monotonic() - self._trimmed > interval:
            self._heap_used, self._trimmed = False, time.monotonic()
            give_back()

    def _load(self) -> Load:
        counters = self.engine.counters()
        waiting = max(0, self.admitted - self.live_sessions - counters.running)
        store = self.store
        return Load(
            counters, waiting, self.budget.bytes, self.live_sessions, store.count, store.bytes
        )

    @property
    def capacity(self) -> int:
        """Maximum number of requests that run or wait at once."""
        return self.engine.scheduler.max_num_seqs + self.settings.max_waiting

    @property
    def client_capacity(self) -> int:
        """Maximum number of requests of one client: a quarter of the capacity remains for others."""
        return max(1, self.capacity - self.capacity // 4)

    @property
    def admitted(self) -> int:
        return len(self._tickets)

    def admit(self, caller: Caller, live: bool = False) -> Ticket:
        """A ticket for a request or, with `live`, for a session of live transcription. Raises ApiError 429 with the
        estimated waiting time where the server or the client is at its limit, and 503 when the server is stopping."""
        if self.draining:
            raise ApiError(
                503,
                "the server is stopping; try another server or try again later",
                code="stopping",
            )
        if live:
            self._check_live(caller)
        own = sum(ticket.caller.client == caller.client for ticket in self._tickets)
        if self.admitted >= self.capacity or own >= self.client_capacity:
            limit = "this server" if self.admitted >= self.capacity else "one client"
            count = self.admitted if self.admitted >= self.capacity else own
            wait = max(1, round(self._seconds * count / self.engine.scheduler.max_num_seqs))
            raise ApiError(
                429,
                f"{count} requests are running or waiting, which is the limit of {limit}; try again in about "
                f"{min(wait, 600)} s",
                code="queue_full",
                headers={"Retry-After": str(min(wait, 600))},
            )
        ticket = Ticket(self, caller, live)
        self._tickets.add(ticket)
        return ticket

    @property
    def live_sessions(self) -> int:
        return sum(ticket.live for ticket in self._tickets)

    def _check_live(self, caller: Caller) -> None:
        """Raises ApiError 429 if all sessions of live transcription are in use; a quarter remains for other clients."""
        limit = self.settings.max_live_sessions
        own = sum(ticket.live and ticket.caller.client == caller.client for ticket in self._tickets)
        if self.live_sessions >= limit or own >= max(1, limit - limit // 4):
            raise ApiError(
                429,
                f"{self.live_sessions} sessions of live transcription are open, {own} of them by this client; at most "
                f"{limit} may be, {max(1, limit - limit // 4)} by one client; try again later",
                code="too_many_sessions",
                headers={"Retry-After": "60"},
            )

    def release(self, ticket: Ticket) -> None:
        self._tickets.discard(ticket)
        if ticket.live:  # its duration says nothing about the time that a request takes
            return
        self._seconds += 0.1 * (time.monotonic() - ticket.admitted_at - self._seconds)

    def reserve(self, count: int, rows: int) -> Share:
        """Reserves memory for a request's rows. Raises ApiError 429 where other requests leave too little."""
        if (share := self.budget.reserve(count, rows)) is None:
            wait = min(600, max(1, round(self._seconds)))
            raise ApiError(
                429,
                f"the prompt of this request takes about {count / MIB:,.1f} MiB of memory; all prompts may use "
                f"{self.budget.limit / MIB:,.1f} MiB, of which {self.budget.bytes / MIB:,.1f} are in use; try "
                f"again in about {wait} s, or with fewer images or less audio",
                code="memory_full",
                headers={"Retry-After": str(wait)},
            )
        return share

    async def check_sampling(
        self, caller: Caller, sampling: SamplingParams, body: Sampling
    ) -> SamplingParams:
        """The same sampling parameters. Raises ApiError for invalid values and unsupported grammars. Without a
        requested length `max_tokens` is 0 until `prepare`."""
        if sampling.n > self.settings.max_answers:
            raise ApiError(
                400,
                f"n: expected at most {self.settings.max_answers}, found {sampling.n}",
                param="n",
            )
        probe = replace(sampling, max_tokens=sampling.max_tokens or 1)
        try:
            await self.in_thread(self.engine.check_sampling, replace(probe, grammar=None))
        except ValueError as error:
            raise ApiError(400, str(error), param=body.sampling_field(str(error))) from None
        if sampling.grammar is not None:
            large = len(sampling.grammar.text) > LARGE
            try:
                await self.in_turn(large, caller, self.engine.check_sampling, probe)
            except ValueError as error:
                of_tools = "tools" in str(error).split()
                param = "tools" if of_tools else body.format_field
                raise ApiError(400, str(error), param=param) from None
        return sampling

    @contextmanager
    def api_errors(self, param: str, turns: Sequence[InputTurn] = ()) -> Iterator[None]:
        """Converts the engine's exceptions about a request into ApiErrors; `turns` give the path of an invalid media
        part."""
        try:
            yield
        except MediaError as error:
            paths = media_paths(turns, error.part or "")
            path = paths[error.number] if error.number is not None and paths else param
            raise media_api_error(error, path) from None
        except (PromptTooLong, AnswerTooLong) as error:
            raise context_exceeded(error, self.engine.context, param) from None
        except UnknownAdapter as error:
            raise as_api_error(error) from None
        except ValueError as error:
            raise ApiError(400, str(error), param=param) from None
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            message = "there was not enough memory to prepare this request; try a smaller one, or try again later"
            raise as_api_error(OutOfMemory(message)) from None

    def log_prompt(self, request: HTTPConnection, content: object) -> None:
        """Logs prompts and answers if `Settings.log_prompts` is set; texts only, no media."""
        if self.settings.log_prompts:
            text = json.dumps(content, ensure_ascii=False)
            log.info("%s %s", request.state.request_id, text)

    def caller(self, request: HTTPConnection) -> Caller:
        """The client of a request: the API key's owner, or else the IP address (for IPv6 its /64 network)."""
        tenant, address = request.state.tenant, request.client.host if request.client else ""
        return Caller(client_of(tenant, address), tenant if self.settings.isolate else b"")

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """The result of `work`, run in one of a few threads."""
        self._heap_used = True
        return await asyncio.get_running_loop().run_in_executor(self._small_pool, work, *args)

    async def in_turn(self, large: bool, caller: Caller, work: Callable[..., T], *args: Any) -> T:
        """The same, with `large` work in separate threads, which clients use in turn: small work never waits for it."""
        self._heap_used = True
        if not large:
            return await self.in_thread(work, *args)
        async with self._turns.turn(caller.client):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._large_pool, work, *args)

    async def prepare(
        self,
        ticket: Ticket,
        messages: Sequence[Message],
        adapter: str | None,
        sampling: SamplingParams,
        end: PromptEnd = "generation_prompt",
    ) -> tuple[Batch, SamplingParams]:
        """The row of a conversation, and the sampling with `max_tokens` set. Raises ValueError for invalid ones, and
        ApiError 429 where there is no memory for the row."""
        large = is_large(messages)
        args = ticket, messages, adapter, sampling, end
        return await self.in_turn(large, ticket.caller, self._prepare, *args)

    def _prepare(
        self,
        ticket: Ticket,
        messages: Sequence[Message],
        adapter: str | None,
        sampling: SamplingParams,
        end: PromptEnd,
    ) -> tuple[Batch, SamplingParams]:
        started_at = time.monotonic()
        try:
            with frames_of(self.engine, messages, lambda: ticket.released) as expanded:
                # Before media are decoded: 64 rows of many images would exceed the machine's memory.
                share = ticket.reserve(self.engine.processor.media_bytes(expanded))
                longest = self.engine.longest
                row = self.engine.row(expanded, adapter=adapter, context=longest, end=end)
        except MediaError as error:
            self.metrics.media_rejected(error.reason)
            raise
        share.resize(row.nbytes)
        if row.images or row.clips:
            media_type = "image" if not row.clips else "audio" if not row.images else "mixed"
            self.metrics.media_decoded(media_type, time.monotonic() - started_at)
            self.metrics.audio_decoded(sum(clip.frames for clip in row.clips) / FRAMES_PER_SECOND)
        return row, self.fit_sampling(row, sampling)

    def fit_sampling(self, row: Batch, sampling: SamplingParams) -> SamplingParams:
        """Sampling that fits a row: `max_tokens` 0 becomes the rest of the context, up to the server's limit."""
        if sampling.max_tokens == 0:
            available = self.engine.longest - len(row)
            sampling = replace(
                sampling, max_tokens=max(1, min(available, self.settings.max_tokens))
            )
        self.engine.check_row(row, sampling)
        return sampling

    async def submit(
        self, ticket: Ticket, rows: Sequence[Batch], sampling: SamplingParams
    ) -> list[Job]:
        """Starts the generation for each row, which `prepare` has checked. The jobs end with the ticket. Raises
        ApiError if the adapter was removed meanwhile."""
        loop = asyncio.get_running_loop()
        return await self.in_thread(self._submit, ticket, rows, sampling, loop)

    def _submit(
        self,
        ticket: Ticket,
        rows: Sequence[Batch],
        sampling: SamplingParams,
        loop: asyncio.AbstractEventLoop,
    ) -> list[Job]:
        try:
            requests_by_row = self.engine.enter_all(rows, sampling, caller=ticket.caller)
        except UnknownAdapter as error:
            raise as_api_error(error) from None
        jobs = [Job(self.engine, self.metrics, requests, loop) for requests in requests_by_row]
        for row, job in zip(rows, jobs, strict=True):
            ticket.add(job)
            for _ in job.requests:
                self.metrics.arrived(row.adapters[0])
            self._jobs.add(job)
            if not job.poll():  # it may have ended before the first poll
                self._jobs.discard(job)
        return jobs

    def drop(self, job: Job) -> None:
        """Aborts a job's requests without waiting."""
        if job.requests and any(request.finish_reason is None for request in job.requests):
            self._abort_pool.submit(self._abort, job.requests)

    def _abort(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.engine.abort(request)


def is_large(messages: Sequence[Message]) -> bool:
    """Whether a conversation is expensive to prepare: it has media, or much text."""
    parts = [part for message in messages for part in message.parts]
    size = sum(len(part.text) for part in parts if isinstance(part, Text))
    size += sum(len(message.tools or "") for message in messages)
    return size > LARGE or not all(isinstance(part, Text) for part in parts)


def release_body(request: HTTPConnection) -> None:
    """Releases the memory of a request's body when its prompt is prepared."""
    request.state.body.release()
