"""The engine behind the routes: one thread steps it for everybody, handlers wait for what it says.

>>> with server.admit(server.caller(request)) as ticket:            # or 429
...     row, sampling = await server.prepare(messages, "auto", asked)   # what is wrong is told here
...     (job,) = await server.enter(ticket, [row], sampling)
...     async for news in job: ...                       # (number of the answer, text, finish reason)

Whoever goes away is noticed by `unless_gone` and by `Events`; the ticket's release then frees what its requests hold
within a step. Nothing here waits for the engine in the thread that serves connections.
"""

import asyncio
import ipaddress
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from polyphi.batch import Batch
from polyphi.engine.engine import Engine
from polyphi.engine.media import Caps, MediaError
from polyphi.engine.memory import OutOfMemory, ran_out
from polyphi.engine.request import Caller, Request
from polyphi.engine.structured import Matcher
from polyphi.messages import (
    Grammar,
    Message,
    SamplingParams,
    Text,
    normalize_adapter,
)
from polyphi.runtime.heap import give_back
from polyphi.serve.answers import Writer
from polyphi.serve.budget import Budget, Share
from polyphi.serve.errors import ApiError, failed
from polyphi.serve.fetch import Media, refusal
from polyphi.serve.jobs import Job
from polyphi.serve.metrics import Load, Metrics
from polyphi.serve.schema import Sampling, Turn
from polyphi.serve.settings import MIB, Settings
from polyphi.serve.tokens import Tokens
from polyphi.serve.turns import Turns

