"""The requests of the next step, and the number of tokens of each.

A step continues all running requests: one token each (more with draft tokens), or a chunk of a prompt. **Prompts share
a step**: its prompt tokens are divided evenly between clients, and those of a client between its groups of requests
(one group per call), so that a short prompt takes a step or two with any number of long ones; within a group requests
run in order. Admission is fair too: the client with the fewest running requests is next, of equal ones the one that was
admitted least recently. A client or group with more than its share is preempted.

**Among the groups of a client**, those without a running request are next; of these the short requests, then the ones
that have waited longest. If all slots are taken, a short request takes the slot of a long one of its client, and a
long request that of a long one whose turn is over, so that answers without a limit take turns. A group takes one
slot in this way. While long requests wait, short ones use at most `SHORT_SHARE` times as many slots as long ones.

When memory for keys and values is short, the newest running request is preempted: it releases its blocks, keeps its
tokens and waits at the front. A part of memory is reserved for small requests, which may be admitted before a large one
that doesn't fit yet, a bounded number of times.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from polyphi.engine.cache import BLOCK, BlockPool, OutOfBlocks
from polyphi.engine.request import Request
from polyphi.engine.speculate import DraftToken, draft_lengths

PREFILL_SECONDS, PREFILL_SECONDS_ALONE = 0.03, 0.15
"""Seconds for the prompt tokens of a step while other requests wait for tokens, and while none does."""
MIN_PREFILL = 64
"""Fewest prompt tokens of a step: fewer would still read all weights."""
SMALL = 32
"""A request that needs at most this share of memory (1 / SMALL) is small."""
RESERVED = 8
"""The share of memory (1 / RESERVED) that only small requests may use while others run."""
PATIENCE = 256
"""Small requests that may be admitted before a large one that doesn't fit."""
SHORT = 256
"""Most tokens of a short request, prompt and answer."""
TURN = 128
"""Tokens of an answer after which a waiting request of the same client may take the slot of a long one."""
SHORT_SHARE = 3
"""Slots of short requests for each slot of a long one, while long ones of their client wait."""

TOKEN_COST = 0.08
"""Time that another token adds to a decode step, relative to a step of one token. (Measured: 0.05 in 8 bits, 0.15 to
0.45 in 4 bits, where the first ones cost most; benchmarks/speculation.py.)"""


