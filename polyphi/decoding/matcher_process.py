"""The program of the processes that follow grammars with llguidance. structured.py starts it.

What a grammar costs is bounded neither in time nor in memory by llguidance, and a thread in it can't be ended. So each
grammar has a process, which the kernel ends at its limits; nothing else ends with it. Before it reads the grammar, a
filter of system calls leaves it its socket, memory and time. The first process loads the tokenizer once, which takes
seconds for 200,064 tokens, and forks a process for each grammar in milliseconds. Neither has this one's environment.

    to the first process      a tokenizer as JSON, then a socket for each grammar (polyphi/runtime/fork_server.py)
    to a grammar's process    the grammar as JSON, then records: an answer's number and its next token
    from a grammar's process  messages: kind, answer, whether the answer is complete, and bytes: a mask or an error

A mask has a bit for each token that may be next. The first one holds for all answers; after each token the process
sends whether the answer is complete, and then the next mask.
"""

import json
import os
import signal
import socket
import struct
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from polyphi.decoding import grammars
from polyphi.decoding.grammars import (
    ANSWER_SECONDS,
    COMPILE_SECONDS,
    MASK_SECONDS,
    PROCESS_MEMORY,
    TOKEN_SECONDS,
)
from polyphi.processing.conversation import call_form
from polyphi.processing.text_slices import SLICE_CHARACTERS
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime import fork_server, syscall_filter
from polyphi.runtime.rust import panics_are_errors
from polyphi.types.sampling import Grammar
from polyphi.types.tools import CALL, CALL_END

LENGTH, TOKEN, MESSAGE = (struct.Struct(f) for f in ("<Q", "<II", "<cI?I"))
STATUS, MASK, ERROR = b"s", b"m", b"e"
ALL = 2**32 - 1
"""The number of the answer in messages about all of them."""
CALLS = *syscall_filter.COMPUTE_CALLS, "recvfrom", "sendto", "setitimer", "setpriority"
"""The system calls of a grammar's process."""
SLOW = 0.05
"""CPU time of one message after which a process gives way to all others."""


def main() -> None:
    """Load the tokenizer, then fork a process for each grammar (polyphi/runtime/fork_server.py)."""
    data = fork_server.read(LENGTH.unpack(fork_server.read(LENGTH.size))[0])
    tokenizer = Tokenizer.from_json(data.decode())
    tokenizer.encode(
        "a" * 2 * SLICE_CHARACTERS
    )  # loads what long texts need: later there are no files
    vocabulary = GrammarVocabulary(tokenizer)
    del data
    fork_server.fork_on_request(
        lambda _, descriptors: follow(socket.socket(fileno=descriptors[0]), vocabulary)
    )


class GrammarVocabulary:
    """A tokenizer in llguidance's form."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        library = grammars.llguidance()
        self.tokenizer = library.LLTokenizer(
            library.TokenizerWrapper(_Tokens(tokenizer)), eos_token=list(tokenizer.eos_ids)
        )
        self._controls, self._eos_ids = tokenizer.controls, tokenizer.eos_ids
        self.call_form = call_form(tokenizer.marks, tokenizer.controls)
        self._bits = (1 << tokenizer.vocab_size) - 1

    def text_and(self, controls: Collection[str]) -> int:
        """A mask of all tokens but the control tokens that are neither `controls` nor end tokens. (A context-free
        grammar can name any.)"""
        bits = self._bits
        for name, id in self._controls.items():
            if name not in controls and id not in self._eos_ids:
                bits &= ~(1 << id)
        return bits


class _Tokens:
    """A tokenizer with the interface that llguidance expects. Control tokens and unused ids have no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = {id: name for name, id in tokenizer.controls.items()}
        spelled = tokenizer.spelled()
        self.tokens = [
            names.get(id, f"<|unused {id}|>").encode() if word is None else word
            for id, word in enumerate(spelled)
        ]
        self.special_token_ids = [id for id, word in enumerate(spelled) if word is None]
        self.eos_token_id, self.bos_token_id = tokenizer.eos_ids[0], None
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class Matchers:
    """The answers that follow one grammar. Raises ValueError for an invalid grammar and one that no answer fits."""

    def __init__(self, grammar: Grammar, vocabulary: GrammarVocabulary) -> None:
        self._allowed = vocabulary.text_and({CALL, CALL_END} if grammar.format == "tools" else ())
        self._first: Any = grammars.llguidance().LLMatcher(
            vocabulary.tokenizer,
            grammars.compiled(grammar, vocabulary.call_form),
            log_level=0,
            limits=grammars.parser_limits(),
        )
        self._answers: dict[int, Any] = {}
        self.first_mask = self._mask(self._first)

    def accept(self, answer: int, token: int) -> bool:
        """Advance an answer by a token that its mask allows, and return whether it is complete: only the end token may
        follow. Raises ValueError where the parser exceeds its limits."""
        if answer not in self._answers:
            self._answers[answer] = self._first.deep_copy()
        matcher = self._answers[answer]
        is_allowed = matcher.consume_token(token)
        _raise_errors(matcher)
        assert is_allowed, f"token {token} is not allowed here"
        return bool(matcher.is_stopped())

    def mask(self, answer: int) -> bytes:
        """The allowed next tokens of an answer, a bit for each token, the lowest first."""
        return self._mask(self._answers[answer])

    def _mask(self, matcher: Any) -> bytes:
        mask = matcher.compute_bitmask()
        _raise_errors(matcher)
        bits = int.from_bytes(mask, "little") & self._allowed
        if not bits:
            raise ValueError("no answer fits this grammar: it requires control tokens")
        return bits.to_bytes(len(mask), "little")


