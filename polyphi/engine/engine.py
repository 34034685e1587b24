"""Requests -> answers: whoever asks is answered in one batch with everybody else, and gets the answer it gets alone.

>>> engine = Engine(model, processor)
>>> engine.generate([Message.user("2 + 2 =")]).text
'4'
>>> [c.text for c in engine.generate_many(conversations)]        # packed together, finished ones make room

Inside, a request is submitted and the engine is stepped until it is finished; a program may do the same by hand::

    request = engine.submit(messages)            # its media are decoded beside the steps
    while not request.finish_reason:
        engine.step()
    engine.abort(request)                        # at any time, from any thread: all that it held is free

or let one thread step for everybody, as a server does::

    row = engine.prepare(messages, sampling)     # what is wrong with a request is told here
    (request,) = engine.enter(row, sampling)
    text, reason = engine.news(request)          # after each step of `engine.run`, which another thread is in

A step (scheduler.py) runs new prompts, chunk by chunk, together with one token of everybody else (runner.py). Before it
the encoders work on pictures and clips that are new to them for a moment (encoders.py). Keys and values lie in blocks
that requests with the same beginning share (cache.py).
"""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, repeat
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import Batch
from polyphi.engine.cache import BLOCK, BlockPool, Memory, Table, check_kind, token_bytes
from polyphi.engine.encoders import Encoders, items
from polyphi.engine.memory import OutOfMemory, beside, ran_out
from polyphi.engine.prompt import Prompt, parse_prompt
from polyphi.engine.request import NOBODY, Caller, Request
from polyphi.engine.runner import Runner
from polyphi.engine.sampling import check
from polyphi.engine.scheduler import Part, Scheduler
from polyphi.engine.scores import logits_rows, score_rows
from polyphi.engine.structured import Matcher
from polyphi.messages import (
    Audio,
    Completion,
    Delta,
    Image,
    Message,
    SamplingParams,
    TokensPrompt,
    Video,
    adapter_for,
    media,
    normalize_adapter,
)
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import NO_TOKENIZER
from polyphi.quantization import quantize

GREEDY = SamplingParams()
TOGETHER = 32
"""Sequences that run at once."""
CHUNK = 512
"""Prompt tokens of a step while somebody waits for the next token, and of a large model's on a CPU: more only ask for
memory that has to be cleared first, which takes a seventh of the time at 2,048."""
PREFILL = 2048
"""Prompt tokens of a step while nobody does, and of one forward of scores."""
DRAFT = 15
"""Tokens that are guessed in a step, at most, where a request leaves it to the engine."""
CACHED = 256 * 2**20
"""Bytes of weights that a CPU may hold in its caches."""
ENCODED = 256 * 2**20
"""Bytes of encoder outputs to remember."""
IDLE = 0.5
"""Seconds between looks at whether there is something to do, for whoever waits to be told."""
SLICE = 0.05
"""Seconds that encoders work between two steps, or a layer where that takes longer."""
ORDINARY = 2048
"""Tokens of an ordinary sequence: memory for keys and values is made for `TOGETHER` of them, or one whole context."""


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


class NotFinite(RuntimeError):
    """The model's output for a request has NaN or infinity in it: there is no answer."""


class Stopped(Exception):
    """Whoever asked doesn't want to know any more."""


