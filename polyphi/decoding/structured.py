r"""Answers that follow a grammar: a JSON schema, a regular expression, a context-free grammar or a list of tools.

>>> grammar = compile_grammar(Grammar("json", '{"enum": ["yes", "no"]}'), tokenizer)
>>> matcher = grammar.matcher()
>>> masked = matcher.mask(logits)                # minus infinity for tokens that the grammar forbids
>>> matcher.accept(int(masked.argmax()))

grammars.py describes the grammars. llguidance follows them in other processes (matcher_process.py), one for each
grammar, with limits of CPU time and memory: a grammar that exceeds them ends with ValueError, and nothing else does.
Where the system ends a process, or starts none, the error is `GrammarProcessEnded`.
`mask` and `finished` wait for that process; `ready` and `settled` say whether they would.
"""

import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.decoding import grammars
from polyphi.decoding.matcher_process import ALL, ERROR, LENGTH, MASK, MESSAGE, TOKEN, grammar_bytes
from polyphi.processing.tokenizer import NO_TOKENIZER, Tokenizer
from polyphi.runtime.fork_server import ForkedProcess, ForkServer, package_folders
from polyphi.types.sampling import Grammar

WAIT = 60.0
"""Seconds in which a process must answer; its limits of CPU time are lower, but the machine may be busy."""
TICK = 0.05
"""Seconds between two looks whether a grammar is still needed."""
STATUS_WAIT = 1.0
"""Seconds to wait for the exit status of a process whose connection has ended."""
TOO_COMPLEX = "this grammar is too complex to follow: {} takes too much time or memory; simplify it"
PROGRAM = "import sys; sys.path += {!r}; from polyphi.decoding.matcher_process import main; main()"


class GrammarProcessEnded(RuntimeError):
    """The system has ended a grammar's process, or started none, for a reason other than the grammar."""


@dataclass(frozen=True)
class CompiledGrammar(Grammar):
    """A grammar with the process that follows it, which ends when all matchers are closed or nobody refers to it."""

    process: "MatcherProcess | None" = field(default=None, compare=False, repr=False)

    def matcher(self) -> "Matcher":
        """Return the state of another answer in this grammar."""
        assert self.process is not None
        return Matcher(self.process)


def compile_grammar(
    grammar: Grammar, tokenizer: Tokenizer, stop: Callable[[], bool] = lambda: False
) -> CompiledGrammar:
    """Waits for the grammar's process. Raises ValueError for an invalid grammar, one that no answer fits, and one that
    exceeds the limits; also soon after `stop` returns True, when nobody needs it."""
    process = MatcherProcess(grammar, tokenizer)
    while not process.is_compiled:
        if stop():
            process.close()
            raise ValueError("the grammar isn't needed any more")
        process.wait(TICK)
    return CompiledGrammar(
        grammar.format, grammar.text, grammar.max_calls, grammar.alternative, process
    )


def open_matchers(
    grammar: Grammar | None, tokenizer: Tokenizer, count: int
) -> "list[Matcher] | list[None]":
    """The states of `count` answers. Doesn't wait for a grammar that isn't compiled: what is wrong with it shows at the
    first mask."""
    if grammar is None:
        return [None] * count
    process = grammar.process if isinstance(grammar, CompiledGrammar) else None
    process = process or MatcherProcess(grammar, tokenizer)
    return [Matcher(process) for _ in range(count)]


class _Answer:
    """What is known about the next token of an answer."""

    def __init__(self) -> None:
        self.mask: bytes | None = None
        self.allowed: Tensor | None = None
        """The mask as a bool for each token, once it was used."""
        self.settled, self.complete = True, False


