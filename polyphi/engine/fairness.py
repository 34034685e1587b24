"""Which request runs next: fairness between clients, between the calls of a client, and between small and large ones.

**Prompts share a step**: its prompt tokens are divided evenly between clients, and those of a client between its groups
of requests (one group per call), so that a short prompt takes a step or two with any number of long ones; within a
group requests run in order. Admission is fair too: the client with the fewest running requests is next, of equal ones
the one that has waited longest since its last admission, where a new client counts as if it had waited `TURN` steps.
A client or group with more than its share is preempted.

**A client without a running request doesn't wait for the end of long answers.** If no slot or memory is free, its new
request takes that of a request that has run for `QUANTUM` steps, of any client; a request that was preempted takes that
of one whose turn is over. So more clients than slots take turns.

**Among the groups of a client**, those without a running request are next; of these the short requests, then the ones
that have waited longest. If all slots are taken, a short request takes the slot of a long one of its client, and a
long request that of a long one whose turn is over, so that answers without a limit take turns. A group takes one
slot in this way. While long requests wait, short ones use at most `SHORT_SHARE` times as many slots as long ones.

**A part of memory is reserved for small requests**, which may be admitted before a large one that doesn't fit yet, a
bounded number of times.

**Preemption costs at most as much as it yields**: a request keeps its slot at least until it has run as many new tokens
as it had to run again.
"""

from collections import Counter
from collections.abc import Sequence

from polyphi.engine.cache import BlockPool
from polyphi.engine.request import Request

SMALL = 32
"""A request that needs at most this share of memory (1 / SMALL) is small."""
RESERVED = 8
"""The share of memory (1 / RESERVED) that only small requests may use while others run."""
PATIENCE = 256
"""Small requests that may be admitted before a large one that doesn't fit."""
SHORT = 256
"""Most tokens of a short request, prompt and answer."""
TURN = 128
"""Tokens of an answer after which a waiting request may take the slot of a long one."""
QUANTUM = 16
"""Steps after which a new request of a client without a running one may take the slot of another client's request."""
SHORT_SHARE = 3
"""Slots of short requests for each slot of a long one, while long ones of their client wait."""


