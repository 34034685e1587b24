"""Requests -> tokens: all requests run in one batch, and each gets the answer it would get alone.

>>> engine = Engine(model, processor)
>>> engine.generate([Message.user("2 + 2 =")]).text
'4'
>>> [c.text for c in engine.generate_many(conversations)]        # continuous batching

Internally a request is submitted and steps run until it is finished; a program may do the same::

    request = engine.submit(messages)            # its media are decoded in threads during the steps
    while not request.finish_reason:
        engine.step()
    engine.abort(request)                        # at any time, from any thread; frees its resources

or have one thread run the steps, as a server does::

    sampling = engine.rows.with_grammar(sampling)    # raises ValueError for an invalid grammar
    row = engine.rows.prepare(messages, sampling)    # and for the rest of an invalid request
    (request,) = engine.enter(row, sampling)
    pieces, reason = engine.output_pieces(request)   # after each step of `engine.run`, which runs in another thread

A step encodes new images and audio for a short time (encoders.py), chooses what each request runs (scheduler.py), runs
it in one forward (runner.py) and gives the requests their tokens (results.py). Keys and values lie in blocks that
requests with the same prefix share (cache.py).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, repeat

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.decoding.structured import open_matchers, wait_for
from polyphi.devices.memory import OutOfMemory, other_tensors, ran_out, tensor_bytes
from polyphi.engine.added_adapters import Adapters
from polyphi.engine.cache import (
    BLOCK,
    BlockPool,
    BlockTable,
    Memory,
    check_format,
    default_blocks,
    token_bytes,
)
from polyphi.engine.encoders import EncoderError, Encoders, items
from polyphi.engine.prefill import PrefillBudget
from polyphi.engine.prefixes import Prefixes
from polyphi.engine.request import GREEDY, NOBODY, Client, Request
from polyphi.engine.results import accept, argmax_rows, finite_rows, resume, settle
from polyphi.engine.rows import Prompt, Rows, parse_prompt
from polyphi.engine.runner import Runner
from polyphi.engine.sampling import check
from polyphi.engine.scheduler import Scheduler, StepPart
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.memory import free_beside
from polyphi.processing.placeholders import TokensPrompt
from polyphi.processing.processor import Processor
from polyphi.types.batch import Batch
from polyphi.types.completion import Completion, Delta
from polyphi.types.messages import Message
from polyphi.types.parts import Text
from polyphi.types.sampling import SamplingParams

MAX_NUM_SEQS = 32
"""Sequences that run at once."""
CHUNK_TOKENS = 512
"""Prompt tokens of a step while a request waits for its next token, and of every step of a large model on a CPU: larger
steps need more fresh memory, and clearing it takes a seventh of the time at 2,048."""
PREFILL_TOKENS = 2048
"""Prompt tokens of a step while no request waits for its next token, and tokens of one forward when scoring."""
DRAFT_TOKENS = 15
"""Most draft tokens of a step for requests with `draft="auto"`."""
CPU_CACHE, QUANTIZED_CACHE = 256 * 2**20, 32 * 2**20
"""Bytes of weights that may fit in a CPU's caches; and of weights in 8 and 4 bits, by which a step of several tokens
takes hardly longer than a step of one: with 80 MB and 135 MB no kind of request was slower with draft tokens
(docs/numbers.md)."""
ENCODER_CACHE = 256 * 2**20
"""Bytes of the cache of encoder outputs."""
IDLE_SECONDS = 0.5
"""Timeout in seconds of a thread that waits for work or for the next step."""
GRAMMAR_WAIT_SECONDS, SETTLE_SHARE = 0.02, 0.02
"""Seconds to wait for a mask when no request can run, and the share of a step's time to wait after it for the processes
that check its tokens."""
SLICE_SECONDS = 0.05
"""Seconds that encoders run between two steps; a layer that takes longer is completed."""


class Stopped(Exception):
    """The caller of `generate_many` set its `stop` event."""


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


log = logging.getLogger(__name__)


class Engine:
    """A model (put in eval mode) and the processor of its inputs.

    `memory`: bytes for keys and values; by default for 32 sequences of 2,048 tokens or one whole context, whichever is
    more, but at most half of the free memory. `max_num_seqs`: sequences that run at once. `chunk` and `prefill`: most
    prompt tokens of a step while another request waits for its next token, and while none does. `encoder_cache`: bytes
    for encoder outputs. `prefix_cache`: whether sequences share cached prefixes. `kv`: "int8" stores keys and values in
    8 bits, which halves them (on a CPU; None: in the model's dtype). Safe to use from several threads; one thread at a
    time runs a step.

    `rows` makes and checks the inputs of requests; `adapters` adds and removes adapters. The other parts are private to
    this package.
    """

    def __init__(
        self,
        model: PhiModel,
        processor: Processor,
        *,
        memory: int | None = None,
        max_num_seqs: int = MAX_NUM_SEQS,
        chunk: int = CHUNK_TOKENS,
        prefill: int | None = None,
        encoder_cache: int = ENCODER_CACHE,
        prefix_cache: bool = True,
        kv: str | None = None,
    ) -> None:
        decoder = model.decoder
        check_format(kv, decoder.device)
        self.model, self.processor = model.eval(), processor
        self._kv, self._prefix_cache = kv, prefix_cache
        large = _is_memory_bound(model)
        self._draft = DRAFT_TOKENS if large else 0
        self.prefill = prefill or (CHUNK_TOKENS if large else PREFILL_TOKENS)
        each = token_bytes(decoder.config, decoder.dtype, kv)
        if memory is None:
            blocks = default_blocks(decoder.config, each, free_beside(model), max_num_seqs)
        else:
            blocks = memory // (each * BLOCK)
        self.pool = BlockPool(max(1, blocks))
        self.capacity = self.pool.size * BLOCK
        """Tokens whose keys and values fit in memory, over all sequences."""
        self.rows = Rows(model, processor, self.capacity)
        self.longest = min(self.rows.context, self.capacity)
        """Most tokens that a sequence may have: limited by the model's context and the memory for keys and values."""
        self.runner = Runner(model)
        self.encoders = Encoders(model, encoder_cache)
        self.prefixes = Prefixes(model)
        budget = PrefillBudget(chunk, self.prefill)
        self.scheduler = Scheduler(self.pool, self.prefixes, self.runner.rope, budget, max_num_seqs)
        self.adapters = Adapters(
            model,
            self.prefixes,
            self.runner,
            self.exclusive,
            self._unfinished,
            self._settle_weights,
        )
        self.steps = self.tokens = 0
        self.on_step: Callable[[int], None] = lambda tokens: None
        """Function that the thread of a step calls after it with the step's number of tokens."""
        self.accept = accept
        """Gives a request the tokens of a step; a measurement can wrap it."""
        self._memory: Memory | None = None  # allocated for the first request
        self._arriving: list[Request] = []
        self._groups = count(1)  # one number per call
        self._decoding = threading.Lock()
        self._decoders: ThreadPoolExecutor | None = None
        self._lock = threading.RLock()
        # Notified when a step is done, or there is work.
        self._changed = threading.Condition(self._lock)
        self._waiting_threads = 0  # that wait for a turn between two steps
        self._count_lock = threading.Lock()
        self._driver: int | None = None  # the thread that runs `run`

    def counters(self) -> Counters:
        with self.exclusive():
            return Counters(
                blocks=self.pool.size,
                blocks_in_use=self.pool.in_use,
                blocks_cached=self.pool.cached,
                cache_bytes=self._cache_bytes,
                encoded_bytes=self.encoders.bytes,
                requests=len(self._unfinished()),
                running=len(self.scheduler.running),
                preemptions=self.scheduler.preemptions,
                steps=self.steps,
                tokens=self.tokens,
                encoder_queries=self.encoders.queries,
                encoder_hits=self.encoders.hits,
            )

    @property
    def _cache_bytes(self) -> int:
        """Resident bytes of the KV cache: on a CPU those of all blocks that were ever used."""
        if self._memory is None:
            return 0
        decoder = self.model.decoder
        blocks = self.pool.touched if decoder.device.type == "cpu" else self.pool.size
        return blocks * BLOCK * token_bytes(decoder.config, decoder.dtype, self._kv)

    # ---- answers ---------------------------------------------------------------------------------------------

    def generate(
        self,
        messages: Prompt,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Completion:
        """`generate_many` of one prompt."""
        return self.generate_many([messages], sampling=sampling, adapter=adapter)[0]

    def generate_many(
        self,
        conversations: Iterable[Prompt],
        *,
        sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
        adapter: str | None = "auto",
        stop: threading.Event | None = None,
        caller: Client = NOBODY,
    ) -> list[Completion]:
        """Answers in the order of the conversations, which are read as capacity becomes free. `sampling` is one for
        all, or one for each. `adapter`: "auto" (image -> vision, audio only -> speech, text -> none), a name, or "none"
        or None. Raises ValueError for an unknown adapter, media that the model has no encoder for, and a request that
        doesn't fit the context; `Stopped` within a step of `stop` being set."""
        one = isinstance(sampling, SamplingParams)
        each = repeat(sampling) if isinstance(sampling, SamplingParams) else iter(sampling)
        inputs = zip(conversations, each, strict=not one)
        answers: list[list[Completion | None]] = []
        active: dict[Request, tuple[int, int]] = {}
        call = next(self._groups)
        more = True
        try:
            while True:
                while more and len(active) < 2 * self.scheduler.max_num_seqs:
                    if (pair := next(inputs, None)) is None:
                        more = False
                        break
                    group = self._submit_all(*pair, adapter, caller, call)
                    active |= {r: (len(answers), i) for i, r in enumerate(group)}
                    answers.append([None] * len(group))
                if not active:
                    break
                if stop is not None and stop.is_set():
                    raise Stopped
                self._advance()
                for request in [r for r in active if r.finish_reason]:
                    number, i = active.pop(request)
                    if request.error is not None:
                        raise request.error
                    answers[number][i] = request.completion()
        finally:
            for request in active:
                self.abort(request)
        complete = [[c for c in group if c is not None] for group in answers]
        return [replace(first, others=tuple(others)) for first, *others in complete]

    def stream(
        self,
        messages: Prompt,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Iterator[Delta]:
        """The answer in deltas whose texts join to `generate`'s; the last one has the finish reason. Closing the
        iterator aborts the request. Raises ValueError as `generate_many` does, before the first delta."""
        if sampling.n != 1:
            raise ValueError(f"a stream has one answer: expected n=1, found n={sampling.n}")
        sampling = self.rows.with_grammar(sampling)
        request = self.submit(messages, sampling=sampling, adapter=adapter)
        try:
            request.row.result()  # an invalid request raises here, not at the first delta
        except BaseException:  # KeyboardInterrupt too
            self.abort(request)
            raise
        return self._deltas(request)

    def _deltas(self, request: Request) -> Iterator[Delta]:
        sent = 0  # tokens
        without_text = not request.tokenizer.has_vocabulary  # no token has text to wait for
        try:
            while True:
                pieces, reason = self.output_pieces(request)
                text, tokens = "".join(pieces), tuple(request.tokens[sent:])
                if text or reason or (tokens and without_text):
                    sent += len(tokens)
                    yield Delta(text, reason, request.completion() if reason else None, tokens)
                if reason:
                    return
                self._advance()
        finally:
            self.abort(request)

    # ---- requests --------------------------------------------------------------------------------------------

    def submit(
        self,
        messages: Prompt,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Request:
        """A request that the next steps answer. Text is tokenized here; media are decoded in threads during the steps,
        and `request.row` raises their errors; a grammar is compiled meanwhile, and an invalid one ends the request with
        its error. Raises ValueError for the rest as `generate_many` does."""
        (request,) = self._submit_all(
            messages, replace(sampling, n=1), adapter, NOBODY, next(self._groups)
        )
        return request

    def _submit_all(
        self,
        messages: Prompt,
        sampling: SamplingParams,
        adapter: str | None,
        caller: Client,
        group: int,
    ) -> list[Request]:
        """The requests of a conversation's `n` answers, which share the row; all but the first wait for its prefill."""
        check(sampling)
        parsed = parse_prompt(messages)
        if not _has_media(parsed):
            row = _prepared(self.rows.prepare(parsed, sampling, adapter))
            return self._enter(row, sampling, caller, group)
        with self._decoding:
            self._decoders = self._decoders or ThreadPoolExecutor(2, "decode media")
        row = self._decoders.submit(self.rows.prepare, parsed, sampling, adapter)
        requests = self._enter(row, sampling, caller, group)
        row.add_done_callback(self.wake)
        return requests

    def enter(
        self, row: Batch, sampling: SamplingParams = GREEDY, *, caller: Client = NOBODY
    ) -> list[Request]:
        """The requests of the `n` answers to a prepared row."""
        return self.enter_all([row], sampling, caller=caller)[0]

    def enter_all(
        self,
        rows: Sequence[Batch],
        sampling: SamplingParams = GREEDY,
        *,
        caller: Client = NOBODY,
    ) -> list[list[Request]]:
        """`enter` of several rows, which are one call of the caller (fairness.py). Raises UnknownAdapter, and enters
        none, if the adapter of a row was removed."""
        group = next(self._groups)
        with self.exclusive():
            for row in rows:
                self.adapters.check(row.adapters[0])
            return [self._enter(_prepared(row), sampling, caller, group) for row in rows]

    def _enter(
        self, row: Future[Batch], sampling: SamplingParams, caller: Client, group: int
    ) -> list[Request]:
        """The requests of the `n` answers to a row, which may still be in preparation."""
        tokenizer = self.processor.tokenizer
        matchers = open_matchers(sampling.grammar, tokenizer, sampling.n)
        draft = self._draft if sampling.draft == "auto" else sampling.draft
        with self.exclusive():
            self._settle_weights()
            requests: list[Request] = []
            for number, matcher in enumerate(matchers):
                own = replace(sampling, n=1, seed=sampling.seed + number)
                leader = requests[0] if requests else None
                if leader is not None:
                    own = replace(own, prompt_logprobs=None, embed=False)  # the first has them
                table = BlockTable(self.pool)
                arguments = (row, own, tokenizer, table, leader, draft, caller, group)
                requests.append(Request(*arguments, matcher=matcher))
            self._arriving += requests
        return requests

    def output_pieces(self, request: Request) -> tuple[list[str], str | None]:
        """(the text of each new token since the last call, finish reason or None); an end token has a piece too. Raises
        the error that ended the request."""
        with self.exclusive():
            if request.error is not None:
                raise request.error
            pieces = request.pieces[request.delivered :]
            request.delivered += len(pieces)
            return pieces, request.finish_reason

    def abort(self, request: Request) -> None:
        """End a request in any phase; its resources are free when this returns. A finished request is unchanged."""
        with self.exclusive():
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

    def encode(self, row: Batch) -> Float[Tensor, "n D"]:
        """Embeddings that replace the placeholders of a row's only image or audio clip, float32, on the CPU; from the
        cache of encoder outputs, if they are in it."""
        (item,) = items(row)
        with self.exclusive():
            self._settle_weights()
            embeddings = self.encoders.encode([item])[item.key]
        return embeddings.to("cpu", torch.float32, copy=True)

    # ---- threads ---------------------------------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The lock, for all threads but the one that runs steps. Locks aren't fair: that thread would take it back at
        once, so it checks whether threads wait, and each of them notifies it when it leaves."""
        with self._count_lock:
            self._waiting_threads += 1
        with self._changed:
            with self._count_lock:
                self._waiting_threads -= 1
            yield
            self._changed.notify_all()

    def wake(self, _: object = None) -> None:
        """Let the thread in `run` look at once for work and at `stop`."""
        with self.exclusive():
            pass

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
                    idle = not (busy or self._has_work)
                    if (idle or self._waiting_threads) and not stop.is_set():
                        self._changed.wait(IDLE_SECONDS)
        finally:
            with self._changed:
                self._driver = None
                self._changed.notify_all()

    def _advance(self) -> None:
        """Runs a step, or waits for the next one of the thread that runs `run`."""
        with self._changed:
            if self._driver is not None and self._driver != threading.get_ident():
                self._changed.wait(IDLE_SECONDS)
                return
        self.step(in_order=True)

    @property
    def _has_work(self) -> bool:
        arrived = any(request.row.done() for request in self._arriving)
        return arrived or bool(self.scheduler.waiting or self.scheduler.running)

    # ---- steps -----------------------------------------------------------------------------------------------

    def step(self, *, in_order: bool = False) -> bool:
        """Run one forward for all scheduled requests; False if there was nothing to do. `in_order`: wait for the media
        of the request that came first, so that batches depend on the requests alone. If memory runs out, the largest
        request of the step ends; if the model fails, all requests end and the error is raised here."""
        if in_order:
            with self._lock:
                first = [r.row for r in self._arriving[: self._free_places]]
            wait(first)  # without the lock: `abort` must not wait for a decoder
        with self._lock:
            self.adapters.remove_unused()
            self._start_arrived(in_order)
            ended = self._resume_answers()
            parts: list[StepPart] = []
            try:
                encoding = self._encode()
                parts = self.scheduler.schedule()
                if not parts:
                    missing = encoding or any(r.missing_media for r in self.scheduler.running)
                    return self._wait_for_grammars(GRAMMAR_WAIT_SECONDS) or missing or ended
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
            if by_grammar := [p.request for p in parts if p.request.matcher is not None]:
                settle(by_grammar, SETTLE_SHARE * (time.monotonic() - began))
            for part in parts:
                if part.request.finish_reason:
                    self._end(part.request, part.request.finish_reason)
            return True

    @property
    def _free_places(self) -> int:
        """The number of further requests that may wait or run."""
        scheduler = self.scheduler
        places = scheduler.max_num_seqs - len(scheduler.running) - len(scheduler.waiting)
        return max(0, places)

    def _start_arrived(self, in_order: bool) -> None:
        """Moves requests whose rows are ready to the waiting ones; `in_order` only those at the front."""
        for request in self._arriving[: self._free_places] if in_order else list(self._arriving):
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

    def _resume_answers(self) -> bool:
        """Continues the requests that waited for the process of their grammar; whether one has ended."""
        ended = False
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            if request.matcher is not None and request.waits_for_grammar:
                resume(request)
                if request.finish_reason:
                    ended = True
                    self._end(request, request.finish_reason)
        return ended

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

    def _encode(self) -> bool:
        """Encodes images and audio that running requests wait for, for about `SLICE_SECONDS` seconds; False if there
        are none. If memory runs out, the request with the largest item of those in progress ends."""
        missing = [
            (request, item) for request in self.scheduler.running for item in request.missing_media
        ]
        if not missing:
            self.encoders.drop()
            return False
        try:
            embeddings = self.encoders.advance([item for _, item in missing], SLICE_SECONDS)
        except EncoderError as error:
            log.warning("%s", error, exc_info=error.__cause__)
            for request in {id(r): r for r, item in missing if item.key == error.key}.values():
                request.error = error
                self._end(request, "error")
            return True
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
            self._memory = Memory(decoder.config, blocks, decoder.dtype, decoder.device, self._kv)
        began = time.monotonic()
        outputs = self.runner.run(parts, self._memory)
        logits = [output.logits for output in outputs]
        finite, best = finite_rows(logits), argmax_rows(parts, logits)
        tokens = sum(part.size for part in parts)
        self.scheduler.budget.record(tokens, time.monotonic() - began)
        for number, (part, output) in enumerate(zip(parts, outputs, strict=True)):
            self.accept(part, output, finite[number], best[number])
            if self._prefix_cache:
                root = self.prefixes.root(part.request)
                part.request.table.register(part.request.block_hashes(root))

    def _recover_memory(self, parts: Sequence[StepPart]) -> None:
        """Ends the largest request of a step that ran out of memory, and preempts the others, which run again."""
        largest = max(parts, key=lambda part: part.size).request
        self._end_out_of_memory(largest)
        for part in reversed(parts):
            if part.request is not largest:
                self.scheduler.preempt(part.request)

    def _end_out_of_memory(self, request: Request) -> None:
        """Ends a request for which there is no memory."""
        request.error = OutOfMemory(
            f"not enough memory for this request of {len(request.ids)} tokens in addition to the others; send a "
            "shorter one, or try again later"
        )
        self._end(request, "error")

    def _unfinished(self) -> list[Request]:
        return [*self._arriving, *self.scheduler.waiting, *self.scheduler.running]

    def _settle_weights(self) -> None:
        """Drops keys, values and encoder outputs of old weights, if no request is unfinished."""
        if not self._unfinished() and self.prefixes.weights_changed():
            self.pool.clear_cache()
            self.encoders.clear()


def _is_memory_bound(model: PhiModel) -> bool:
    """Whether reading the weights dominates the time of a decode step, so that draft tokens are cheap: on a CPU, where
    the weights exceed its caches. On a GPU a decode step is a CUDA graph (graphs.py), and draft tokens weren't
    measured."""
    weights = (*model.decoder.parameters(), *other_tensors(model.decoder))
    on_cpu = model.decoder.device.type == "cpu"
    cached = CPU_CACHE if model.quant in (None, "bf16") else QUANTIZED_CACHE
    return on_cpu and sum(tensor_bytes(t) for t in weights) > cached


def _has_media(prompt: Sequence[Message] | TokensPrompt) -> bool:
    """Whether images, clips, videos or documents have to be decoded."""
    if isinstance(prompt, TokensPrompt):
        return bool(prompt.parts)
    return any(not isinstance(part, Text) for message in prompt for part in message.parts)


def _prepared(row: Batch) -> Future[Batch]:
    """The future of a row that is there already."""
    future: Future[Batch] = Future()
    future.set_result(row)
    return future
