"""Steps of the engine: requests in all phases, the thread that runs the steps, and one forward per step.

A step (scheduler.py) runs prompts chunk by chunk, together with one token of every other running request (runner.py).
Before it the encoders process new images and audio for a short time (encoders.py). Keys and values lie in blocks that
requests with the same prefix share (cache.py).
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from polyphi.batch import Batch
from polyphi.engine.adapters import Adapters
from polyphi.engine.cache import BLOCK, BlockPool, BlockTable, Memory, token_bytes
from polyphi.engine.encoders import Encoders
from polyphi.engine.memory import OutOfMemory, ran_out
from polyphi.engine.prefixes import Prefixes
from polyphi.engine.request import Caller, Request
from polyphi.engine.results import accept, argmax_rows, finite_rows, resume
from polyphi.engine.runner import Runner
from polyphi.engine.scheduler import Scheduler, StepPart
from polyphi.engine.structured import open_matchers, wait_for
from polyphi.messages import SamplingParams
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer

IDLE = 0.5
"""Timeout in seconds of a thread that waits for work or for the next step."""
GRAMMAR_WAIT, SETTLE_SHARE = 0.02, 0.02
"""Seconds to wait for a mask when no request can run, and the share of a step's time to wait after it for the processes
that check its tokens."""
SLICE = 0.05
"""Seconds that encoders run between two steps; a layer that takes longer is completed."""


@dataclass(frozen=True)
class Counters:
    """The engine's state at a moment and its totals. Without requests `blocks_in_use` and `requests` are 0.
    `cache_bytes`: resident memory of the KV cache, which stays; `tokens`: prompt and sampled tokens of all steps;
    `encoder_queries`: images and audio clips that requests needed, of which `encoder_hits` were cached."""

    blocks: int
    blocks_in_use: int
    blocks_cached: int
    cache_bytes: int
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

    `blocks`: capacity for keys and values; `max_num_seqs`: sequences that run at once; `chunk` and `prefill`: prompt
    tokens of a step while another request waits for its next token, and while none does. `draft`: draft tokens of a
    step for requests with `draft="auto"`. `encoder_cache`: bytes for encoder outputs. `prefix_cache`: whether requests
    share prefixes. `kv`: "int8" stores keys and values in 8 bits."""

    def __init__(
        self,
        model: PhiModel,
        tokenizer: Tokenizer,
        *,
        blocks: int,
        max_num_seqs: int,
        chunk: int,
        prefill: int,
        draft: int,
        encoder_cache: int,
        prefix_cache: bool,
        kv: str | None,
    ) -> None:
        self.model, self.tokenizer, self.draft, self.kv = model, tokenizer, draft, kv
        self.prefix_cache = prefix_cache
        self.runner = Runner(model)
        self.prefixes = Prefixes(model)
        self.encoders = Encoders(model, encoder_cache)
        self.pool = BlockPool(max(1, blocks))
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=max_num_seqs,
            chunk=chunk,
            prefill=prefill,
            switch=self.runner.switch,
            root=self.prefixes.root,
            rope=self.runner.rope_table,
        )
        self.steps = self.tokens = 0
        self.on_step: Callable[[int], None] = lambda tokens: None
        """Called after each step with its number of tokens, by the thread that runs the step."""
        self.accept = accept
        """Gives a request the tokens of a step; a measurement can wrap it."""
        self._memory: Memory | None = None  # allocated for the first request
        self._arriving: list[Request] = []
        self._lock = threading.RLock()
        # Notified when a step is done, or there is work.
        self._changed = threading.Condition(self._lock)
        self._waiting_threads = 0  # that wait for a turn between two steps
        self._count_lock = threading.Lock()
        self._driver: int | None = None  # the thread that runs `run`
        self.adapters = Adapters(
            model, self.prefixes, self.runner, self.turn, self._unfinished, self._settle_weights
        )

    def counters(self) -> Counters:
        with self.turn():
            scheduler = self.scheduler
            return Counters(
                self.pool.size,
                self.pool.in_use,
                self.pool.cached,
                self._cache_bytes,
                self.encoders.bytes,
                len(self._arriving) + len(scheduler.waiting) + len(scheduler.running),
                len(scheduler.running),
                scheduler.preemptions,
                self.steps,
                self.tokens,
                self.encoders.queries,
                self.encoders.hits,
            )

    @property
    def _cache_bytes(self) -> int:
        """Resident bytes of the KV cache: on a CPU those of all blocks that were ever used."""
        decoder = self.model.decoder
        if self._memory is None:
            return 0
        blocks = self.pool.touched if decoder.device.type == "cpu" else self.pool.size
        return blocks * BLOCK * token_bytes(decoder.config, decoder.dtype, self.kv)

    def output_delta(self, request: Request) -> tuple[str, str | None]:
        """(text since the last call, finish reason or None). Raises the error that ended the request."""
        pieces, reason = self.output_pieces(request)
        return "".join(pieces), reason

    def output_pieces(self, request: Request) -> tuple[list[str], str | None]:
        """`output_delta` with the text of each token apart; an end token has a piece too."""
        with self.turn():
            if request.error is not None:
                raise request.error
            pieces = request.pieces[request.delivered :]
            request.delivered += len(pieces)
            return pieces, request.finish_reason

    def enter(
        self,
        row: Future[Batch],
        sampling: SamplingParams,
        caller: Caller,
        group: int,
    ) -> list[Request]:
        """The requests of the `n` answers to a row, which may still be in preparation."""
        matchers = open_matchers(sampling.grammar, self.tokenizer, sampling.n)
        with self.turn():
            self._settle_weights()
            requests: list[Request] = []
            draft = self.draft if sampling.draft == "auto" else sampling.draft
            for number in range(sampling.n):
                own = replace(sampling, n=1, seed=sampling.seed + number)
                leader = requests[0] if requests else None
                if leader is not None:
                    own = replace(own, prompt_logprobs=None)  # the first one has them
                tokenizer, table = self.tokenizer, BlockTable(self.pool)
                requests.append(
                    Request(
                        *(row, own, tokenizer, table, leader, draft, caller, group),
                        matcher=matchers[number],
                    )
                )
            self._arriving += requests
        row.add_done_callback(self.wake)
        return requests

    @property
    def busy(self) -> bool:
        """Whether there is an unfinished request."""
        return bool(self._arriving or self.scheduler.waiting or self.scheduler.running)

    def _unfinished(self) -> list[Request]:
        return [*self._arriving, *self.scheduler.waiting, *self.scheduler.running]

    def _settle_weights(self) -> None:
        """Drops caches of old weights, if no request is unfinished."""
        if not self.busy:
            self.forget_old_weights()

    def wake(self, _: Any = None) -> None:
        """Let the thread in `run` look at once for work and at `stop`."""
        with self.turn():
            pass

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The lock, for all threads but the one that runs steps. Locks aren't fair: that thread would take it back at
        once, so it checks whether threads wait, and each of them notifies it when it leaves."""
        with self._count_lock:
            self._waiting_threads += 1
        with self._changed:
            with self._count_lock:
                self._waiting_threads -= 1
            yield
            self._changed.notify_all()

    def run(self, stop: threading.Event, after: Callable[[BaseException | None], None]) -> None:
        """Runs steps until `stop` is set; `generate_many` and `stream` in other threads wait for these steps. After
        each step it calls `after` with the error that ended the step, or None."""
        with self._lock:
            assert self._driver is None, "another thread runs the steps already"
            self._driver = threading.get_ident()
        try:
            while not stop.is_set():
                error: BaseException | None = None
                try:
                    busy = self.step()
                except BaseException as failure:  # also the `error` of its requests
                    busy, error = True, failure
                after(error)
                with self._changed:
                    self._changed.notify_all()
                    idle = not (busy or self._has_work())
                    if (idle or self._waiting_threads) and not stop.is_set():
                        self._changed.wait(IDLE)
        finally:
            with self._changed:
                self._driver = None
                self._changed.notify_all()

    def _has_work(self) -> bool:
        arrived = any(request.row.done() for request in self._arriving)
        return arrived or bool(self.scheduler.waiting or self.scheduler.running)

    def advance(self) -> None:
        """Runs a step, or waits for the next one of the thread that runs `run`."""
        with self._changed:
            if self._driver is not None and self._driver != threading.get_ident():
                self._changed.wait(IDLE)
                return
        self.step(in_order=True)

    def abort(self, request: Request) -> None:
        """End a request in any phase; its resources are free when this returns. A finished request is unchanged."""
        with self.turn():
            if request.finish_reason is not None:
                return
            request.row.cancel()
            self._end(request, "abort")

    def _end(self, request: Request, reason: str) -> None:
        request.drop_media()
        if request.matcher is not None:
            request.matcher.close()
        request.finish_reason = reason
        request.phase = "finished"
        if request in self._arriving:
            self._arriving.remove(request)
        self.scheduler.drop(request)

    def step(self, *, in_order: bool = False) -> bool:
        """Run one forward for all scheduled requests; False if there was nothing to do. `in_order`: wait for the media
        of the request that came first, so that batches depend on the requests alone. If memory runs out, the largest
        request of the step ends; if the model fails, all requests end and the error is raised here."""
        if in_order:
            with self._lock:
                first = [r.row for r in self._arriving[: max(0, self._free_places)]]
            wait(first)  # without the lock: `abort` must not wait for a decoder
        with self._lock:
            self.adapters.remove_unused()
            self._start_arrived(in_order)
            ended = self._resume_answers()
            parts: list[StepPart] = []
            try:
                encoding = self._encode()
                parts = self.scheduler.plan()
                if not parts:
                    missing = encoding or any(r.missing_media for r in self.scheduler.running)
                    return self._wait_for_grammars(GRAMMAR_WAIT) or missing or ended
                began = time.monotonic()
                self._run(parts)
            except BaseException as error:
                if parts and ran_out(error):
                    self._recover_memory(parts)
                    return True
                for request in [*self.scheduler.running, *self.scheduler.waiting]:
                    request.error = error if isinstance(error, Exception) else None
                    self._end(request, "error")
                raise
            self.steps += 1
            ran = sum(part.size for part in parts)
            self.tokens += ran
            self.on_step(ran)
            self._settle_answers(
                [p.request for p in parts], SETTLE_SHARE * (time.monotonic() - began)
            )
            for part in parts:
                if part.request.finish_reason:
                    self._end(part.request, part.request.finish_reason)
            return True

    def _resume_answers(self) -> bool:
        """Continues the requests that waited for the process of their grammar; whether one has ended."""
        ended = False
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            if request.waits_for_grammar:
                resume(request)
                if request.finish_reason:
                    ended = True
                    self._end(request, request.finish_reason)
        return ended

    def _settle_answers(self, requests: Sequence[Request], seconds: float) -> None:
        """Ends the answers that are complete according to the processes of their grammars, within `seconds`. What a
        process says later is read after the next step, which then runs for nothing."""
        end = time.monotonic() + seconds
        while unsettled := [
            r.matcher.process
            for r in requests
            if r.matcher is not None and not r.finish_reason and not r.matcher.settled
        ]:
            if (seconds := end - time.monotonic()) <= 0:
                break
            wait_for(unsettled, seconds)
        for request in requests:
            request.settle()

    def _wait_for_grammars(self, seconds: float) -> bool:
        """Whether requests wait for the processes of their grammars; then waits for one of these."""
        processes = [
            request.matcher.process
            for request in (*self.scheduler.running, *self.scheduler.waiting)
            if request.matcher is not None and request.waits_for_grammar
        ]
        if processes:
            wait_for(processes, seconds)
        return bool(processes)

    def _recover_memory(self, parts: Sequence[StepPart]) -> None:
        """After a step that ran out of memory: ends its largest request and preempts the others, which run again."""
        largest = max(parts, key=lambda part: part.size).request
        self._end_out_of_memory(largest)
        for part in reversed(parts):
            if part.request is not largest:
                self.scheduler.preempt(part.request)

    def _end_out_of_memory(self, request: Request) -> None:
        """Ends a request for which there is no memory."""
        request.error = OutOfMemory(
            f"not enough memory for this request of {len(request)} tokens in addition to the others; send a "
            "shorter one, or try again later"
        )
        self._end(request, "error")

    def _encode(self) -> bool:
        """Encodes images and audio that running requests wait for, for about `SLICE` seconds; False if there are none.
        If memory runs out, the request with the largest item of those in progress ends."""
        missing = [
            (request, item) for request in self.scheduler.running for item in request.missing_media
        ]
        if not missing:
            self.encoders.drop()
            return False
        try:
            embeddings = self.encoders.advance([item for _, item in missing], SLICE)
        except BaseException as error:
            if not ran_out(error):
                raise
            self._end_out_of_memory(max(missing, key=lambda pair: pair[1].size)[0])
            return True
        for request, item in missing:
            if item.key in embeddings:
                request.features[item.key] = embeddings[item.key]
        return True

    def _run(self, parts: Sequence[StepPart]) -> None:
        if self._memory is None:
            decoder = self.model.decoder
            # One block more than sequences can use: padding of graphs.py is written there.
            blocks = self.pool.size + 1
            self._memory = Memory(decoder.config, blocks, decoder.dtype, decoder.device, self.kv)
        began = time.monotonic()
        outputs = self.runner.run(parts, self._memory)
        logits = [output.logits for output in outputs]
        finite, best = finite_rows(logits), argmax_rows(parts, logits)
        self.scheduler.record_time(parts, time.monotonic() - began)
        for number, (part, output) in enumerate(zip(parts, outputs, strict=True)):
            self.accept(part, output, finite[number], best[number])
            if self.prefix_cache:
                root = self.prefixes.root(part.request)
                part.request.table.register(part.request.block_hashes(root))

    @property
    def _free_places(self) -> int:
        """How many more requests may be waiting or running."""
        scheduler = self.scheduler
        return scheduler.max_num_seqs - len(scheduler.running) - len(scheduler.waiting)

    def _start_arrived(self, in_order: bool) -> None:
        """Moves requests whose rows are ready to the waiting ones; `in_order` only those at the front."""
        for request in (
            self._arriving[: max(0, self._free_places)] if in_order else list(self._arriving)
        ):
            if not request.row.done():
                if in_order:
                    return
                continue
            self._arriving.remove(request)
            try:
                request.start()
                self.adapters.check(request.adapter)
            except Exception as error:
                request.error = error
                self._end(request, "error")
            else:
                self.scheduler.waiting.append(request)

    def forget_old_weights(self) -> None:
        """Drop cached keys, values and encoder outputs if the weights have changed."""
        if self.prefixes.weights_changed():
            self.pool.clear_cache()
            self.encoders.clear()
