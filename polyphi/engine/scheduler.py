"""Who runs in the next step, and with how many tokens.

A step goes on with whoever runs: one token each (more where some are guessed), or a chunk of a prompt. **Prompts share
a step**: its tokens are divided between clients, and those of a client between the groups of requests that entered
together, so that a short prompt is through in a step or two beside any number of long ones; within a group they go in
order. Whoever waits is admitted in the same spirit: the client with fewest running requests is next, of those with as
many the one that has waited longest for its turn, and so it goes with its groups. A client or group that holds the
places of others gives one back.

When memory for keys and values is short, the request that came last makes room: it lets go of its blocks, keeps its
tokens and waits at the front. A part of memory is kept for small requests, which may go first where a large one doesn't
fit yet, though not for ever.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from polyphi.engine.cache import BlockPool, OutOfBlocks
from polyphi.engine.request import Request
from polyphi.engine.speculate import Guess, worth

STEP, ALONE = 0.03, 0.15
"""Seconds that the prompt tokens of a step may take where others wait for theirs, and where nobody does."""
FEWEST = 64
"""Prompt tokens of a step that are always worth it: weights are read for them once."""
SMALL = 32
"""A request that needs at most this part of memory (1 / SMALL) is small."""
KEPT = 8
"""The part of memory (1 / KEPT) that only small requests may take while others run."""
PATIENCE = 256
"""Small requests that may go before a large one that doesn't fit."""

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
    def whole(self) -> bool:
        """Whether all known tokens will have run."""
        return self.start + self.new == len(self.request)

    @property
    def draws(self) -> bool:
        """Whether the next token can be drawn then, and is wanted."""
        return self.whole and self.request.sampling.max_tokens > 0

    @property
    def scored(self) -> range:
        """Numbers of the prompt tokens whose log-probabilities follow from it."""
        left = self.request.unscored
        first = max(left.start, self.start + 1)
        return range(first, max(first, min(left.stop, self.start + self.new + 1)))

    @property
    def size(self) -> int:
        return self.new + len(self.guesses)


