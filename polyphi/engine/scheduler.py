"""The requests of the next step, and the number of tokens of each.

A step continues all running requests: one token each (more with draft tokens, speculate.py), or a chunk of a prompt
(prefill.py). Which waiting requests are admitted, and which running ones lose their slots, is fair (fairness.py).

When memory for keys and values is short, the newest running request is preempted: it releases its blocks, keeps its
tokens and waits at the front.
"""

import time
from dataclasses import dataclass, replace

from polyphi.engine.cache import BlockPool, OutOfBlocks
from polyphi.engine.fairness import PATIENCE, Fairness
from polyphi.engine.longrope import LongRope
from polyphi.engine.prefill import PrefillBudget
from polyphi.engine.prefixes import Prefixes
from polyphi.engine.request import Request
from polyphi.engine.speculate import draft_tokens


@dataclass(frozen=True)
class StepPart:
    """A request's part of a step: `new` of its tokens, from position `start` on, then `draft_tokens`."""

    request: Request
    start: int
    new: int
    draft_tokens: tuple[int, ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether all tokens of the request have run after this part."""
        return self.start + self.new == len(self.request.ids)

    @property
    def samples(self) -> bool:
        """Whether the next token is sampled after this part."""
        return self.is_last and self.request.sampling.max_tokens > 0

    @property
    def scored_tokens(self) -> range:
        """Indices of the prompt tokens whose log-probabilities this part computes."""
        unscored = self.request.unscored
        first = max(unscored.start, self.start + 1)
        return range(first, max(first, min(unscored.stop, self.start + self.new + 1)))

    @property
    def pooled_tokens(self) -> range:
        """Indices of the prompt tokens whose last hidden states this part adds to the request's embedding."""
        unpooled = self.request.unpooled
        first = max(unpooled.start, self.start)
        return range(first, max(first, min(unpooled.stop, self.start + self.new)))

    @property
    def size(self) -> int:
        return self.new + len(self.draft_tokens)


class Scheduler:
    """Runs at most `max_num_seqs` sequences, whose keys and values lie in `pool`."""

    def __init__(
        self,
        pool: BlockPool,
        prefixes: Prefixes,
        rope: LongRope,
        budget: PrefillBudget,
        max_num_seqs: int,
    ) -> None:
        self._pool, self._prefixes, self._rope = pool, prefixes, rope
        self.budget, self.max_num_seqs = budget, max_num_seqs
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0
        self._fairness = Fairness(pool, self.waiting, self.running)

    def schedule(self) -> list[StepPart]:
        """The parts of the next step, in the order of admission, with their blocks allocated. Requests whose images or
        audio must be encoded first (`Request.missing_media`) have no part."""
        for request in self.running:
            if self._rope.update(request):
                request.table.clear()
                self._prefixes.reuse(request)
        self._fairness.begin_step()
        budget = self._prompt_tokens()
        self._admit_waiting(budget)
        shares = self._fairness.shares(budget)
        drafts = draft_tokens(self.running, self._rope)
        parts: dict[int, StepPart] = {}
        for request in list(self.running):
            new = 1 if request.pending == 1 else shares.get(id(request), 0)
            # It may have been preempted for one before it.
            if not new or request.missing_media or request not in self.running or request.undecided:
                continue
            part = StepPart(request, request.table.length, new, drafts.get(id(request), ()))
            # No request is preempted for draft tokens.
            if request.table.missing_blocks(part.start + part.size) > self._pool.available:
                part = replace(part, draft_tokens=())
            if self._reserve_blocks(part, parts):
                parts[id(request)] = part
        return [parts[id(r)] for r in self.running if id(r) in parts]

    def _prompt_tokens(self) -> int:
        """Most prompt tokens of the next step."""
        prefilling = [r for r in self.running if r.pending > 1]
        groups = {request.group for request in (*prefilling, *self.waiting)}
        alone = len(prefilling) == len(self.running) and len(groups) == 1
        return self.budget.tokens(alone=alone)

    def _admit_waiting(self, budget: int) -> None:
        """Admit waiting requests: as many as the step has tokens for, and at least one of each group."""
        skipped: list[Request] = []
        while eligible := self._eligible(budget, skipped):
            request, victim = self._fairness.next(eligible, self.max_num_seqs)
            if request is None:
                return
            if victim is not None:
                self.preempt(victim, for_another=True)
            if not self._allocate(request) and not self._allocate_from_others(request):
                if request.times_passed_over >= PATIENCE:
                    return
                skipped.append(request)
                continue
            for other in skipped:
                other.times_passed_over += 1
            self.waiting.remove(request)
            self.running.append(request)
            self._fairness.admitted(request, victim)
            request.phase = "running"
            request.started = request.started or time.monotonic()

    def _eligible(self, budget: int, skipped: list[Request]) -> list[Request]:
        """The waiting requests that may be admitted to a step; the `skipped` ones don't fit in memory."""
        if not self.waiting:
            return []
        prefilling = [r for r in self.running if r.pending > 1]
        groups = {request.group for request in prefilling}
        tokens = budget - sum(r.pending for r in prefilling if not r.missing_media)
        return [
            r
            for r in self.waiting
            if r not in skipped
            and (tokens > 0 or r.group not in groups)
            and (r.leader is None or r.leader.prefilled)
            and (not skipped or self._fairness.is_small(r))
            and not r.undecided
        ]

    def _allocate(self, request: Request) -> bool:
        """Allocate blocks for all tokens of a waiting request, reusing cached ones. False if they, one more token and
        the reserve for small requests don't fit."""
        self._rope.update(request)
        reserve = self._fairness.reserved(request)
        self._prefixes.reuse(request)
        tokens = len(request.ids)
        if request.table.missing_blocks(tokens + 1) + reserve > self._pool.available:
            request.table.clear()
            return False
        request.recomputed = max(0, request.computed - request.table.length)
        request.table.grow(tokens)
        if request.cached_tokens is None:
            request.cached_tokens = request.table.length
        return True

    def _allocate_from_others(self, request: Request) -> bool:
        """Allocate as `_allocate` does, in the place of running requests whose memory the waiting one may take."""
        victims = self._fairness.memory_victims(request)
        for victim in victims:
            self.preempt(victim, for_another=True)
        return bool(victims) and self._allocate(request)

    def _reserve_blocks(self, part: StepPart, parts: dict[int, StepPart]) -> bool:
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

    def preempt(self, request: Request, *, for_another: bool = False) -> None:
        """Move a running request to the front of the waiting ones, `for_another` one that takes its slot or because
        memory is short; its tokens run again."""
        self.running.remove(request)
        request.computed = max(request.computed, request.table.length)
        request.table.clear()
        request.unsampled = None
        request.phase = "waiting"
        self.waiting.insert(0, request)
        self._fairness.preempted(request, for_another=for_another)
        self.preemptions += 1

    def drop(self, request: Request) -> None:
        """Remove a running or waiting request and release its blocks and embeddings."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        request.table.clear()
        request.features.clear()