class Fairness:
    """Decides about the `waiting` and `running` requests of a scheduler, whose keys and values lie in `pool`."""

    def __init__(self, pool: BlockPool, waiting: list[Request], running: list[Request]) -> None:
        self._pool, self._waiting, self._running = pool, waiting, running
        self._steps = 0
        self._turns: dict[bytes, int] = {}
        """The step of the last admission of each present client; of a new one `TURN` steps before it came."""
        self._due: dict[int, int] = {}
        """The step from which each present group waits for its next slot: when it came or was last admitted, `TURN`
        steps after its turn was over, 0 if it was preempted before."""
        self._excess: dict[bytes, int] = {}
        """Slots of short requests beyond `SHORT_SHARE` of each long one, summed over steps, by client whose long
        requests wait."""

    def begin_step(self) -> None:
        """Note new clients and groups, and how many slots short requests use while long ones of their client wait."""
        self._steps += 1
        for request in self._waiting:
            self._due.setdefault(request.group, self._steps)
            self._turns.setdefault(request.caller.client, self._steps - TURN)
        change: Counter[bytes] = Counter()
        for request in self._running:
            change[request.caller.client] += 1 if _is_short(request) else -SHORT_SHARE
        clients = {request.caller.client for request in self._waiting if not _is_short(request)}
        self._excess = {c: max(0, self._excess.get(c, 0) + change[c]) for c in clients}

    def next(
        self, eligible: Sequence[Request], slots: int
    ) -> tuple[Request | None, Request | None]:
        """The waiting request to admit, None if there is no slot, and the running one to preempt for it, if any."""
        clients, groups = self._counts()

        def priority(request: Request) -> tuple[int, ...]:
            client, group = request.caller.client, request.group
            in_order = self._owes_slot(client) or not _is_short(request)
            return clients[client], self._turns[client], groups[group], in_order, self._due[group]

        order = sorted(eligible, key=priority)
        if len(self._running) < slots:
            return order[0], None
        first: dict[bytes, Request] = {}
        for request in order:
            first.setdefault(request.caller.client, request)
        # Where the first request of a client finds no slot, its others don't either.
        for request in first.values():
            if (victim := self._victim(request)) is not None:
                return request, victim
        return None, None

    def admitted(self, request: Request, victim: Request | None) -> None:
        """Record an admission, in place of a running request if any. Within a client that is no turn of the client."""
        client, present = request.caller.client, (*self._waiting, *self._running)
        groups, clients = {r.group for r in present}, {r.caller.client for r in present}
        self._due = {group: step for group, step in self._due.items() if group in groups}
        self._due[request.group] = self._steps
        request.turn_start, request.turn_step = len(request.tokens), self._steps
        request.keeps_slot = self._owes_slot(client) and not _is_short(request)
        if victim is None or victim.caller.client != client:
            self._turns = {c: step for c, step in self._turns.items() if c in clients}
            self._turns[client] = self._steps

    def preempted(self, request: Request, *, for_another: bool) -> None:
        """Record that a request has lost its slot, `for_another` request or because memory is short."""
        turn_is_over = for_another and _turn_is_over(request)
        self._due[request.group] = self._steps + TURN if turn_is_over else 0
        request.has_yielded |= for_another

    def shares(self, budget: int) -> dict[int, int]:
        """The prompt tokens that each request runs in the next step, by its `id`, of `budget` ones in all."""
        clients: dict[bytes, dict[int, list[Request]]] = {}
        for request in self._running:
            if request.pending > 1 and not request.missing_media:
                groups = clients.setdefault(request.caller.client, {})
                groups.setdefault(request.group, []).append(request)

        def pending(requests: Sequence[Request]) -> int:
            return sum(request.pending for request in requests)

        shares: dict[int, int] = {}
        requested = [sum(map(pending, groups.values())) for groups in clients.values()]
        for groups, share in zip(clients.values(), split_evenly(budget, requested), strict=True):
            parts = split_evenly(share, [pending(group) for group in groups.values()])
            for group, tokens in zip(groups.values(), parts, strict=True):
                for request in group:
                    shares[id(request)] = min(tokens, request.pending)
                    tokens -= shares[id(request)]
        return shares

    def is_small(self, request: Request) -> bool:
        return request.table.missing_blocks(len(request.ids) + 1) <= self._pool.size // SMALL

    def reserved(self, request: Request) -> int:
        """Blocks that must stay available when a waiting request is admitted."""
        alone = not self._running
        return 0 if alone or self.is_small(request) else self._pool.size // RESERVED

    def _owes_slot(self, client: bytes) -> bool:
        """Whether short requests of a client have used so many slots that its next one goes to the request that has
        waited longest."""
        return self._excess.get(client, 0) >= SHORT_SHARE * TURN

    def _counts(self) -> tuple[Counter[bytes], Counter[int]]:
        """Running requests by client and by group."""
        running = self._running
        return Counter(r.caller.client for r in running), Counter(r.group for r in running)

    def _victim(self, request: Request) -> Request | None:
        """The running request whose slot a waiting one takes: the newest of the client with the most running requests,
        or of the same client's group with the most, if it has at least two more than this one. Otherwise, for a group
        without a running request, the one of the same client whose turn has lasted longest, if it yields its slot."""
        clients, groups = self._counts()

        def has_more(other: Request) -> bool:
            if other.caller.client != request.caller.client:
                return clients[other.caller.client] > clients[request.caller.client] + 1
            return groups[other.group] > groups[request.group] + 1

        if candidates := [r for r in reversed(self._running) if has_more(r)]:
            return max(candidates, key=lambda r: (clients[r.caller.client], groups[r.group]))
        if groups[request.group]:
            return None
        candidates = [r for r in reversed(self._running) if self._yields_slot(r, request)]
        return max(candidates, key=_service, default=None)

    def memory_victims(self, request: Request) -> list[Request]:
        """The running requests whose memory a waiting one takes that doesn't fit beside them, if its client has no
        running request: one that has as much; several if it was passed over too often. [] if they don't suffice."""
        clients, _ = self._counts()
        if clients[request.caller.client]:
            return []
        missing = self._needed(request) - self._pool.available
        candidates = [r for r in reversed(self._running) if self._yields_to_client(r, request)]
        candidates.sort(key=lambda r: (clients[r.caller.client], _service(r)), reverse=True)
        victims: list[Request] = []
        for running in candidates:
            blocks = self._pool.released_by(running.table.blocks)
            if blocks >= missing:
                return [running]
            victims.append(running)
        if request.times_passed_over < PATIENCE:
            return []
        blocks = 0
        for count, running in enumerate(victims, 1):
            blocks += self._pool.released_by(running.table.blocks)
            if blocks >= missing:
                return victims[:count]
        return []

    def _needed(self, request: Request) -> int:
        """Blocks that must be available before a waiting request is admitted."""
        return request.table.missing_blocks(len(request.ids) + 1) + self.reserved(request)

    def _yields_slot(self, running: Request, waiting: Request) -> bool:
        """Whether a running request yields its slot to a waiting one, whose group has no running request."""
        released = self._pool.released_by(running.table.blocks)
        if self._needed(waiting) > self._pool.available + released:
            return False
        client = waiting.caller.client
        if running.caller.client != client:
            alone = all(r.caller.client != client for r in self._running)
            return alone and self._yields_to_client(running, waiting)
        if _is_short(running):
            return False
        if _is_short(waiting) and not running.keeps_slot:
            return True
        is_due = _is_short(waiting) or self._due[waiting.group] <= self._steps
        return is_due and _turn_is_over(running)

    def _yields_to_client(self, running: Request, waiting: Request) -> bool:
        """Whether a running request yields its slot or memory to one of a client without a running request: to a small
        one that is new, or short where it is long, after `QUANTUM` steps; to others after its turn."""
        is_new = not (waiting.has_yielded or waiting.tokens)
        is_short = _is_short(waiting) and not _is_short(running)
        if self.is_small(waiting) and (is_new or is_short):
            # Encoding would begin again.
            steps = 0 if running.missing_media else self._steps - running.turn_step
            return steps >= QUANTUM and running.new_tokens >= running.recomputed
        return self._due[waiting.group] <= self._steps and _turn_is_over(running)


def _is_short(request: Request) -> bool:
    return request.max_length <= SHORT


def _turn_tokens(request: Request) -> int:
    """Tokens of the answer since a running request was admitted."""
    return len(request.tokens) - request.turn_start


def _turn_is_over(request: Request) -> bool:
    """Whether a running request has had its turn. Where memory is short, cached keys and values are evicted between two
    turns: then a turn has as many tokens as ran again."""
    return _turn_tokens(request) >= max(TURN, request.recomputed)


def _service(request: Request) -> tuple[bool, int]:
    """The order in which running requests yield: the one with the most service last."""
    return not _is_short(request), _turn_tokens(request)


def split_evenly(amount: int, requested: Sequence[int]) -> list[int]:
    """`amount` in equal shares, each at most as `requested`; what one share doesn't need goes to the others."""
    shares = [0] * len(requested)
    left = len(requested)
    for number in sorted(range(left), key=requested.__getitem__):
        shares[number] = min(requested[number], -(-amount // left))
        amount, left = amount - shares[number], left - 1
    return shares
