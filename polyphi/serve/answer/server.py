"""The engine behind the routes: one thread steps it for all requests, and handlers wait for its output.

>>> with server.admit(request) as admitted:                           # or 429
...     row, sampling = await prepare(server, admitted, messages, "auto", sampling)  # prepare.py; raises for errors
...     (job,) = await server.submit(admitted, [row], sampling)
...     async for delta in job: ...                      # OutputDelta: number of the answer, text, finish reason

`unless_disconnected` and `Events` notice when a client disconnects; the release of the admitted then ends its requests
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

from polyphi.decoding.structured import GrammarProcessEnded
from polyphi.devices.memory import OutOfMemory, ran_out
from polyphi.engine.added_adapters import UnknownAdapter
from polyphi.engine.engine import Engine
from polyphi.engine.request import Client, Request
from polyphi.engine.rows import AnswerTooLong, PromptTooLong
from polyphi.media.media import MediaError
from polyphi.runtime.heap import give_back
from polyphi.runtime.steps import Steps, result_of
from polyphi.serve.admission.quotas import (
    LARGE_THREADS,
    SMALL_THREADS,
    FairSlots,
    QuotaExceeded,
    Quotas,
    Reservation,
)
from polyphi.serve.admission.settings import MIB, Settings
from polyphi.serve.admission.threads import Threads
from polyphi.serve.answer import decoders
from polyphi.serve.answer.adapter_models import AdapterModels
from polyphi.serve.answer.conversation import InputTurn, media_paths
from polyphi.serve.answer.expansion import caps
from polyphi.serve.answer.fetch import Media, media_api_error
from polyphi.serve.answer.jobs import Job
from polyphi.serve.answer.metrics import Load, ServerMetrics
from polyphi.serve.answer.store import ResponseStore
from polyphi.serve.answer.tokens import RequestTokens
from polyphi.serve.http.errors import ApiError, as_api_error, context_exceeded
from polyphi.serve.http.json_parser import Parser
from polyphi.serve.http.response_json import Writer
from polyphi.serve.openai.schema import Sampling
from polyphi.types.batch import Batch
from polyphi.types.sampling import SamplingParams

log = logging.getLogger("polyphi.serve")
T = TypeVar("T")
TRIM_IDLE, TRIM_BUSY = 5.0, 60.0
"""Minimum seconds between two returns of free memory to the system: without running requests, and with them."""
STEP_SECONDS = 300.0
"""Time after the last step of the engine, or its last look for requests, from which it counts as stuck. A step of a
large model on a slow CPU may take minutes."""
MATCHERS = 16
"""Requests with a grammar that may run or wait in any case."""
LARGE = 32 << 10
"""Characters of text, or token ids, above which a request is large; one with images or audio always is."""


class AdmittedRequest:
    """The slot of an admitted request, until its release, which also ends its jobs within a step.

    The end of a `with` block releases it, unless `transfer` was called.
    """

    def __init__(self, server: "Server", request: HTTPConnection, live: bool) -> None:
        self.caller, self.live = server.caller(request), live
        self.admitted_at = time.monotonic()
        self._server = server
        self._jobs: list[Job] = []
        self._admission = server.take_slots(self.caller.client, live)
        self._slots: list[FairSlots] = []
        self.bytes: Reservation = request.state.bytes
        self._rows = self._row_bytes = 0
        if (connection := getattr(request.state, "connection", None)) is not None:
            connection.admitted = True  # until the end of the response
        self._lock = threading.Lock()
        self._adapter: str | None = None
        self._released = self._transferred = False

    @property
    def released(self) -> bool:
        return self._released

    def reserve(self, count: int) -> None:
        """Reserves `count` more bytes for the rows of this request. Raises ApiError 429 where other requests leave too
        little."""
        self._server.reserve(self.bytes, count)

    def keep(self, rows: Sequence[Batch]) -> None:
        """Sets the bytes that are reserved to those of the rows, until their answers have ended: the body and its media
        are no longer in memory."""
        self._rows, self._row_bytes = len(rows), sum(row.nbytes for row in rows)
        self.bytes.resize(self._row_bytes)

    def _row_ended(self) -> None:
        with self._lock:
            self._rows -= 1
            if not self._rows:
                self.bytes.grow(-self._row_bytes)

    async def take_slot(self, slots: FairSlots) -> None:
        """Waits for a slot, and occupies it until the release."""
        await slots.take(self.caller.client)
        self._slots.append(slots)
        if self._released:  # the client disconnected meanwhile
            self._free_slots()

    def _free_slots(self) -> None:
        while self._slots:
            self._slots.pop().release(self.caller.client)

    def use_adapter(self, key: str | None) -> None:
        """Keeps the adapter of this request from being removed before the release."""
        self._adapter = key
        self._server.adapters.use(key)

    def add(self, job: Job) -> None:
        job.on_end = self._row_ended
        self._jobs.append(job)
        if self._released:  # the client disconnected while the job was created
            self._server.drop(job)

    def transfer(self) -> Callable[[], None]:
        """The function that releases the admitted; the end of the `with` block no longer does."""
        self._transferred = True
        return self.release

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._server.release(self)
            self._server.adapters.release(self._adapter)
            for job in self._jobs:
                self._server.drop(job)
            self._free_slots()
            for reservation in self._admission:
                reservation.release()

    def __enter__(self) -> "AdmittedRequest":
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        if error_type is not None or not self._transferred:
            self.release()


class Server:
    """An engine with its settings and the admitted requests. The app's lifespan calls `start` and `close`."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.quotas = Quotas(settings, engine.scheduler.max_num_seqs)
        self.parser = Parser()
        self.media = Media(settings)
        self.store = ResponseStore(settings.max_stored_bytes)
        self.metrics = ServerMetrics(settings.name, self._load, vllm_names=settings.vllm_names)
        self.adapters = AdapterModels(engine, settings, self.metrics)
        self.adapter = self.adapters.select
        self.tokens = RequestTokens(engine.processor.tokenizer)
        self.started = int(time.time())
        self.draining = False
        self._seconds = 1.0  # moving average of a request's duration
        self._jobs: set[Job] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.answers = Writer()
        self._small = Threads(SMALL_THREADS, "prepare")
        self._large = Threads(LARGE_THREADS, "prepare large")
        self._grammars = Threads(2, "compile grammars")
        self.matchers = FairSlots(max(MATCHERS, engine.scheduler.max_num_seqs))
        """For each request with a grammar, until its end: it has a process of its own."""
        self.expansion_threads = Threads(2, "decode videos and documents")
        self.large_media_threads = Threads(1, "decode large media")
        self._heap_used = False  # since free memory was last returned to the system, at `_trimmed`
        self._trimmed = time.monotonic()
        self._abort_pool = ThreadPoolExecutor(1, "drop")
        self._stepped_at = time.monotonic()
        engine.processor.caps = caps(settings)
        engine.encoders.on_encode = self.metrics.encoded

    def start(self) -> None:
        self.engine.processor.decoders = decoders.start(self.settings)
        self.engine.on_step = self.metrics.step
        self._stepped_at = time.monotonic()
        self._thread.start()

    def close(self) -> None:
        """Aborts all running requests and stops the engine thread and the pools."""
        self.draining = True
        for job in list(self._jobs):
            for request in job.requests:
                self.engine.abort(request)
        self._poll_jobs(None)
        self._stop.set()
        self.engine.wake()
        self._thread.join()
        for threads in (self._small, self._large, self.expansion_threads, self.large_media_threads):
            threads.close()
        self._grammars.close(wait=False)
        self._abort_pool.shutdown()
        self.parser.close()
        self.adapters.close()
        self.answers.close()
        self.media.close()
        if (started := self.engine.processor.decoders) is not None:
            self.engine.processor.decoders = None
            started.close()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs, and its last step ended a short time ago."""
        return self._thread.is_alive() and time.monotonic() - self._stepped_at < STEP_SECONDS

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
        self._stepped_at = time.monotonic()
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
        interval = TRIM_BUSY if self.admitted else TRIM_IDLE
        if self._heap_used and time.monotonic() - self._trimmed > interval:
            self._heap_used, self._trimmed = False, time.monotonic()
            give_back()

    def _load(self) -> Load:
        counters = self.engine.counters()
        waiting = max(0, self.admitted - self.live_sessions - counters.running)
        store, used, sessions = self.store, self.quotas.bytes.used, self.live_sessions
        return Load(counters, waiting, used, sessions, store.count, store.bytes)

    @property
    def capacity(self) -> int:
        """Maximum number of requests that run or wait at once."""
        return self.quotas.requests.total

    @property
    def admitted(self) -> int:
        return self.quotas.requests.used

    def admit(self, request: HTTPConnection, live: bool = False) -> AdmittedRequest:
        """Admits a request or, with `live`, a session of live transcription. Raises ApiError 429 with the estimated
        waiting time where the server or the client is at its limit, and 503 when the server is stopping."""
        if self.draining:
            raise ApiError(
                503,
                "the server is stopping; try another server or try again later",
                code="stopping",
            )
        return AdmittedRequest(self, request, live)

    @property
    def live_sessions(self) -> int:
        return self.quotas.sessions.used

    def take_slots(self, client: bytes, live: bool) -> list[Reservation]:
        """The slot of a request, and with `live` that of a session. Raises ApiError 429 where the server or the client
        is at its limit."""
        reservations = [self._take_session(client)] if live else []
        try:
            return [*reservations, self.quotas.requests.take(client, 1)]
        except QuotaExceeded as full:
            for reservation in reservations:
                reservation.release()
            if full.by_client:
                reason = (
                    f"{full.in_use} of your requests are running or waiting, and one client may have "
                    f"{full.limit} at present"
                )
            else:
                reason = f"{full.in_use} requests are running or waiting, which is the limit of this server"
            seconds = self._seconds * full.in_use / self.engine.scheduler.max_num_seqs
            wait = min(600, max(1, round(seconds)))
            raise ApiError(
                429,
                f"{reason}; try again in about {wait} s",
                code="queue_full",
                headers={"Retry-After": str(wait)},
            ) from None

    def _take_session(self, client: bytes) -> Reservation:
        sessions = self.quotas.sessions
        own = sessions.used_by(client)
        try:
            return sessions.take(client, 1)
        except QuotaExceeded:
            raise ApiError(
                429,
                f"{sessions.used} sessions of live transcription are open, {own} of them by this client; at most "
                f"{sessions.total} may be, three quarters of them by one client and fewer beside others; try again "
                "later",
                code="too_many_sessions",
                headers={"Retry-After": "60"},
            ) from None

    def release(self, admitted: AdmittedRequest) -> None:
        if admitted.live:  # its duration says nothing about the time that a request takes
            return
        self._seconds += 0.1 * (time.monotonic() - admitted.admitted_at - self._seconds)

    def reserve(self, reservation: Reservation, count: int) -> None:
        """Adds bytes to the memory that a request holds for its rows. Raises ApiError 429 where other requests leave
        too little."""
        try:
            reservation.grow(count)
        except QuotaExceeded as full:
            wait = min(600, max(1, round(self._seconds)))
            whose = "those of one client" if full.by_client else "all"
            raise ApiError(
                429,
                f"the prompt of this request takes about {count / MIB:,.1f} MiB of memory; of all requests {whose} may "
                f"use {full.limit / MIB:,.1f} MiB at present, of which {full.in_use / MIB:,.1f} are in use; try again "
                f"in about {wait} s, or with fewer images or less audio",
                code="memory_full",
                headers={"Retry-After": str(wait)},
            ) from None

    async def check_sampling(
        self, admitted: AdmittedRequest, sampling: SamplingParams, body: Sampling
    ) -> SamplingParams:
        """The sampling parameters with their grammar compiled. Raises ApiError for invalid values and unsupported
        grammars. Without a requested length `max_tokens` is 0 until `fit_sampling`."""
        if sampling.n > self.settings.max_answers:
            raise ApiError(
                400,
                f"n: expected at most {self.settings.max_answers}, found {sampling.n}",
                param="n",
            )
        probe = replace(sampling, max_tokens=sampling.max_tokens or 1, grammar=None)
        try:
            await self.in_turn(False, admitted.caller, self.engine.rows.check_sampling, probe)
        except ValueError as error:
            raise ApiError(400, str(error), param=body.sampling_field(str(error))) from None
        if sampling.grammar is None:
            return sampling
        try:
            return await self._with_grammar(admitted, sampling)
        except GrammarProcessEnded as error:
            raise as_api_error(error) from None
        except ValueError as error:
            of_tools = "tools" in str(error).split()
            param = "tools" if of_tools else body.format_field
            raise ApiError(400, str(error), param=param) from None

    async def _with_grammar(
        self, admitted: AdmittedRequest, sampling: SamplingParams
    ) -> SamplingParams:
        """The sampling with its grammar compiled, in turn with the other grammars of the client."""
        await admitted.take_slot(self.matchers)
        stop = threading.Event()
        work = self.engine.rows.with_grammar
        try:
            return await self._grammars.run(admitted.caller.client, work, sampling, stop.is_set)
        finally:
            stop.set()  # the client may have left

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
            raise context_exceeded(error, self.engine.rows.context, param) from None
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

    def caller(self, request: HTTPConnection) -> Client:
        """The client of a request: the API key's owner, or else the IP address (for IPv6 its /64 network)."""
        tenant = b"" if self.settings.share_prefixes else request.state.tenant
        return Client(request.state.client, tenant)

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """The result of the server's own short `work`, run in one of a few threads."""
        return await self._small.run(b"", work, *args)

    async def in_turn(self, large: bool, caller: Client, work: Callable[..., T], *args: Any) -> T:
        """The result of `work` for a client, run in a thread in the client's turn; small work never waits for `large`
        work."""
        try:
            threads = self._large if large else self._small
            return await threads.run(caller.client, work, *args)
        finally:
            self._heap_used = True

    async def in_steps(
        self, large: bool, caller: Client, steps: Steps[T], threads: Threads | None = None
    ) -> T:
        """Run work in steps, which stops when cancelled. Between two steps of `large` work other clients take their
        turns; it runs in `threads`, or in those of all large work."""
        if not large:
            return await self.in_turn(False, caller, result_of, steps)
        try:
            return await (threads or self._large).run_steps(caller.client, steps)
        finally:
            self._heap_used = True

    def fit_sampling(self, row: Batch, sampling: SamplingParams) -> SamplingParams:
        """Sampling that fits a row: `max_tokens` 0 becomes the rest of the context, up to the server's limit."""
        if sampling.max_tokens == 0:
            available = self.engine.longest - len(row)
            sampling = replace(
                sampling, max_tokens=max(1, min(available, self.settings.max_tokens))
            )
        self.engine.rows.check_row(row, sampling)
        return sampling

    async def submit(
        self, admitted: AdmittedRequest, rows: Sequence[Batch], sampling: SamplingParams
    ) -> list[Job]:
        """Starts the generation for each row, which `fit_sampling` has checked. The jobs end with the admitted. Raises
        ApiError if the adapter was removed meanwhile."""
        loop = asyncio.get_running_loop()
        return await self.in_turn(
            False, admitted.caller, self._submit, admitted, rows, sampling, loop
        )

    def _submit(
        self,
        admitted: AdmittedRequest,
        rows: Sequence[Batch],
        sampling: SamplingParams,
        loop: asyncio.AbstractEventLoop,
    ) -> list[Job]:
        try:
            requests_by_row = self.engine.enter_all(rows, sampling, caller=admitted.caller)
        except UnknownAdapter as error:
            raise as_api_error(error) from None
        jobs = [
            Job(self.engine, self.metrics, requests, loop, admitted.bytes)
            for requests in requests_by_row
        ]
        for row, job in zip(rows, jobs, strict=True):
            admitted.add(job)
            for _ in job.requests:
                self.metrics.arrived(row.adapters[0])
            self._jobs.add(job)
            if not job.poll():  # it may have ended before the first poll
                self._jobs.discard(job)
        return jobs

    def drop(self, job: Job) -> None:
        """Aborts a job's requests without waiting, and drops its output."""
        if job.requests and any(request.finish_reason is None for request in job.requests):
            self._abort_pool.submit(self._abort, job.requests)

    def _abort(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.engine.abort(request)