def _raise_errors(matcher: Any) -> None:
    if matcher.is_error():
        message = grammars.one_line(matcher.get_error())
        if message.startswith("NoExtension"):
            raise ValueError("no answer fits this grammar")
        raise ValueError(f"this grammar is too complex to follow: {message}")


def follow(connection: socket.socket, vocabulary: GrammarVocabulary) -> None:
    """Compile the grammar that the connection sends, and follow answers until it is closed. Ends the process."""
    syscall_filter.seal(dict.fromkeys(CALLS, ()), memory_bytes=PROCESS_MEMORY)
    try:
        grammar = read_grammar(_read(connection, LENGTH.unpack(_read(connection, LENGTH.size))[0]))
        with Timer(COMPILE_SECONDS) as timer, panics_are_errors(grammars.PANIC):
            matchers = Matchers(grammar, vocabulary)
        send(connection, MASK, ALL, matchers.first_mask)
        budget = ANSWER_SECONDS
        while True:
            answer, token = TOKEN.unpack(_read(connection, TOKEN.size))
            budget += TOKEN_SECONDS - timer.seconds
            with (
                Timer(min(MASK_SECONDS, max(budget, 0.001))) as timer,
                panics_are_errors(grammars.PANIC),
            ):
                is_complete = matchers.accept(answer, token)
                send(connection, STATUS, answer, complete=is_complete)
                mask = matchers.mask(answer)
            send(connection, MASK, answer, mask)
    except (EOFError, OSError):
        pass
    except ValueError as error:
        with suppress(OSError):
            send(connection, ERROR, ALL, str(error).encode(errors="replace"))
    finally:
        os._exit(0)


class Timer:
    """Ends the process when the block takes more CPU time than `limit`. `seconds`: what it took."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.seconds = 0.0

    def __enter__(self) -> "Timer":
        self._began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, self._limit)  # SIGPROF, also within llguidance
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.seconds = time.process_time() - self._began
        if self.seconds > SLOW:
            os.setpriority(os.PRIO_PROCESS, 0, 19)


def grammar_bytes(grammar: Grammar) -> bytes:
    """A grammar as JSON, for `read_grammar`."""
    alternative = grammar.alternative and json.loads(grammar_bytes(grammar.alternative))
    fields = [grammar.format, grammar.text, grammar.max_calls, alternative]
    return json.dumps(fields).encode()


def read_grammar(data: bytes) -> Grammar:
    def parsed(kind: Any, text: str, max_calls: int | None, alternative: Any) -> Grammar:
        return Grammar(kind, text, max_calls, alternative and parsed(*alternative))

    return parsed(*json.loads(data))


def send(
    connection: socket.socket,
    kind: bytes,
    answer: int,
    data: bytes = b"",
    *,
    complete: bool = False,
) -> None:
    connection.sendall(MESSAGE.pack(kind, answer, complete, len(data)) + data)


def _read(connection: socket.socket, count: int) -> bytes:
    """The next `count` bytes of a connection. Raises EOFError where it ends before."""
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