class Scheduler:
    """`together` sequences at most, `chunk` prompt tokens of a step at most while others wait for a token, `prefill`
    where nobody does; fewer where steps take long (`timed`). `root` names the beginning of a request's sequence
    (cache.py), `rope` its LongRoPE table."""

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
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0
        self.together = together
        # When clients and groups that are there had their last turn.
        self._turns: dict[bytes | int, int] = {}
        self._chunk, self._prefill = chunk, prefill
        self._pace = 0.0  # seconds that a token of a prompt took lately
        self._switch = switch
        self._root, self._rope = root, rope

    def plan(self) -> list[Part]:
        """The parts of the next step, in the order in which their requests came; room for all of them is made. Requests
        whose pictures or clips must be encoded first (`Request.missing`) have none."""
        for request in self.running:
            self._turn_table(request)
        budget = self._budget()
        self._admit_waiting(budget)
        parts: dict[int, Part] = {}
        guesses = self._guesses()
        shares = self._shares(budget)
        for request in list(self.running):
            new = 1 if self._due(request) == 1 else shares.get(id(request), 0)
            # Another may have made room for one before it.
            if not new or request.missing or request not in self.running:
                continue
            part = Part(request, request.table.length, new)
            guessed = replace(part, guesses=guesses.get(id(request), ()))
            # Nobody makes room for guesses.
            if request.table.missing(part.start + guessed.size) <= self.pool.available:
                part = guessed
            if self._make_room(part, parts):
                parts[id(request)] = part
        return [parts[id(r)] for r in self.running if id(r) in parts]

    def _reading(self) -> list[Request]:
        """Running requests whose prompts are not through."""
        return [r for r in self.running if self._due(r) > 1]

    def _budget(self) -> int:
        """Prompt tokens of the next step."""
        reading = self._reading()
        groups = {request.group for request in (*reading, *self.waiting)}
        alone = len(reading) == len(self.running) and len(groups) == 1
        least, most = (self._chunk, self._prefill) if alone else (FEWEST, self._chunk)
        if not self._pace:
            return most
        return min(most, max(least, int((ALONE if alone else STEP) / self._pace)))

    def timed(self, parts: Sequence[Part], seconds: float) -> None:
        """Records how long a step took."""
        tokens = sum(part.size for part in parts)
        if tokens >= FEWEST:
            pace = seconds / tokens
            self._pace = pace if not self._pace else 0.7 * self._pace + 0.3 * pace

    def _shares(self, budget: int) -> dict[int, int]:
        """How many tokens of its prompt each request runs, by identity."""
        clients: dict[bytes, dict[int, list[Request]]] = {}
        for request in self._reading():
            if not request.missing:
                groups = clients.setdefault(request.caller.client, {})
                groups.setdefault(request.group, []).append(request)

        def due(requests: Sequence[Request]) -> int:
            return sum(map(self._due, requests))

        shares: dict[int, int] = {}
        wanted = [sum(map(due, groups.values())) for groups in clients.values()]
        for groups, share in zip(clients.values(), split_evenly(budget, wanted), strict=True):
            parts = split_evenly(share, [due(group) for group in groups.values()])
            for group, left in zip(groups.values(), parts, strict=True):
                for request in group:
                    shares[id(request)] = min(left, self._due(request))
                    left -= shares[id(request)]
        return shares

    def _admit_waiting(self, budget: int) -> None:
        """Admits waiting requests: as many as the step has tokens for, and at least one of each group."""
        skipped: list[Request] = []
        while True:
            reading = self._reading()
            groups = {request.group for request in reading}
            room = budget - sum(self._due(r) for r in reading if not r.missing)
            eligible = [
                r
                for r in self.waiting
                if r not in skipped
                and (room > 0 or r.group not in groups)
                and (r.leader is None or r.leader.prefilled)
                and (not skipped or self._is_small(r))
            ]
            if not eligible:
                return
            request = min(eligible, key=self._priority())
            if len(self.running) >= self.together and not self._preempt_for(request):
                return
            if not self._admit(request):
                if request.overtaken >= PATIENCE:
                    return
                skipped.append(request)
                continue
            for other in skipped:
                other.overtaken += 1
            self.waiting.remove(request)
            self.running.append(request)
            self._note_turn(request)
            request.phase = "running"
            request.started = request.started or time.monotonic()

    def _priority(self) -> Callable[[Request], tuple[int, ...]]:
        """The sort key of waiting requests: the smallest is admitted next, of equal ones the one that came first."""
        clients, groups = self._counts()

        def priority(request: Request) -> tuple[int, ...]:
            client, group = request.caller.client, request.group
            turns = (self._turns.get(client, 0), self._turns.get(group, 0))
            return clients[client], turns[0], groups[group], turns[1]

        return priority

    def _note_turn(self, request: Request) -> None:
        """Records when this client and this call were admitted last."""
        present = {
            key for r in (*self.waiting, *self.running) for key in (r.caller.client, r.group)
        }
        number = 1 + max(self._turns.values(), default=0)
        self._turns = {key: turn for key, turn in self._turns.items() if key in present}
        self._turns |= dict.fromkeys((request.caller.client, request.group), number)

    def _counts(self) -> tuple[Counter[bytes], Counter[int]]:
        """Running requests by client and by group."""
        return Counter(r.caller.client for r in self.running), Counter(
            r.group for r in self.running
        )

    def _preempt_for(self, request: Request) -> bool:
        """Preempts the newest request of the client that runs the most requests, or of the same client's call that
        does, where that is at least two more than this one has; False where none is."""
        clients, groups = self._counts()

        def has_more(other: Request) -> bool:
            if other.caller.client != request.caller.client:
                return clients[other.caller.client] > clients[request.caller.client] + 1
            return groups[other.group] > groups[request.group] + 1

        candidates = [r for r in reversed(self.running) if has_more(r)]
        if not candidates:
            return False
        self.preempt(max(candidates, key=lambda r: (clients[r.caller.client], groups[r.group])))
        return True

    def _is_small(self, request: Request) -> bool:
        return request.table.missing(len(request) + 1) <= self.pool.size // SMALL

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
        self.waiting.insert(0, request)
        self.preemptions += 1

    def _due(self, request: Request) -> int:
        return len(request) - request.table.length

    def _turn_table(self, request: Request) -> None:
        """A sequence that outgrows its LongRoPE table runs again from its start: its keys were rotated with the
        other."""
        if (rope := self._rope(request)) != request.ropes[-1]:
            request.ropes.append(rope)
            request.table.clear()
            request.table.adopt(request.shared(self._root(request)))

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
        """Blocks for all tokens that a waiting request knows and the next one, of which some may be remembered. False
        where there is no room."""
        rope = self._rope(request)
        if not request.ropes or request.ropes[-1] != rope:
            request.ropes.append(rope)
        kept = 0 if self._is_small(request) or not self.running else self.pool.size // KEPT
        request.table.adopt(request.shared(self._root(request)))
        if request.table.missing(len(request) + 1) + kept > self.pool.available:
            request.table.clear()
            return False
        request.table.grow(len(request))
        if request.cached is None:
            request.cached = request.table.length
        return True


def split_evenly(amount: int, wanted: Sequence[int]) -> list[int]:
    """`amount` in equal parts of at most what is `wanted`; what one part doesn't need goes to the others."""
    given = [0] * len(wanted)
    left = len(wanted)
    for number in sorted(range(left), key=wanted.__getitem__):
        given[number] = min(wanted[number], -(-amount // left))
        amount, left = amount - given[number], left - 1
    return given