class Engine:
    """A model (put in eval mode) and the processor of its inputs, behind the `Generate` protocol (chat.py).

    `memory`: bytes for keys and values; by default for 32 ordinary sequences or one whole context, whichever is more,
    but at most half of what is free. `remember`: whether beginnings of sequences are shared. `kv`: "int8" keeps keys
    and values in 8 bits, which halves them (on a CPU; None: in the model's type). Safe to use from several
    threads; a step is one thread's work at a time.
    """

    def __init__(
        self,
        model: PhiModel,
        processor: Processor,
        *,
        memory: int | None = None,
        together: int = TOGETHER,
        chunk: int = CHUNK,
        prefill: int | None = None,
        encoded: int = ENCODED,
        remember: bool = True,
        kv: str | None = None,
    ) -> None:
        check_kind(kv, model.decoder.device)
        self.model = model.eval()
        self.processor = processor
        self.runner = Runner(model)
        self.encoders = Encoders(model, encoded)
        self.steps = self.tokens = 0
        self.stepped: Callable[[int], None] = lambda tokens: None
        """Called after each step with the number of tokens that it ran, by the thread that runs the step."""
        self._remember = remember
        large = _reads_weights(model)
        self._draft = DRAFT if large else 0
        self._prefill = prefill or (CHUNK if large else PREFILL)
        self.kv = kv
        config, dtype = model.config.decoder, model.decoder.dtype
        size = token_bytes(config, dtype, kv) * BLOCK
        wanted = max(config.max_position_embeddings, together * ORDINARY) // BLOCK
        given = beside(model) // 2 if memory is None else memory
        blocks = given // size if memory is not None else min(wanted, given // size)
        self.pool = BlockPool(max(1, blocks))
        self.scheduler = Scheduler(
            self.pool,
            together=together,
            chunk=chunk,
            prefill=self._prefill,
            switch=self.runner.switch,
            root=self._root,
            rope=self.runner.table,
        )
        self._memory: Memory | None = None  # made for the first request
        self._arriving: list[Request] = []
        self._lock = threading.RLock()
        # Told when a step is done, or there is something to do.
        self._changed = threading.Condition(self._lock)
        self._wanting = 0  # threads that wait for a turn between two steps
        self._counting = threading.Lock()
        self._driver: int | None = None  # the thread that is in `run`
        self._decoders: ThreadPoolExecutor | None = None
        self._groups = count(1)  # numbers of calls
        self._roots: dict[tuple[str | None, str], bytes] = {}
        self._weights: tuple[int, ...] = ()

    @property
    def capacity(self) -> int:
        """Tokens of keys and values that memory holds, all sequences together."""
        return self.pool.size * BLOCK

    def counters(self) -> Counters:
        with self._turn():
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

    def generate(
        self,
        messages: Prompt,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Completion:
        """The assistant's next turn after messages, or the continuation of token ids (prompt.py). `adapter`: "auto"
        (image -> vision, audio only -> speech, text -> none), a name, or "none" or None. Raises ValueError for an
        unknown adapter, media that the model has no encoder for, and a request that doesn't fit the context."""
        return self.generate_many([messages], sampling=sampling, adapter=adapter)[0]

    def generate_many(
        self,
        conversations: Iterable[Prompt],
        *,
        sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
        adapter: str | None = "auto",
        stop: threading.Event | None = None,
        caller: Caller = NOBODY,
    ) -> list[Completion]:
        """Answers in the order of the conversations; media are read when their turn comes. `sampling` is one for all,
        or one for each. Raises ValueError as `generate` does, and `Stopped` within a step of `stop` being set."""
        one = isinstance(sampling, SamplingParams)
        each = repeat(sampling) if isinstance(sampling, SamplingParams) else iter(sampling)
        coming = zip(conversations, each, strict=not one)
        done: list[list[Completion | None]] = []
        under_way: dict[Request, tuple[int, int]] = {}
        call = next(self._groups)
        more = True
        try:
            while True:
                while more and len(under_way) < 2 * self.scheduler.together:
                    if (pair := next(coming, None)) is None:
                        more = False
                        break
                    group = self._submit_all(*pair, adapter, caller, call)
                    under_way |= {r: (len(done), i) for i, r in enumerate(group)}
                    done.append([None] * len(group))
                if not under_way:
                    break
                if stop is not None and stop.is_set():
                    raise Stopped
                self._advance()
                for request in [r for r in under_way if r.finish_reason]:
                    number, i = under_way.pop(request)
                    done[number][i] = _answer(request)
        finally:
            for request in under_way:
                self.abort(request)
        return [_together([c for c in group if c is not None]) for group in done]

    def stream(
        self,
        messages: Prompt,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Iterator[Delta]:
        """The answer in pieces that join to `generate`'s text; the last one carries the finish reason. Closing the
        iterator aborts the request. Raises ValueError as `generate` does, before the first piece."""
        if sampling.n != 1:
            raise ValueError(f"one answer is streamed at a time, found n={sampling.n}")
        request = self.submit(messages, sampling=sampling, adapter=adapter)
        try:
            request.row.result()  # a request that can't be answered is told here, not at the first piece
        except BaseException:  # also of who doesn't want to wait any longer
            self.abort(request)
            raise
        return self._deltas(request)

    def _deltas(self, request: Request) -> Iterator[Delta]:
        shown = 0  # tokens
        always = not request.tokenizer.has_vocabulary  # then no token has text to wait for
        try:
            while True:
                text, reason = self.news(request)
                tokens = tuple(request.tokens[shown:])
                if text or reason or (tokens and always):
                    shown += len(tokens)
                    yield Delta(text, reason, request.completion() if reason else None, tokens)
                if reason:
                    return
                self._advance()
        finally:
            self.abort(request)

    def news(self, request: Request) -> tuple[str, str | None]:
        """(text that came since it was last asked, finish reason if there is one). Raises what ended the request."""
        with self._turn():
            if request.error is not None:
                raise request.error
            pieces = request.pieces[request.shown :]
            request.shown += len(pieces)
            return "".join(pieces), request.finish_reason

    def submit(
        self,
        messages: Prompt,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Request:
        """A request that the next steps will answer. Text is read here; media are decoded beside the steps, and what is
        wrong with them comes out of `request.row`. Raises ValueError as `generate` does."""
        (request,) = self._submit_all(
            messages, replace(sampling, n=1), adapter, NOBODY, next(self._groups)
        )
        return request

    def _submit_all(
        self,
        messages: Prompt,
        sampling: SamplingParams,
        adapter: str | None,
        caller: Caller,
        group: int,
    ) -> list[Request]:
        """The requests of a conversation's `n` answers; they share the row, and all but the first wait for its keys."""
        check(sampling)
        parsed = parse_prompt(messages)
        future: Future[Batch]
        if _has_media(parsed):
            with self._lock:
                self._decoders = self._decoders or ThreadPoolExecutor(2, "decode media")
            future = self._decoders.submit(self.prepare, parsed, sampling, adapter)
        else:
            future = Future()
            future.set_result(self.prepare(parsed, sampling, adapter))
        return self._enter(future, sampling, caller, group)

    def prepare(
        self,
        messages: Prompt,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Batch:
        """The row of a conversation, media decoded, after everything that can be wrong with it and with what is asked
        was looked at. Takes no part in steps and waits for none. Raises ValueError as `generate` does."""
        self.check_sampling(sampling)
        made = self.row(messages, adapter=adapter)
        self.check_row(made, sampling)
        return made

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Raises ValueError for values that mean nothing, for a grammar that no answer fits, and for stop strings,
        `stop_at_call` or a grammar without a tokenizer."""
        check(sampling)
        if (sampling.stop or sampling.stop_at_call) and not self.processor.tokenizer.has_vocabulary:
            raise ValueError(NO_TOKENIZER)
        if sampling.grammar is not None:
            Matcher(sampling.grammar, self.processor.tokenizer)

    def check_row(self, row: Batch, sampling: SamplingParams) -> None:
        """Raises ValueError if a row and its answer don't fit the context or memory."""
        self._check_room(len(row), sampling.max_tokens)
        if (bound := len(row) + sampling.max_tokens) > self.capacity:
            raise ValueError(
                f"{len(row)} prompt tokens and {sampling.max_tokens} more are {bound}, but there is memory for "
                f"the keys and values of {self.capacity}; lower max_tokens, or give the engine more memory"
            )

    def enter(
        self, row: Batch, sampling: SamplingParams = GREEDY, *, caller: Caller = NOBODY
    ) -> list[Request]:
        """The requests of the `n` answers to a prepared row."""
        return self.enter_all([row], sampling, caller=caller)[0]

    def enter_all(
        self,
        rows: Sequence[Batch],
        sampling: SamplingParams = GREEDY,
        *,
        caller: Caller = NOBODY,
    ) -> list[list[Request]]:
        """`enter` of several rows, which are one call of the caller (scheduler.py)."""
        group = next(self._groups)
        entered: list[list[Request]] = []
        with self._turn():
            for row in rows:
                made: Future[Batch] = Future()
                made.set_result(row)
                entered.append(self._enter(made, sampling, caller, group))
        return entered

    def _enter(
        self,
        row: Future[Batch],
        sampling: SamplingParams,
        caller: Caller,
        group: int,
    ) -> list[Request]:
        with self._turn():
            if not self._busy:
                self._look_at_weights()
            requests: list[Request] = []
            draft = self._draft if sampling.draft == "auto" else sampling.draft
            for number in range(sampling.n):
                own = replace(sampling, n=1, seed=sampling.seed + number)
                leader = requests[0] if requests else None
                if leader is not None:
                    own = replace(own, prompt_logprobs=None)  # the first one tells them
                tokenizer, table = self.processor.tokenizer, Table(self.pool)
                requests.append(Request(row, own, tokenizer, table, leader, draft, caller, group))
            self._arriving += requests
        row.add_done_callback(self._wake)
        return requests

    @property
    def _busy(self) -> bool:
        """Whether a request is under way."""
        return bool(self._arriving or self.scheduler.waiting or self.scheduler.running)

    def _wake(self, _: Any = None) -> None:
        with self._turn():
            pass

    @contextmanager
    def _turn(self) -> Iterator[None]:
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

    def _advance(self) -> None:
        """Runs a step, or waits for the next one of the thread that is in `run`."""
        with self._changed:
            if self._driver is not None and self._driver != threading.get_ident():
                self._changed.wait(IDLE)
                return
        self.step(in_order=True)

    def abort(self, request: Request) -> None:
        """End a request in whatever phase it is; what it held is free when this returns. A finished one stays as it
        is."""
        with self._turn():
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
        ran = self.runner.run(parts, self._memory)
        logits = [one.logits for one in ran]
        finite, best = _finite(logits), _argmax(parts, logits)
        self.scheduler.timed(parts, time.monotonic() - began)
        for number, (part, one) in enumerate(zip(parts, ran, strict=True)):
            part.request.prompt_logprobs += one.scores
            if not all(math.isfinite(score.logprob) for score in one.scores):
                self._not_finite(part.request)
            elif one.logits is not None:
                self._accept(part, one.logits, finite[number], best[number])
            elif part.whole:  # only its prompt was asked about
                part.request.finish_reason = "length"
            if self._remember:
                part.request.table.remember(part.request.names(self._root(part.request)))

    def _not_finite(self, request: Request) -> None:
        request.finish_reason = "error"
        request.error = NotFinite(
            "the model's output for this request is NaN or infinite, so there is no answer; weights that are damaged, "
            "or a type too narrow for them (float16), cause it"
        )

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

    def _accept(
        self, part: Part, rows: Float[Tensor, "n V"], finite: list[bool], best: list[int]
    ) -> None:
        """The next token, and those after it as long as they were guessed right: a guess's own logits are only good if
        it is what was drawn."""
        request = part.request
        for number in range(len(rows)):
            if not finite[number]:
                self._not_finite(request)
                break
            if request.sampler.plain:
                token = best[number]
                request.sampler.accept(token)
            else:
                try:
                    token = request.sampler.draw(rows[number])
                except ValueError as error:  # its own grammar: no one else's end
                    request.error, request.finish_reason = error, "error"
                    break
            request.accept(token)
            right = number < len(part.guesses) and token == part.guesses[number]
            if request.finish_reason or not right:
                break
            request.table.length += 1
        if request.prefilled:
            request.features.clear()

    def _root(self, request: Request) -> bytes:
        """The name of a sequence's beginning: the weights of its adapter and its LongRoPE table."""
        key = (request.adapter, request.ropes[-1])
        if key not in self._roots:
            found = hashlib.sha256(key[1].encode())
            if request.adapter is not None:
                for tensor in self.model.adapter_tensors(request.adapter):
                    found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            self._roots[key] = found.digest()
        root = self._roots[key]
        return hashlib.sha256(request.caller.salt + root).digest() if request.caller.salt else root

    def _look_at_weights(self) -> None:
        """Forgets what was made with other weights: a model may learn between two questions."""
        found = tuple(
            number
            for p in self.model.parameters()
            for number in (p.data_ptr(), 0 if p.is_inference() else p._version)
        )
        if found != self._weights:
            self._weights = found
            self._roots.clear()
            self.pool.forget()
            self.encoders.forget()

    def score(
        self, messages: Prompt, continuation: str, *, adapter: str | None = "auto"
    ) -> list[float]:
        """Natural log-probability of each token of `continuation` as the assistant's answer, without its end."""
        return self.score_many([(messages, continuation)], adapter=adapter)[0]

    def score_many(
        self, pairs: Iterable[tuple[Prompt, str]], *, adapter: str | None = "auto"
    ) -> list[list[float]]:
        """`score` of many (conversation, continuation) pairs, several in one forward."""

        def rows() -> Iterator[tuple[Batch, list[int]]]:
            for messages, continuation in pairs:
                prompt = self.row(messages, adapter=adapter)
                answer = self.processor.tokenizer.encode(continuation)
                self._check_room(len(prompt), len(answer))
                yield prompt, answer

        return score_rows(self.runner, rows(), self._prefill)

    def logits(self, row: Batch, last: int | None = None) -> Float[Tensor, "n V"]:
        """`logits_many` of one row."""
        (logits,) = self.logits_many([row], last)
        return logits

    def logits_many(
        self, rows: Iterable[Batch], last: int | None = None
    ) -> Iterator[Float[Tensor, "n V"]]:
        """Float32 logits of each row, on the CPU: at every position, or at the `last` ones (at all of a shorter row).
        Several rows run in one forward. Raises ValueError for `last` below 1 and a row that doesn't fit the context."""
        if last is not None and last < 1:
            raise ValueError(f"last is a number of positions from 1 on, or None, found {last}")

        def checked() -> Iterator[Batch]:
            for row in rows:
                self._check_room(len(row), 0)
                yield row

        return logits_rows(self.runner, checked(), self._prefill, last)

    def embed(
        self, part: Image | Audio, projector: Literal["speech", "vision"] = "speech"
    ) -> Float[Tensor, "n D"]:
        """What the decoder receives in the place of an image or an audio clip, float32, on the CPU. A clip goes through
        that audio `projector`. Encoder outputs are looked up in and added to the engine's cache. Raises ValueError for
        other parts, media that can't be read, and where the model has no encoder for them."""
        if projector not in ("speech", "vision"):
            raise ValueError(f"the audio projector is speech or vision, found {projector!r}")
        tokenizer = self.processor.tokenizer
        if isinstance(part, Image):
            prompt = self.ids_row([tokenizer.image_id or 0], [part])
        elif isinstance(part, Audio):
            prompt = self.ids_row([tokenizer.audio_id or 0], (), [part])
            clips = tuple(replace(clip, branch=projector) for clip in prompt.clips)
            prompt = replace(prompt, clips=clips)
        else:
            raise ValueError(f"expected an Image or an Audio, found {type(part).__name__}")
        (item,) = items(prompt)
        with self._turn():
            if not self._busy:
                self._look_at_weights()
            vectors = self.encoders.encode([item])[item.key]
        return vectors.to("cpu", torch.float32, copy=True)

    def row(
        self, messages: Prompt, *, adapter: str | None = "auto", context: int | None = None
    ) -> Batch:
        """A prompt as the row that the model continues: messages with the generation prompt, ids as they are. Raises
        ValueError above `context` tokens, by default as many as the model can read; what is surely too long is neither
        tokenized nor decoded."""
        parsed = parse_prompt(messages)
        context = self.context if context is None else context
        if isinstance(parsed, TokensPrompt):
            ids, images, audios = parsed.ids, parsed.images, parsed.audios
            return self.ids_row(ids, images, audios, adapter=adapter, context=context)
        seen = (*media(parsed, Image), *media(parsed, Video))
        self._check_media(len(seen), len(media(parsed, Audio)))
        chosen = self._adapter(adapter, adapter_for(parsed))
        return self.processor.row(parsed, adapter=chosen, generation_prompt=True, context=context)

    def ids_row(
        self,
        ids: Sequence[int],
        images: Sequence[Any] = (),
        audios: Sequence[Any] = (),
        *,
        adapter: str | None = "auto",
        context: int | None = None,
    ) -> Batch:
        """Given ids, with the pictures and clips of their placeholders, as a row. `context` as for `row`."""
        self._check_media(len(images), len(audios))
        chosen = self._adapter(adapter, "vision" if images else "speech" if audios else None)
        context = self.context if context is None else context
        return self.processor.ids_row(ids, images, audios, chosen, context=context)

    @property
    def context(self) -> int:
        """Tokens that the model can read, prompt and answer together."""
        return self.model.config.decoder.max_position_embeddings

    @property
    def longest(self) -> int:
        """Tokens that a sequence may have: those that the model reads, or there is memory for."""
        return min(self.context, self.capacity)

    def _check_media(self, pictures: int, clips: int) -> None:
        for kind, given, encoder in (
            ("pictures", pictures, self.model.vision),
            ("clips", clips, self.model.audio),
        ):
            if given and encoder is None:
                raise ValueError(
                    f"the request has {given} {kind}, but this model has no encoder for them"
                )

    def _adapter(self, adapter: str | None, called_for: str | None) -> str | None:
        """`adapter`, or for "auto" the one that the content calls for where this model has it: Phi-4-mini has none."""
        have = self.model.config.adapters
        adapter = normalize_adapter(adapter)
        if adapter == "auto":
            return called_for if called_for in have else None
        if adapter is not None and adapter not in have:
            raise ValueError(
                f"unknown adapter {adapter!r}; expected 'auto', 'none' or one of {sorted(have)}"
            )
        return adapter

    def _check_room(self, prompt: int, more: int) -> None:
        if prompt + more > self.context:
            raise ValueError(
                f"{prompt} prompt tokens and {more} more are {prompt + more}, but the model reads at most "
                f"{self.context}; shorten the prompt or lower max_tokens"
            )


def _reads_weights(model: PhiModel) -> bool:
    """Whether a step takes as long as its weights are read, so that guesses are cheap: on a CPU, where they don't stay
    in its caches. On a GPU a step of single tokens is a recorded graph (graphs.py), and guesses weren't measured."""
    weights = (*model.decoder.parameters(), *quantize.held(model.decoder))
    on_cpu = model.decoder.device.type == "cpu"
    return on_cpu and sum(quantize.nbytes(t) for t in weights) > CACHED


def _finite(logits: Sequence[Tensor | None]) -> list[list[bool]]:
    """Whether each row of logits is finite: then so is its sum, for logits are far from float32's largest number."""
    given = [rows.sum(-1) for rows in logits if rows is not None]
    found = iter(torch.cat(given).isfinite().tolist() if given else ())
    return [[next(found) for _ in rows] if rows is not None else [] for rows in logits]


def _argmax(parts: Sequence[Part], logits: Sequence[Tensor | None]) -> list[list[int]]:
    """The likeliest tokens of those that take nothing else, moved to the host together."""
    plain = [
        rows
        for p, rows in zip(parts, logits, strict=True)
        if rows is not None and p.request.sampler.plain
    ]
    best = iter(torch.cat(plain).argmax(-1).tolist()) if plain else iter(())
    return [
        [next(best) for _ in rows] if rows is not None and p.request.sampler.plain else []
        for p, rows in zip(parts, logits, strict=True)
    ]


def _has_media(prompt: Sequence[Message] | TokensPrompt) -> bool:
    """Whether images, clips or videos have to be decoded."""
    if isinstance(prompt, TokensPrompt):
        return bool(prompt.images or prompt.audios)
    return any(media(prompt, kind) for kind in (Image, Audio, Video))


def _answer(request: Request) -> Completion:
    """A finished request's answer; raises what ended it instead."""
    if request.error is not None:
        raise request.error
    return request.completion()


def _together(answers: Sequence[Completion]) -> Completion:
    """The first answer, with the others of its conversation."""
    return replace(answers[0], others=tuple(answers[1:])) if len(answers) > 1 else answers[0]
