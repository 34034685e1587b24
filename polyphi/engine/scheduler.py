"""Who runs in the next step, and with how many tokens.

A step first goes on with whoever runs: one token each (more where some are guessed), or the next chunk of a prompt.
What the step still holds is given to prompts that wait, in the order in which they came. When memory for keys and
values is short, the request that came last makes room: it lets go of its blocks, keeps its tokens and waits at the
front.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from polyphi.engine.cache import BLOCK, BlockPool, OutOfBlocks
from polyphi.engine.request import Request
from polyphi.engine.speculate import Guess, worth

PRICE = 0.08
"""What another token adds to the time of a decode step of one, as a share of it. (Measured: 0.05 in 8 bits, 0.15 to
0.45 in 4, where the first ones cost most; benchmarks/speculation.py.)"""


@dataclass(frozen=True)
class Part:
    """What a request does in a step: its known tokens from `start` on, `new` of them, then `guesses`."""

    request: Request
    start: int
    new: int
    guesses: tuple[int, ...] = ()

    @property
    def draws(self) -> bool:
        """Whether all known tokens will have run, so that the next one can be drawn."""
        return self.start + self.new == len(self.request)

    @property
    def size(self) -> int:
        return self.new + len(self.guesses)


class Scheduler:
    """`together` sequences at most, `chunk` prompt tokens of a step while others wait for their next token, `prefill`
    where nobody does. `root` names the beginning of a request's sequence (cache.py), `rope` its LongRoPE table."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        together: int,
        chunk: int,
        prefill: int,
        switch: int,
        root: Callable[[Request], bytes],
        rope: Callable[[Request], str],
    ) -> None:
        self.pool = pool
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.preemptions = 0
        self.together = together
        self._chunk, self._prefill = chunk, prefill
        self._switch = switch
        self._root, self._rope = root, rope

    def plan(self) -> list[Part]:
        """The parts of the next step, in the order in which their requests came; room for all of them is made."""
        parts: dict[int, Part] = {}
        decoding = any(self._due(r) == 1 for r in self.running)
        left = self._chunk if decoding else self._prefill
        guesses = self._guesses()
        for request in list(self.running):
            if request not in self.running:  # it made room for one before it
                continue
            self._turn_table(request)
            due = self._due(request)
            new = due if due == 1 else min(due, left)
            if new == 0:
                continue
            part = Part(request, request.table.length, new)
            guessed = replace(part, guesses=guesses.get(id(request), ()) if due == 1 else ())
            # Nobody makes room for guesses.
            if request.table.missing(part.start + guessed.size) <= self.pool.available:
                part = guessed
            if self._make_room(part, parts):
                parts[id(request)] = part
                left -= 0 if due == 1 else new
        while left > 0 and self.waiting and len(self.running) < self.together:
            request = self.waiting[0]
            if request.leader is not None and not request.leader.prefilled:
                break
            if not self._admit(request):
                break
            self.waiting.popleft()
            self.running.append(request)
            request.phase = "running"
            request.started = request.started or time.monotonic()
            part = Part(request, request.table.length, min(self._due(request), left))
            parts[id(request)] = part
            left -= part.new
        return [parts[id(r)] for r in self.running if id(r) in parts]

    def drop(self, request: Request) -> None:
        """Takes a request out, wherever it is, and frees what it holds."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        request.table.clear()
        request.features.clear()

    def preempt(self, request: Request) -> None:
        """Lets a running request wait at the front; what it knows will run again."""
        self.running.remove(request)
        request.table.clear()
        request.phase = "waiting"
        self.waiting.appendleft(request)
        self.preemptions += 1

    def _due(self, request: Request) -> int:
        return len(request) - request.table.length

    def _turn_table(self, request: Request) -> None:
        """A sequence that outgrows its LongRoPE table runs again from its start: its keys were rotated with the
        other."""
        if (rope := self._rope(request)) != request.ropes[-1]:
            request.ropes.append(rope)
            request.table.clear()
            request.table.adopt(request.names(self._root(request))[: (len(request) - 1) // BLOCK])

    def _guesses(self) -> dict[int, tuple[int, ...]]:
        """Tokens that may follow, by the identity of requests, as many as pay in a step of all that draw."""
        drawing = [r for r in self.running if self._due(r) == 1]
        proposed = [self._proposed(r) for r in drawing]
        return {
            id(request): tuple(token for token, _ in guesses[:count])
            for request, guesses, count in zip(
                drawing, proposed, worth(proposed, PRICE), strict=True
            )
        }

    def _proposed(self, request: Request) -> list[Guess]:
        """None past the end of the answer or the switch of tables."""
        if request.lookup is None:
            return []
        most = min(request.draft, request.bound - len(request) - 1)
        if request.ropes[-1] == "short":
            most = min(most, self._switch - len(request))
        return request.lookup.propose(most)

    def _make_room(self, part: Part, parts: dict[int, Part]) -> bool:
        """Room for a running request's part. Those that came last give theirs up first; False if it was its own
        turn."""
        while True:
            try:
                part.request.table.grow(part.start + part.size)
                return True
            except OutOfBlocks:
                last = self.running[-1]
                parts.pop(id(last), None)
                self.preempt(last)
                if last is part.request:
                    return False

    def _admit(self, request: Request) -> bool:
        """Blocks for all tokens that a waiting request knows and the next one, of which some may be remembered."""
        rope = self._rope(request)
        if not request.ropes or request.ropes[-1] != rope:
            request.ropes.append(rope)
        # The last token always runs: what follows it must be known.
        names = request.names(self._root(request))[: (len(request) - 1) // BLOCK]
        request.table.adopt(names)
        if request.table.missing(len(request) + 1) > self.pool.available:
            request.table.clear()
            return False
        request.table.grow(len(request))
        if request.cached is None:
            request.cached = request.table.length
        return True