log = logging.getLogger("polyphi.serve")
T = TypeVar("T")
FRAMES_A_SECOND = 100
"""Of log-mel."""
PREPARING = 4
"""Threads that prepare small requests, and do other short work."""
LARGE_PREPARING = max(1, min(4, (os.cpu_count() or 1) // 4))
"""Threads that prepare large requests: few, so that most processors are left to steps and to others."""
TRIM_IDLE, TRIM_BUSY = 5.0, 60.0
"""Seconds at least between two times that free memory goes back to the system: while nobody is being answered, and
while somebody is."""
LARGE = 32 << 10
"""Characters of text, or token ids, from which on a request is large; one with images or audio is in any case."""


class Ticket:
    """A place among the requests that are admitted, until it is released; with it end its jobs, within a step.

    A `with` block releases it, unless it was `handed` on to whoever sends the answer.
    """

    def __init__(self, server: "Server", caller: Caller) -> None:
        self.caller = caller
        self.began = time.monotonic()
        self._server = server
        self._jobs: list[Job] = []
        self._share: Share | None = None
        self._released = self._handed = False

    def reserve(self, count: int, rows: int = 1) -> Share:
        """Memory for the rows of this request, until their answers have ended. Raises ApiError 429 where other requests
        leave too little."""
        self._share = share = self._server.reserve(count, rows)
        if self._released:  # whoever asked went away while the rows were made
            share.release()
        return share

    def add(self, job: Job) -> None:
        job.share = self._share
        self._jobs.append(job)
        if self._released:  # whoever asked went away while it was made
            self._server.drop(job)

    def handed(self) -> Callable[[], None]:
        """What releases it, from now on."""
        self._handed = True
        return self.release

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._server.release(self)
            for job in self._jobs:
                self._server.drop(job)
            if self._share is not None:
                self._share.release()

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None or not self._handed:
            self.release()


class Server:
    """An engine with its settings, and who is being answered. `start` and `close` belong to the app's life."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.media = Media(settings)
        self.metrics = Metrics(settings.name, self._load, vllm_names=settings.vllm_names)
        self.tokens = Tokens(engine.processor.tokenizer)
        self.started = int(time.time())
        self.draining = False
        self._tickets: set[Ticket] = set()
        self._seconds = 1.0  # that a request took lately
        self._jobs: set[Job] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.answers = Writer()
        self.budget = Budget(settings.max_prepared_bytes)
        self._preparing = ThreadPoolExecutor(PREPARING, "prepare")
        self._preparing_large = ThreadPoolExecutor(LARGE_PREPARING, "prepare large")
        self._turns = Turns(LARGE_PREPARING)
        self._heap_used = False  # since free memory was last given back, at `_trimmed`
        self._trimmed = time.monotonic()
        self._dropping = ThreadPoolExecutor(1, "drop")
        engine.processor.caps = Caps(
            settings.max_image_bytes,
            settings.max_image_pixels,
            settings.max_audio_bytes,
            settings.max_audio_seconds,
        )
        engine.encoders.on_encode = self.metrics.encoded

    def start(self) -> None:
        self.engine.core.on_step = self.metrics.step
        self._thread.start()
        if self.structured:  # the first grammar would wait seconds for its view of the vocabulary
            self._preparing.submit(
                Matcher, Grammar("json", "true"), self.engine.processor.tokenizer
            )

    def close(self) -> None:
        """Ends all that is still under way and the thread that steps."""
        self.draining = True
        for job in list(self._jobs):
            for request in job.requests:
                self.engine.abort(request)
        self._look(None)
        self._stop.set()
        self._thread.join()
        self._preparing.shutdown(cancel_futures=True)
        self._preparing_large.shutdown(cancel_futures=True)
        self._dropping.shutdown()
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
        """Whether answers can be held to a form."""
        return find_spec("llguidance") is not None

    def _run(self) -> None:
        self.engine.run(self._stop, self._look)

    def _look(self, error: BaseException | None) -> None:
        if error is not None:
            log.error("a step failed", exc_info=error)
        for job in list(self._jobs):
            try:
                more = job.look()
            except Exception as failure:  # one job's trouble must not end the thread that steps
                log.error("a job can't be told its news", exc_info=failure)
                more = False
            if not more:
                self._jobs.discard(job)
        least = TRIM_BUSY if self._tickets else TRIM_IDLE
        if self._heap_used and time.monotonic() - self._trimmed > least:
            self._heap_used, self._trimmed = False, time.monotonic()
            give_back()

    def _load(self) -> Load:
        counters = self.engine.counters()
        waiting = max(0, self.admitted - counters.running)
        return Load(counters, waiting, self.budget.bytes)

    @property
    def places(self) -> int:
        """Requests that may be under way or wait at once."""
        return self.engine.scheduler.max_num_seqs + self.settings.max_waiting

    @property
    def share(self) -> int:
        """Of these, those that one client may have: some are left for others."""
        return max(1, self.places - self.places // 4)

    @property
    def admitted(self) -> int:
        return len(self._tickets)

    def admit(self, caller: Caller) -> Ticket:
        """A place for a request, to be released; raises ApiError where there is none, or the client has its share: 429
        with a guess of when, or 503 when the server is stopping."""
        if self.draining:
            raise ApiError(503, "the server is stopping; try another", code="stopping")
        own = sum(ticket.caller.client == caller.client for ticket in self._tickets)
        if self.admitted >= self.places or own >= self.share:
            who = "this server takes" if self.admitted >= self.places else "one client may have"
            count = self.admitted if self.admitted >= self.places else own
            wait = max(1, round(self._seconds * count / self.engine.scheduler.max_num_seqs))
            raise ApiError(
                429,
                f"{count} requests are waiting or being answered, which is all that {who}; try again "
                f"in about {min(wait, 600)} s",
                code="queue_full",
                headers={"Retry-After": str(min(wait, 600))},
            )
        ticket = Ticket(self, caller)
        self._tickets.add(ticket)
        return ticket

    def release(self, ticket: Ticket) -> None:
        self._tickets.discard(ticket)
        self._seconds += 0.1 * (time.monotonic() - ticket.began - self._seconds)

    def reserve(self, count: int, rows: int) -> Share:
        """Memory for a request's rows; raises ApiError 429 where others leave too little."""
        if (share := self.budget.reserve(count, rows)) is None:
            wait = min(600, max(1, round(self._seconds)))
            raise ApiError(
                429,
                f"the prompt of this request takes about {count / MIB:,.1f} MiB of memory; prompts may have "
                f"{self.budget.limit / MIB:,.1f} MiB, of which other requests hold {self.budget.bytes / MIB:,.1f}; try "
                f"again in about {wait} s, or with fewer images or less audio",
                code="memory_full",
                headers={"Retry-After": str(wait)},
            )
        return share

    def adapter(self, model: str | None, adapter: str | None) -> str | None:
        """The adapter that a request asks for: by its model's name, or by ours in `adapter`. Raises ApiError for a
        model that isn't here."""
        have = self.engine.model.config.adapters
        if model in (None, "", self.settings.name):
            adapter = normalize_adapter(adapter)
            if adapter not in ("auto", None, *have):
                known = ", ".join(["'auto'", "'none'", "null", *map(repr, have)])
                raise ApiError(
                    400, f"adapter: expected {known}, found {adapter!r:.80}", param="adapter"
                )
            return adapter
        if model not in have:
            known = ", ".join([self.settings.name, *have])
            raise ApiError(
                404,
                f"there is no model {model!r:.80} here; expected one of {known}",
                param="model",
                code="model_not_found",
            )
        if adapter not in ("auto", model):
            raise ApiError(
                400, f"model asks for {model!r}, adapter for {adapter!r:.80}", param="adapter"
            )
        return model

    async def looked_at(
        self, caller: Caller, asked: SamplingParams, wanted: Sampling
    ) -> SamplingParams:
        """Sampling whose values mean something and whose grammar can be followed; raises ApiError otherwise. An answer
        of no given length has `max_tokens` 0 until `prepare`."""
        if asked.n > self.settings.max_answers:
            raise ApiError(
                400, f"n: expected at most {self.settings.max_answers}, found {asked.n}", param="n"
            )
        try:
            looked = replace(asked, max_tokens=asked.max_tokens or 1)
            large = len(asked.grammar.text) > LARGE if asked.grammar else False
            await self.in_turn(large, caller, self.engine.check_sampling, looked)
        except ValueError as error:
            fields = type(wanted).model_fields
            named = next((word for word in str(error).split() if word in fields), None)
            raise ApiError(
                400, str(error), param=named or ("response_format" if asked.grammar else None)
            ) from None
        return asked

    @contextmanager
    def explained(self, param: str, turns: Sequence[Turn] = ()) -> Iterator[None]:
        """Turns what the engine finds wrong with a request into an error that a client understands; `turns` tell where
        the part stands that is wrong."""
        try:
            yield
        except MediaError as error:
            places = places_of(turns, error.part or "")
            where = places[error.number] if error.number is not None and places else param
            raise refusal(error, where) from None
        except ValueError as error:
            long = any(said in str(error) for said in ("at most", "context holds"))
            code = "context_length_exceeded" if long else None
            raise ApiError(400, str(error), param=param, code=code) from None
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            said = "there was not enough memory to read this request; try a smaller one, or again later"
            raise failed(OutOfMemory(said)) from None

    def note(self, request: HttpRequest, said: object) -> None:
        """Writes what was asked or answered to the log, where that was asked for; texts only, no media."""
        if self.settings.log_prompts:
            told = json.dumps(said, ensure_ascii=False)
            log.info("%s %s", request.state.request_id, told)

    def caller(self, request: HttpRequest) -> Caller:
        """Who asks: a key's owner, or else an address (of IPv6 the network that a customer gets)."""
        tenant, address = request.state.tenant, request.client.host if request.client else ""
        if ":" in address:
            address = str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
        return Caller(tenant or address.encode(), tenant if self.settings.isolate else b"")

    async def in_thread(self, work: Callable[..., T], *given: Any) -> T:
        """Work that takes a while, in one of a few threads."""
        self._heap_used = True
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work, *given)

    async def in_turn(self, large: bool, caller: Caller, work: Callable[..., T], *given: Any) -> T:
        """The same, but `large` work in threads of its own, for which callers take turns: small work never waits for
        it."""
        self._heap_used = True
        if not large:
            return await self.in_thread(work, *given)
        async with self._turns.turn(caller.client):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._preparing_large, work, *given)

    async def prepare(
        self,
        ticket: Ticket,
        messages: Sequence[Message],
        adapter: str | None,
        sampling: SamplingParams,
    ) -> tuple[Batch, SamplingParams]:
        """The row of a conversation, and the sampling with the answer's length filled in. Raises ValueError for what is
        wrong with them, and ApiError 429 where there is no memory for the row."""
        large = is_large(messages)
        given = ticket, messages, adapter, sampling
        return await self.in_turn(large, ticket.caller, self._prepare, *given)

    def _prepare(
        self,
        ticket: Ticket,
        messages: Sequence[Message],
        adapter: str | None,
        sampling: SamplingParams,
    ) -> tuple[Batch, SamplingParams]:
        began = time.monotonic()
        try:
            # Before anything is decoded: 64 rows of many images are more than a machine has.
            share = ticket.reserve(self.engine.processor.media_bytes(messages))
            row = self.engine.row(messages, adapter=adapter, context=self.engine.longest)
        except MediaError as error:
            self.metrics.media_rejected(error.reason)
            raise
        share.resize(row.nbytes)
        if row.images or row.clips:
            kind = "image" if not row.clips else "audio" if not row.images else "mixed"
            self.metrics.media_decoded(kind, time.monotonic() - began)
            self.metrics.heard(sum(clip.frames for clip in row.clips) / FRAMES_A_SECOND)
        return row, self.bounded(row, sampling)

    def bounded(self, row: Batch, sampling: SamplingParams) -> SamplingParams:
        """Sampling that fits a row: an answer of no given length (0) gets what is left, up to the server's bound."""
        if sampling.max_tokens == 0:
            left = self.engine.longest - len(row)
            sampling = replace(sampling, max_tokens=max(1, min(left, self.settings.max_tokens)))
        self.engine.check_row(row, sampling)
        return sampling

    async def enter(
        self, ticket: Ticket, rows: Sequence[Batch], sampling: SamplingParams
    ) -> list[Job]:
        """The answers to each row begin to come; all were looked at by `prepare`. They end with the ticket."""
        loop = asyncio.get_running_loop()
        return await self.in_thread(self._enter, ticket, rows, sampling, loop)

    def _enter(
        self,
        ticket: Ticket,
        rows: Sequence[Batch],
        sampling: SamplingParams,
        loop: asyncio.AbstractEventLoop,
    ) -> list[Job]:
        entered = self.engine.enter_all(rows, sampling, caller=ticket.caller)
        jobs = [Job(self.engine, self.metrics, requests, loop) for requests in entered]
        for row, job in zip(rows, jobs, strict=True):
            ticket.add(job)
            for _ in job.requests:
                self.metrics.arrived(row.adapters[0])
            self._jobs.add(job)
            if not job.look():  # it may have ended before anybody looked
                self._jobs.discard(job)
        return jobs

    def drop(self, job: Job) -> None:
        """Ends a job's requests without waiting."""
        if job.requests and any(request.finish_reason is None for request in job.requests):
            self._dropping.submit(self._abort, job.requests)

    def _abort(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.engine.abort(request)


def is_large(messages: Sequence[Message]) -> bool:
    """Whether a conversation takes long to prepare: it has media, or much text."""
    parts = [part for message in messages for part in message.parts]
    size = sum(len(part.text) for part in parts if isinstance(part, Text))
    size += sum(len(message.tools or "") for message in messages)
    return size > LARGE or not all(isinstance(part, Text) for part in parts)


def places_of(turns: Sequence[Turn], kind: str) -> list[str]:
    """Where the pictures ("image") or clips ("audio") of a conversation stand, in their order."""
    kinds = {"image": {"image_url": "url"}, "audio": {"input_audio": "data", "audio_url": "url"}}
    return [
        f"messages[{i}].content[{j}].{part.type}.{kinds[kind][part.type]}"
        for i, turn in enumerate(turns)
        if isinstance(turn.content, list)
        for j, part in enumerate(turn.content)
        if part.type in kinds.get(kind, ())
    ]


def forget_body(request: HttpRequest) -> None:
    """Lets go of the body of a request whose prompt is prepared: Starlette keeps it, as bytes and as JSON, until the
    last event of a stream has been sent."""
    for name in ("_body", "_json"):
        vars(request).pop(name, None)
