"""Output deltas of the requests of one row, from the engine's thread to the event loop."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from polyphi.engine.engine import Engine
from polyphi.engine.request import Request
from polyphi.messages import (
    Completion,
    TokenLogprob,
)
from polyphi.serve.budget import Share
from polyphi.serve.errors import ApiError, failed
from polyphi.serve.metrics import Metrics, Times


@dataclass(frozen=True)
class News:
    """What came of answer `number`: text, its tokens' log-probabilities, and how it ended if it did."""

    number: int
    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: str | None
    error: Exception | None = None


class Job:
    """The answers to one row while they come, as an iterator of `News` that ends when all have ended. `share` is the
    memory that their request has for its rows."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        requests: Sequence[Request],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.requests = requests
        self.share: Share | None = None
        self._engine, self._metrics, self._loop = engine, metrics, loop
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._looking = threading.Lock()
        self._told = [0] * len(requests)  # log-probabilities passed on
        self._tokens, self._seen = [0] * len(requests), [0.0] * len(requests)
        self._open = set(range(len(requests)))
        self._left = len(requests)

    def look(self) -> bool:
        """Passes on what is new, from a thread that may wait for the engine; whether anything is still to come."""
        with self._looking:
            return self._look()

    def _look(self) -> bool:
        if not self._open:
            return False
        for number in sorted(self._open):
            request, error = self.requests[number], None
            try:
                text, reason = self._engine.output_delta(request)
            except Exception as failure:
                text, reason, error = "", "error", failure
            logprobs: tuple[TokenLogprob, ...] = ()
            if request.sampling.logprobs is not None and error is None and request.tokens:
                logprobs = tuple(request.sampler.logprobs[self._told[number] : len(request.tokens)])
                self._told[number] += len(logprobs)
            self._count(number, reason)
            if reason:
                self._open.discard(number)
            if text or reason or logprobs:
                news = News(number, text, logprobs, reason, error)
                self._loop.call_soon_threadsafe(self._news.put_nowait, news)
        if not self._open and self.share is not None:
            self.share.row_ended()
        return bool(self._open)

    def _count(self, number: int, reason: str | None) -> None:
        """Tells the metrics of an answer's new tokens, and of its end."""
        request, metrics, now = self.requests[number], self._metrics, time.monotonic()
        new = len(request.tokens) - self._tokens[number]
        if new and self._tokens[number]:
            for _ in range(new):
                metrics.token((now - self._seen[number]) / new)
        if new:
            self._tokens[number], self._seen[number] = len(request.tokens), now
        if reason:
            metrics.finished(
                Times(request.arrived, request.started, request.first, now),
                reason,
                prompt=len(request.ids) - len(request.tokens) if request.started else 0,
                cached=request.cached_tokens or 0,
                generated=len(request.tokens),
            )

    async def __aiter__(self) -> AsyncIterator[News]:
        while self._left:
            news = await self._news.get()
            self._left -= news.finish_reason is not None
            if news.error is not None:
                raise failed(news.error)
            if news.finish_reason == "abort":
                raise ApiError(503, "the server is stopping; try again", code="stopping")
            yield news

    def answers(self) -> list[Completion]:
        """All answers, once all have ended."""
        return [request.completion() for request in self.requests]