@dataclass(frozen=True)
class StepPart:
    """A request's part of a step: `new` of its tokens, from position `start` on, then `draft_tokens`."""

    request: Request
    start: int
    new: int
    draft_tokens: tuple[int, ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether all tokens of the request have run after it."""
        return self.start + self.new == len(self.request)

    @property
    def samples(self) -> bool:
        """Whether the next token is sampled after it."""
        return self.is_last and self.request.sampling.max_tokens > 0

    @property
    def scored_tokens(self) -> range:
        """Indices of the prompt tokens whose log-probabilities it computes."""
        unscored = self.request.unscored
        first = max(unscored.start, self.start + 1)
        return range(first, max(first, min(unscored.stop, self.start + self.new + 1)))

    @property
    def size(self) -> int:
        return self.new + len(self.draft_tokens)


class Scheduler:
    """Runs at most `max_num_seqs` sequences, with at most `chunk` prompt tokens of a step while other requests wait for
    a token and `prefill` while none does; fewer where steps are slow (`record_time`). `root` returns the root hash of a
    request's prefixes (prefixes.py), `rope` its LongRoPE table; `switch` is the length at which tables change."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
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
        self.max_num_seqs = max_num_seqs
        self._turns: dict[bytes, int] = {}
        """The number of the last admission of each present client."""
        self._steps = 0
        self._ample = True  # whether the tokens of all requests fit in memory
        self._due: dict[int, int] = {}
        """The step from which each present group waits for its next slot: when it came or was last admitted, `TURN`
        steps after its turn was over, 0 if it was preempted before."""
        self._excess: dict[bytes, int] = {}
        """Of clients whose long requests wait: slots of short ones beyond `SHORT_SHARE` of each long one, summed over
        steps."""
        self._chunk, self._prefill = chunk, prefill
        self._token_seconds = 0.0  # moving average of a prompt token's time
        self._switch = switch
        self._root, self._rope = root, rope

    def plan(self) -> list[StepPart]:
        """The parts of the next step, in the order of admission, with their blocks allocated. Requests whose images or
        audio must be encoded first (`Request.missing_media`) have no part."""
        for request in self.running:
            self._switch_rope_table(request)
        self._steps += 1
        self._update_waiting()
        budget = self._budget()
        self._admit_waiting(budget)
        parts: dict[int, StepPart] = {}
        drafts = self._draft_tokens()
        shares = self._shares(budget)
        for request in list(self.running):
            new = 1 if self._pending(request) == 1 else shares.get(id(request), 0)
            # It may have been preempted for one before it.
            if not new or request.missing_media or request not in self.running or request.undecided:
                continue
            part = StepPart(request, request.table.length, new)
            drafted = replace(part, draft_tokens=drafts.get(id(request), ()))
            # No request is preempted for draft tokens.
            if request.table.missing_blocks(part.start + drafted.size) <= self.pool.available:
                part = drafted
            if self._reserve(part, parts):
                parts[id(request)] = part
        return [parts[id(r)] for r in self.running if id(r) in parts]

    def _prefilling(self) -> list[Request]:
        """Running requests whose prompts have not run completely."""
        return [r for r in self.running if self._pending(r) > 1]

    def _budget(self) -> int:
        """Most prompt tokens of the next step."""
        prefilling = self._prefilling()
        groups = {request.group for request in (*prefilling, *self.waiting)}
        alone = len(prefilling) == len(self.running) and len(groups) == 1
        least, most = (self._chunk, self._prefill) if alone else (MIN_PREFILL, self._chunk)
        if not self._token_seconds:
            return most
        seconds = PREFILL_SECONDS_ALONE if alone else PREFILL_SECONDS
        return min(most, max(least, int(seconds / self._token_seconds)))

    def record_time(self, parts: Sequence[StepPart], seconds: float) -> None:
        """Record the duration of a step."""
        tokens = sum(part.size for part in parts)
        if tokens >= MIN_PREFILL:
            new, average = seconds / tokens, self._token_seconds
            self._token_seconds = new if not average else 0.7 * average + 0.3 * new

    def _shares(self, budget: int) -> dict[int, int]:
        """Prompt tokens that each request runs in the next step, by its `id`."""
        clients: dict[bytes, dict[int, list[Request]]] = {}
        for request in self._prefilling():
            if not request.missing_media:
                groups = clients.setdefault(request.caller.client, {})
                groups.setdefault(request.group, []).append(request)

        def pending(requests: Sequence[Request]) -> int:
            return sum(map(self._pending, requests))

        shares: dict[int, int] = {}
        requested = [sum(map(pending, groups.values())) for groups in clients.values()]
        for groups, share in zip(clients.values(), split_evenly(budget, requested), strict=True):
            parts = split_evenly(share, [pending(group) for group in groups.values()])
            for group, tokens in zip(groups.values(), parts, strict=True):
                for request in group:
                    shares[id(request)] = min(tokens, self._pending(request))
                    tokens -= shares[id(request)]
        return shares

    def _admit_waiting(self, budget: int) -> None:
        """Admit waiting requests: as many as the step has tokens for, and at least one of each group."""
        skipped: list[Request] = []
        while True:
            prefilling = self._prefilling()
            groups = {request.group for request in prefilling}
            tokens = budget - sum(self._pending(r) for r in prefilling if not r.missing_media)
            eligible = [
                r
                for r in self.waiting
                if r not in skipped
                and (tokens > 0 or r.group not in groups)
                and (r.leader is None or r.leader.prefilled)
                and (not skipped or self._is_small(r))
                and not r.undecided
            ]
            if not eligible:
                return
            request, victim = self._next(eligible)
            if request is None:
                return
            if victim is not None:
                is_over = self._turn_is_over(victim)
                self.preempt(victim)
                self._due[victim.group] = self._steps + TURN if is_over else 0
            if not self._admit(request):
                if request.times_passed_over >= PATIENCE:
                    return
                skipped.append(request)
                continue
            for other in skipped:
                other.times_passed_over += 1
            self.waiting.remove(request)
            self.running.append(request)
            self._note_admission(request, victim)
            request.phase = "running"
            request.started = request.started or time.monotonic()

    def _update_waiting(self) -> None:
        """Note new groups, and how many slots short requests use while long ones of their client wait."""
        for request in self.waiting:
            self._due.setdefault(request.group, self._steps)
        change: Counter[bytes] = Counter()
        for request in self.running:
            change[request.caller.client] += 1 if _is_short(request) else -SHORT_SHARE
        clients = {request.caller.client for request in self.waiting if not _is_short(request)}
        self._excess = {c: max(0, self._excess.get(c, 0) + change[c]) for c in clients}
        blocks = sum(1 + len(request) // BLOCK for request in (*self.waiting, *self.running))
        self._ample = blocks <= self.pool.size

    def _next(self, eligible: Sequence[Request]) -> tuple[Request | None, Request | None]:
        """The waiting request to admit, None if there is no slot, and the running one to preempt for it, if any."""
        order = sorted(eligible, key=self._priority())
        if len(self.running) < self.max_num_seqs:
            return order[0], None
        first: dict[bytes, Request] = {}
        for request in order:
            first.setdefault(request.caller.client, request)
        # Where the first request of a client finds no slot, its others don't either.
        for request in first.values():
            if (victim := self._victim(request)) is not None:
                return request, victim
        return None, None

    def _priority(self) -> Callable[[Request], tuple[int, ...]]:
        """The sort key of waiting requests: the smallest is admitted next, of equal ones the first."""
        clients, groups = self._counts()

        def priority(request: Request) -> tuple[int, ...]:
            client, group = request.caller.client, request.group
            in_order = self._owes_slot(client) or not _is_short(request)
            turn = self._turns.get(client, 0)
            return clients[client], turn, groups[group], in_order, self._due[group]

        return priority

    def _owes_slot(self, client: bytes) -> bool:
        """Whether short requests of a client have used so many slots that its next one goes to the request that has
        waited longest."""
        return self._excess.get(client, 0) >= SHORT_SHARE * TURN

    def _note_admission(self, request: Request, victim: Request | None) -> None:
        """Record an admission, in place of a running request if any. Within a client that is no turn of the client."""
        client, present = request.caller.client, (*self.waiting, *self.running)
        groups, clients = {r.group for r in present}, {r.caller.client for r in present}
        self._due = {group: step for group, step in self._due.items() if group in groups}
        self._due[request.group] = self._steps
        request.turn_start = len(request.tokens)
        request.keeps_slot = self._owes_slot(client) and not _is_short(request)
        if victim is None or victim.caller.client != client:
            number = 1 + max(self._turns.values(), default=0)
            self._turns = {c: turn for c, turn in self._turns.items() if c in clients}
            self._turns[client] = number

    def _counts(self) -> tuple[Counter[bytes], Counter[int]]:
        """Running requests by client and by group."""
        return Counter(r.caller.client for r in self.running), Counter(
            r.group for r in self.running
        )

    def _victim(self, request: Request) -> Request | None:
        """The running request whose slot a waiting one takes: the newest of the client with the most running requests,
        or of the same client's group with the most, if it has at least two more than this one. Otherwise, for a group
        without a running request, the one of the same client whose turn has lasted longest, if it yields its slot."""
        clients, groups = self._counts()

        def has_more(other: Request) -> bool:
            if other.caller.client != request.caller.client:
                return clients[other.caller.client] > clients[request.caller.client] + 1
            return groups[other.group] > groups[request.group] + 1

        if candidates := [r for r in reversed(self.running) if has_more(r)]:
            return max(candidates, key=lambda r: (clients[r.caller.client], groups[r.group]))
        if groups[request.group]:
            return None
        candidates = [r for r in reversed(self.running) if self._yields_slot(r, request)]
        return max(candidates, key=_turn_tokens, default=None)

    def _yields_slot(self, running: Request, waiting: Request) -> bool:
        """Whether a running request yields its slot to a waiting one of its client."""
        if running.caller.client != waiting.caller.client or _is_short(running):
            return False
        needed = waiting.table.missing_blocks(len(waiting) + 1) + self._reserved(waiting)
        if needed > self.pool.available + len(running.table.blocks):
            return False
        if _is_short(waiting) and not running.keeps_slot:
            return True
        is_due = _is_short(waiting) or self._due[waiting.group] <= self._steps
        return is_due and self._turn_is_over(running)

    def _turn_is_over(self, request: Request) -> bool:
        """Whether a running request has had its turn. Where memory is short, its cached keys and values may be evicted
        before its next turn: then a turn has as many tokens as run again."""
        return _turn_tokens(request) >= (TURN if self._ample else max(TURN, len(request)))

    def _reserved(self, request: Request) -> int:
        """Blocks that must stay available when a waiting request is admitted."""
        return 0 if self._is_small(request) or not self.running else self.pool.size // RESERVED

    def _is_small(self, request: Request) -> bool:
        return request.table.missing_blocks(len(request) + 1) <= self.pool.size // SMALL

    def drop(self, request: Request) -> None:
        """Remove a running or waiting request and release its blocks and embeddings."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        request.table.clear()
        request.features.clear()

    def preempt(self, request: Request) -> None:
        """Move a running request to the front of the waiting ones; its tokens run again."""
        self.running.remove(request)
        request.table.clear()
        request.unsampled = None
        request.phase = "waiting"
        self.waiting.insert(0, request)
        self._due[request.group] = 0
        self.preemptions += 1

    def _pending(self, request: Request) -> int:
        """Tokens of the request that have not run."""
        return len(request) - request.table.length

    def _switch_rope_table(self, request: Request) -> None:
        """Restart a sequence that outgrows its LongRoPE table: its cached keys were rotated with the other table."""
        if (rope := self._rope(request)) != request.ropes[-1]:
            request.ropes.append(rope)
            request.table.clear()
            request.table.reuse_prefix(request.reusable_hashes(self._root(request)))

    def _draft_tokens(self) -> dict[int, tuple[int, ...]]:
        """Draft tokens of the decoding requests, by `id`, as many as pay off in one step of all of them."""
        decoding = [r for r in self.running if self._pending(r) == 1 and not r.undecided]
        proposals = [self._propose(r) for r in decoding]
        lengths = draft_lengths(proposals, TOKEN_COST)
        return {
            id(request): tuple(token for token, _ in proposal[:length])
            for request, proposal, length in zip(decoding, proposals, lengths, strict=True)
        }

    def _propose(self, request: Request) -> list[DraftToken]:
        """Draft tokens up to the end of the answer and the switch of LongRoPE tables."""
        if request.lookup is None:
            return []
        most = min(request.draft, request.max_length - len(request) - 1)
        if request.ropes[-1] == "short":
            most = min(most, self._switch - len(request))
        return request.lookup.propose(most)

    def _reserve(self, part: StepPart, parts: dict[int, StepPart]) -> bool:
        """Allocate blocks for a running request's part, preempting the newest requests; False if it was preempted
        itself."""
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
        """Allocate blocks for all tokens of a waiting request, reusing cached ones. False if they, one more token and
        the reserve for small requests don't fit."""
        rope = self._rope(request)
        if not request.ropes or request.ropes[-1] != rope:
            request.ropes.append(rope)
        reserve = self._reserved(request)
        request.table.reuse_prefix(request.reusable_hashes(self._root(request)))
        if request.table.missing_blocks(len(request) + 1) + reserve > self.pool.available:
            request.table.clear()
            return False
        request.table.grow(len(request))
        if request.cached_tokens is None:
            request.cached_tokens = request.table.length
        return True


def _is_short(request: Request) -> bool:
    return request.max_length <= SHORT


def _turn_tokens(request: Request) -> int:
    """Tokens of the answer since a running request was admitted."""
    return len(request.tokens) - request.turn_start


def split_evenly(amount: int, requested: Sequence[int]) -> list[int]:
    """`amount` in equal shares, each at most as `requested`; what one share doesn't need goes to the others."""
    shares = [0] * len(requested)
    left = len(requested)
    for number in sorted(range(left), key=requested.__getitem__):
        shares[number] = min(requested[number], -(-amount // left))
        amount, left = amount - shares[number], left - 1
    return shares
