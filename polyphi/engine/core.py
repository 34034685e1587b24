"""Steps of the engine: requests in all phases, the thread that steps them, and one forward for everybody's turn.

A step (scheduler.py) runs new prompts, chunk by chunk, together with one token of everybody else (runner.py). Before it
the encoders work on images and audio that are new to them for a moment (encoders.py). Keys and values lie in blocks
that requests with the same prefix share (cache.py).
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from polyphi.batch import Batch
from polyphi.engine.cache import BlockPool, Memory, Table
from polyphi.engine.encoders import Encoders
from polyphi.engine.memory import OutOfMemory, ran_out
from polyphi.engine.prefixes import Prefixes
from polyphi.engine.request import Caller, Request
from polyphi.engine.results import accept, argmax_rows, finite_rows
from polyphi.engine.runner import Runner
from polyphi.engine.scheduler import Part, Scheduler
from polyphi.messages import SamplingParams
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer

IDLE = 0.5
"""Seconds between looks at whether there is something to do, for whoever waits to be told."""
SLICE = 0.05
"""Seconds that encoders work between two steps, or a layer where that takes longer."""


@dataclass(frozen=True)
class Counters:
    """What the engine holds at a moment, and did so far. With no request under way `blocks_held` and `requests` are 0.
    `tokens`: of all steps, prompts' and drawn ones; `encoder_queries`: pictures and clips that were needed, of which
    `encoder_hits` were remembered."""

    blocks: int
    blocks_held: int
    blocks_remembered: int
    encoded_bytes: int
    requests: int
    running: int
    preemptions: int
    steps: int
    tokens: int
    encoder_queries: int
    encoder_hits: int


class Core:
    """The requests of a model and the steps that answer them. Safe to use from several threads; a step is one thread's
    work at a time.

    `blocks` bounds keys and values, `sequences` those that run at once; `chunk` and `prefill` are prompt tokens of a
    step, while another request waits for its next token and while none does. `draft`: tokens that are guessed in a step
    where a request leaves it to the engine. `encoded`: bytes of encoder outputs to keep. `remember`: whether prefixes
    are shared. `kv`: "int8" keeps keys and values in 8 bits."""

    def __init__(
        self,
        model: PhiModel,
        tokenizer: Tokenizer,
        *,
        blocks: int,
        sequences: int,
        chunk: int,
        prefill: int,
        draft: int,
        encoded: int,
        remember: bool,
        kv: str | None,
    ) -> None:
        self.model, self.tokenizer, self.draft, self.remember, self.kv = (
            model,
            tokenizer,
            draft,
            remember,
            kv,
        )
        self.runner = Runner(model)
        self.prefixes = Prefixes(model)
        self.encoders = Encoders(model, encoded)
        self.pool = BlockPool(max(1, blocks))
        self.scheduler = Scheduler(
            self.pool,
            together=sequences,
            chunk=chunk,
            prefill=prefill,
            switch=self.runner.switch,
            root=self.prefixes.root,
            rope=self.runner.table,
        )
        self.steps = self.tokens = 0
        self.stepped: Callable[[int], None] = lambda tokens: None
        """Called after each step with the number of tokens that it ran, by the thread that runs the step."""
        self._memory: Memory | None = None  # made for the first request
        self._arriving: list[Request] = []
        self._lock = threading.RLock()
        # Told when a step is done, or there is something to do.
        self._changed = threading.Condition(self._lock)
        self._wanting = 0  # threads that wait for a turn between two steps
        self._counting = threading.Lock()
        self._driver: int | None = None  # the thread that is in `run`

    def counters(self) -> Counters:
        with self.turn():
            scheduler = self.scheduler
            return Counters(
                self.pool.size,
                self.pool.held,
                self.pool.remembered,
                self.encoders.bytes,
                len(self._arriving) + len(scheduler.waiting) + len(scheduler.running),
                len(scheduler.running),
                scheduler.preemptions,
                self.steps,
                self.tokens,
                self.encoders.queries,
                self.encoders.hits,
            )

    def news(self, request: Request) -> tuple[str, str | None]:
        """(text that came since it was last asked, finish reason if there is one). Raises what ended the request."""
        with self.turn():
            if request.error is not None:
                raise request.error
            pieces = request.pieces[request.shown :]
            request.shown += len(pieces)
            return "".join(pieces), request.finish_reason

    def enter(
        self,
        row: Future[Batch],
        sampling: SamplingParams,
        caller: Caller,
        group: int,
    ) -> list[Request]:
        with self.turn():
            if not self.busy:
                self.forget_old_weights()
            requests: list[Request] = []
            draft = self.draft if sampling.draft == "auto" else sampling.draft
            for number in range(sampling.n):
                own = replace(sampling, n=1, seed=sampling.seed + number)
                leader = requests[0] if requests else None
                if leader is not None:
                    own = replace(own, prompt_logprobs=None)  # the first one tells them
                tokenizer, table = self.tokenizer, Table(self.pool)
                requests.append(Request(row, own, tokenizer, table, leader, draft, caller, group))
            self._arriving += requests
        row.add_done_callback(self._wake)
        return requests

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return bool(self._arriving or self.scheduler.waiting or self.scheduler.running)

    def _wake(self, _: Any = None) -> None:
        with self.turn():
            pass

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The lock, for others than the thread that steps. Locks aren't fair: that thread would take it back at once,
        so it looks whether somebody waits, and whoever leaves tells it."""
        with self._counting:
            self._wanting += 1
        with self._changed:
            with self._counting:
                self._wanting -= 1
            yield
            self._changed.notify_all()

    def run(self, stop: threading.Event, after: Callable[[BaseException | None], None]) -> None:
        """Steps for everybody until `stop` is set; `generate_many` and `stream` of other threads wait for these steps
        meanwhile. After each step `after` hears of the error that ended it, or None."""
        with self._lock:
            assert self._driver is None, "another thread is stepping already"
            self._driver = threading.get_ident()
        try:
            while not stop.is_set():
                error: BaseException | None = None
                try:
                    busy = self.step()
                except BaseException as failure:  # each of its requests holds it too
                    busy, error = True, failure
                after(error)
                with self._changed:
                    self._changed.notify_all()
                    idle = not (busy or self._due())
                    if (idle or self._wanting) and not stop.is_set():
                        self._changed.wait(IDLE)
        finally:
            with self._changed:
                self._driver = None
                self._changed.notify_all()

    def _due(self) -> bool:
        arrived = any(request.row.done() for request in self._arriving)
        return arrived or bool(self.scheduler.waiting or self.scheduler.running)

    def advance(self) -> None:
        """Runs a step, or waits for the next one of the thread that is in `run`."""
        with self._changed:
            if self._driver is not None and self._driver != threading.get_ident():
                self._changed.wait(IDLE)
                return
        self.step(in_order=True)

    def abort(self, request: Request) -> None:
        """End a request in whatever phase it is; what it held is free when this returns. A finished one stays as it
        is."""
        with self.turn():
            if request.finish_reason is not None:
                return
            request.row.cancel()
            self._end(request, "abort")

    def _end(self, request: Request, reason: str) -> None:
        request.drop_media()
        request.finish_reason = reason
        request.phase = "finished"
        if request in self._arriving:
            self._arriving.remove(request)
        self.scheduler.drop(request)

    def step(self, *, in_order: bool = False) -> bool:
        """One forward for everybody whose turn it is; False if there was nothing to do. `in_order`: wait for the media
        of the request that came first, so that who runs together follows from the requests alone. If memory runs out,
        the request that asked most of it ends; if the model fails, all do and the error comes out here."""
        if in_order:
            with self._lock:
                first = [r.row for r in self._arriving[: max(0, self._room)]]
            wait(first)  # without the lock: whoever aborts must not wait for a decoder
        with self._lock:
            self._welcome(in_order)
            parts: list[Part] = []
            try:
                encoding = self._encode()
                parts = self.scheduler.plan()
                if not parts:
                    return encoding or any(r.missing for r in self.scheduler.running)
                self._run(parts)
            except BaseException as error:
                if parts and ran_out(error):
                    self._make_way(parts)
                    return True
                for request in [*self.scheduler.running, *self.scheduler.waiting]:
                    request.error = error if isinstance(error, Exception) else None
                    self._end(request, "error")
                raise
            self.steps += 1
            ran = sum(part.size for part in parts)
            self.tokens += ran
            self.stepped(ran)
            for part in parts:
                if part.request.finish_reason:
                    self._end(part.request, part.request.finish_reason)
            return True

    def _make_way(self, parts: Sequence[Part]) -> None:
        """A step took more memory than there was: the request that asked most of it ends, the others run again."""
        heaviest = max(parts, key=lambda part: part.size).request
        self._run_out(heaviest)
        for part in reversed(parts):
            if part.request is not heaviest:
                self.scheduler.preempt(part.request)

    def _run_out(self, request: Request) -> None:
        """Ends a request for which there is no memory."""
        request.error = OutOfMemory(
            f"there was not enough memory for this request of {len(request)} tokens beside the others; "
            "try a shorter one, or again later"
        )
        self._end(request, "error")

    def _encode(self) -> bool:
        """Works for a moment on the pictures and clips that running requests wait for; False if there are none. If
        memory runs out, the request with the largest of those that were being encoded ends."""
        wanted = [(request, item) for request in self.scheduler.running for item in request.missing]
        if not wanted:
            self.encoders.drop()
            return False
        try:
            made = self.encoders.advance([item for _, item in wanted], SLICE)
        except BaseException as error:
            if not ran_out(error):
                raise
            self._run_out(max(wanted, key=lambda pair: pair[1].size)[0])
            return True
        for request, item in wanted:
            if item.key in made:
                request.features[item.key] = made[item.key]
        return True

    def _run(self, parts: Sequence[Part]) -> None:
        if self._memory is None:
            decoder = self.model.decoder
            # One block more than sequences can get: graphs.py writes there.
            blocks = self.pool.size + 1
            self._memory = Memory(decoder.config, blocks, decoder.dtype, decoder.device, self.kv)
        began = time.monotonic()
        outputs = self.runner.run(parts, self._memory)
        logits = [output.logits for output in outputs]
        finite, best = finite_rows(logits), argmax_rows(parts, logits)
        self.scheduler.timed(parts, time.monotonic() - began)
        for number, (part, output) in enumerate(zip(parts, outputs, strict=True)):
            accept(part, output, finite[number], best[number])
            if self.remember:
                part.request.table.remember(part.request.names(self.prefixes.root(part.request)))

    @property
    def _room(self) -> int:
        """Requests that may still be read for."""
        scheduler = self.scheduler
        return scheduler.together - len(scheduler.running) - len(scheduler.waiting)

    def _welcome(self, in_order: bool) -> None:
        """Lets requests whose rows are made wait for their turn, the first ones if it goes by order."""
        for request in self._arriving[: max(0, self._room)] if in_order else list(self._arriving):
            if not request.row.done():
                if in_order:
                    return
                continue
            self._arriving.remove(request)
            try:
                request.start()
            except Exception as error:
                request.error = error
                self._end(request, "error")
            else:
                self.scheduler.waiting.append(request)

    def forget_old_weights(self) -> None:
        """Drop cached keys, values and encoder outputs if the weights have changed."""
        if self.prefixes.weights_changed():
            self.pool.forget()
            self.encoders.forget()
