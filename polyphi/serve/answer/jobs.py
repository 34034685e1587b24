"""Output deltas of the requests of one row, from the engine's thread to the event loop."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from polyphi.engine.engine import Engine
from polyphi.engine.request import Request
from polyphi.serve.admission.quotas import QuotaExceeded, Reservation
from polyphi.serve.answer.metrics import ServerMetrics, Times
from polyphi.serve.http.errors import ApiError, as_api_error
from polyphi.types.completion import Completion, TokenLogprob

UNCOUNTED = 256 << 10
"""Bytes of deltas of a job that may wait in any case."""
DELTA, LOGPROB = 300, 130
"""Bytes of a delta without its text, and of a token with its log-probability; measured with tracemalloc."""


@dataclass(frozen=True)
class OutputDelta:
    """New output of answer `number`: text, its tokens and their log-probabilities, and at its end the finish reason and
    the stop string or token."""

    number: int
    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: str | None
    error: Exception | None = None
    tokens: tuple[int, ...] = ()
    stop_reason: str | int | None = None

    @property
    def size(self) -> int:
        """About the number of bytes that the delta takes; an error counts nothing."""
        if self.error is not None:
            return 0
        logprobs = sum(1 + len(logprob.top) for logprob in self.logprobs)
        return DELTA + 4 * len(self.text) + LOGPROB * logprobs


class Job:
    """The answers to one row, as an asynchronous iterator of `OutputDelta` that ends when all have ended. Deltas wait
    in memory where a client doesn't read its stream: beyond `UNCOUNTED` bytes they count in `reservation`, and where
    that reaches a limit, the answers end with an error.

    `on_end` is called when all have ended, from any thread; `delivered_tokens`: those of the deltas so far."""

    def __init__(
        self,
        engine: Engine,
        metrics: ServerMetrics,
        requests: Sequence[Request],
        loop: asyncio.AbstractEventLoop,
        reservation: Reservation,
    ) -> None:
        self.requests, self._reservation = requests, reservation
        self.on_end: Callable[[], None] = lambda: None
        self.delivered_tokens = 0
        self._engine, self._metrics, self._loop = engine, metrics, loop
        self._deltas: asyncio.Queue[OutputDelta] = asyncio.Queue()
        self._lock = threading.Lock()
        self._waiting_bytes = self._counted = 0
        self._count_lock = threading.Lock()
        self._token_counts, self._last_token_at = [0] * len(requests), [0.0] * len(requests)
        self._running = set(range(len(requests)))
        self._unfinished = len(requests)

    def poll(self) -> bool:
        """Sends new output to the event loop, from a thread that may wait for the engine. Returns whether any answer is
        still running."""
        with self._lock:
            return self._poll()

    def _poll(self) -> bool:
        if not self._running:
            return False
        for number in sorted(self._running):
            request, error = self.requests[number], None
            try:
                pieces, reason = self._engine.output_pieces(request)
            except Exception as failure:
                pieces, reason, error = [], "error", failure
            first = request.delivered - len(pieces)
            tokens = tuple(request.tokens[first : request.delivered])  # an end token isn't in it
            self._update_metrics(number, len(tokens), reason)
            if reason:
                self._running.discard(number)
            parts = self._parts(request, pieces, tokens)
            for i, (text, own, logprobs) in enumerate(parts):
                last = reason if i == len(parts) - 1 else None
                if text or last or own:
                    stop_reason = request.stop_reason if last else None
                    delta = OutputDelta(number, text, logprobs, last, error, own, stop_reason)
                    try:
                        self._count(delta.size)
                    except QuotaExceeded as full:
                        self._end_unread(number, full)
                        return self._ended()
                    self._send(delta)
        return self._ended()

    def _ended(self) -> bool:
        if not self._running:
            self.on_end()
        return bool(self._running)

    def _send(self, delta: OutputDelta) -> None:
        self._loop.call_soon_threadsafe(self._deltas.put_nowait, delta)

    def _count(self, change: int) -> None:
        """Counts deltas that wait, or no longer do. Raises QuotaExceeded where too much waits."""
        with self._count_lock:
            waiting = self._waiting_bytes + change
            counted = max(0, waiting - UNCOUNTED)
            self._reservation.grow(counted - self._counted)
            self._waiting_bytes, self._counted = waiting, counted

    def _end_unread(self, number: int, full: QuotaExceeded) -> None:
        """Ends all answers with an error, after the deltas that wait."""
        error = ApiError(
            429,
            f"{full}; the stream ends because it wasn't read, so read faster or request fewer log-probabilities",
            code="unread_stream",
        )
        for running in self._running:
            self._update_metrics(running, 0, "abort")
        self._send(OutputDelta(number, "", (), "error", error))
        self._running.clear()
        for request in self.requests:
            self._engine.abort(request)

    def _parts(
        self, request: Request, pieces: Sequence[str], tokens: tuple[int, ...]
    ) -> list[tuple[str, tuple[int, ...], tuple[TokenLogprob, ...]]]:
        """New text, joined, and its tokens; where log-probabilities are requested, the text of each token with its own
        one. So they belong to the same text in every run, however many tokens a step has."""
        if request.sampling.logprobs is None or not pieces:
            return [("".join(pieces), tokens, ())]
        first = request.delivered - len(pieces)
        logprobs = tuple(request.sampler.logprobs[first : first + len(tokens)])
        return [
            (text, tokens[i : i + 1], logprobs[i : i + 1])  # an end token has a piece, but no entry
            for i, text in enumerate(pieces)
        ]

    def _update_metrics(self, number: int, new: int, reason: str | None) -> None:
        """Updates the metrics with the number of an answer's new tokens and its end."""
        request, metrics, now = self.requests[number], self._metrics, time.monotonic()
        if new and self._token_counts[number]:
            for _ in range(new):
                metrics.token((now - self._last_token_at[number]) / new)
        if new:
            self._token_counts[number] += new
            self._last_token_at[number] = now
        if reason:
            metrics.finished(
                Times(request.arrived, request.started, request.first, now),
                reason,
                prompt=len(request.ids) - len(request.tokens) if request.started else 0,
                cached=request.cached_tokens or 0,
                generated=len(request.tokens),
            )

    async def __aiter__(self) -> AsyncIterator[OutputDelta]:
        while self._unfinished:
            delta = await self._deltas.get()
            self._count(-delta.size)
            self._unfinished -= delta.finish_reason is not None
            if delta.error is not None:
                raise as_api_error(delta.error)
            if delta.finish_reason == "abort":
                raise ApiError(503, "the server is stopping; try again", code="stopping")
            self.delivered_tokens += len(delta.tokens)
            yield delta

    def answers(self) -> list[Completion]:
        """The completions of all answers; all must have ended."""
        return [request.completion() for request in self.requests]

    @property
    def prompt_ids(self) -> list[int]:
        ids: list[int] = self.requests[0].row.result().ids.tolist()
        return ids

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of the prompt, and of the answers so far."""
        return len(self.requests[0].row.result()), self.delivered_tokens