class MatcherProcess:
    """The process of one grammar. Its matchers are used by one thread at a time."""

    def __init__(self, grammar: Grammar, tokenizer: Tokenizer) -> None:
        """Starts the process. Raises ValueError without llguidance or a tokenizer, and `GrammarProcessEnded`."""
        grammars.llguidance()
        if not tokenizer.has_vocabulary:
            raise ValueError(NO_TOKENIZER)
        self.vocab_size = tokenizer.vocab_size
        self.answers: dict[int, _Answer] = {}
        self.error: ValueError | GrammarProcessEnded | None = None
        self.is_slow = False
        """Whether a mask after a draft token has taken too long to wait for (results.py)."""
        self._first_mask: bytes | None = None
        self._open = 0
        self._incoming, self._outgoing = bytearray(), bytearray()
        self._waiting_since = time.monotonic()
        self._process, self._socket = _started(tokenizer)
        weakref.finalize(self, self._socket.close)
        self._socket.setblocking(False)
        data = grammar_bytes(grammar)
        self._send(LENGTH.pack(len(data)) + data)

    @property
    def is_compiled(self) -> bool:
        """Whether the grammar is compiled, that is, its first mask has arrived. Raises ValueError for an invalid
        grammar, and `GrammarProcessEnded`."""
        self.receive()
        if self.error is not None:
            raise self.error
        return self._first_mask is not None

    def wait(self, seconds: float) -> None:
        """Waits at most `seconds` for a message of the process."""
        wait_for([self], seconds)

    def register(self, poll: "select.poll") -> bool:
        """Register the process's socket in `poll`, and return whether it is open, so that there is something to wait
        for."""
        if self._socket.fileno() >= 0:
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        return self._socket.fileno() >= 0

    def open(self) -> tuple[int, _Answer]:
        """The number of another answer, and its state."""
        number, answer = len(self.answers), _Answer()
        answer.mask = self._first_mask
        self.answers[number] = answer
        self._open += 1
        return number, answer

    def release(self) -> None:
        """Ends the process with its last answer."""
        self._open -= 1
        if not self._open:
            self.close()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._process.kill()
        self.error = self.error or ValueError("this grammar's process was ended")

    def send(self, number: int, token: int) -> None:
        self._waiting_since = time.monotonic()
        self._send(TOKEN.pack(number, token))

    def receive(self) -> None:
        """Reads the messages that have arrived."""
        if self.error is not None:
            return
        self._send(b"")
        is_late = time.monotonic() - self._waiting_since > WAIT
        try:
            while len(data := self._socket.recv(1 << 18)):
                self._incoming += data
                is_late = False  # it is this process that has read late
            self._fail(is_late=False)  # the process has ended
        except BlockingIOError:
            if is_late:
                self._fail(is_late=True)
        except OSError:
            self._fail(is_late=False)
        self._read_messages()

    def _read_messages(self) -> None:
        start = 0
        while len(self._incoming) >= start + MESSAGE.size:
            kind, number, complete, length = MESSAGE.unpack_from(self._incoming, start)
            end = start + MESSAGE.size + length
            if len(self._incoming) < end:
                break
            data = bytes(self._incoming[start + MESSAGE.size : end])
            start = end
            if kind == ERROR:
                self.error = ValueError(data.decode())
            elif number == ALL:
                self._first_mask = data
                for answer in self.answers.values():
                    answer.mask = data
            elif kind == MASK:
                self.answers[number].mask = data
            else:
                self.answers[number].settled, self.answers[number].complete = True, complete
        del self._incoming[:start]

    def _send(self, data: bytes) -> None:
        """Sends as much as the process takes now; the rest goes with the next call."""
        self._outgoing += data
        with suppress(OSError):  # of a process that has ended: what it sent before says why
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]

    def _fail(self, *, is_late: bool) -> None:
        self._read_messages()
        if self.error is None:
            what = "compiling it" if self._first_mask is None else "an answer"
            # A process ends itself at its limits, and has no signal of the system for that.
            self.error = (
                _ended("was ended by the system, or did not answer")
                if is_late or self._is_killed()
                else ValueError(TOO_COMPLEX.format(what))
            )
        self.close()

    def _is_killed(self) -> bool:
        """Whether a signal of another program or the system has ended the process, for example because the system had
        no memory left."""
        try:
            return self._process.wait(STATUS_WAIT) in (-signal.SIGKILL, -signal.SIGTERM)
        except subprocess.TimeoutExpired:
            return True


class Matcher:
    """The state of one answer in its grammar."""

    def __init__(self, process: MatcherProcess) -> None:
        self.process = process
        self._number, self._answer = process.open()
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether `mask` returns or raises at once."""
        if self._answer.mask is None:
            self.process.receive()
        return self._answer.mask is not None or self.process.error is not None

    @property
    def settled(self) -> bool:
        """Whether `finished` is known."""
        if not self._answer.settled:
            self.process.receive()
        return self._answer.settled or self.process.error is not None

    @property
    def finished(self) -> bool:
        """Whether only the end token is allowed. Waits for the process."""
        while not self.settled:
            self.process.wait(TICK)
        return self._answer.complete

    def mask(self, logits: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """The logits with minus infinity for every token that the grammar forbids. Once finished it allows only the end
        token. Waits for the process; raises ValueError where it exceeded its limits, and `GrammarProcessEnded`."""
        allowed = self._allowed().to(logits.device)
        size = min(len(allowed), len(logits))
        masked = torch.full_like(logits, -torch.inf)
        masked[:size] = logits[:size].masked_fill(~allowed[:size], -torch.inf)
        return masked

    def accept(self, token: int) -> None:
        """Advance by a token that the mask allows."""
        assert self._allowed()[token], f"token {token} is not allowed here"
        self._answer.mask = self._answer.allowed = None
        self._answer.settled = False
        self.process.send(self._number, token)

    def close(self) -> None:
        """Ends the process, if it has no other answer."""
        if not self._closed:
            self._closed = True
            self.process.release()

    def _allowed(self) -> Tensor:
        while not self.ready:
            self.process.wait(TICK)
        if self._answer.mask is None:
            assert self.process.error is not None
            raise self.process.error
        if self._answer.allowed is None:
            bits = np.unpackbits(np.frombuffer(self._answer.mask, np.uint8), bitorder="little")
            self._answer.allowed = torch.from_numpy(bits[: self.process.vocab_size].view(bool))
        return self._answer.allowed


def wait_for(processes: Iterable[MatcherProcess], seconds: float) -> None:
    """Waits until one of the processes sends something, or has ended."""
    poll = select.poll()
    if all([process.register(poll) for process in processes]):
        poll.poll(1000 * seconds)


def _ended(event: str) -> GrammarProcessEnded:
    return GrammarProcessEnded(
        f"the process that follows this request's grammar {event}; try again"
    )


_starters_lock = threading.Lock()


def _started(tokenizer: Tokenizer) -> tuple[ForkedProcess, socket.socket]:
    """A new process, and a connection to it."""
    try:
        ours, theirs = socket.socketpair()
        with theirs, _starters_lock:
            return _cached_starter(tokenizer).start(descriptors=[theirs.fileno()]), ours
    except OSError:
        raise _ended("could not be started") from None


@lru_cache(maxsize=2)
def _cached_starter(tokenizer: Tokenizer) -> ForkServer:
    """The first process of a tokenizer, which starts those of grammars."""
    data = tokenizer.to_json().encode()
    return ForkServer(
        [sys.executable, "-I", "-S", "-B", "-c", PROGRAM.format(package_folders())],
        # Only a process without other threads may fork.
        environment={
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        data=LENGTH.pack(len(data)) + data,
    )
