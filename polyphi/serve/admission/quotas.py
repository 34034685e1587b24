"""What one client may have of the server, and all clients together.

A client is an API key or, without keys, an address (`client_of`). There are four pools: open connections
(connection.py), and here bytes of requests, requests and live sessions. What doesn't fit is refused. Work that needs a
thread or a process waits for a slot (`FairSlots`; threads.py), and clients take turns.

One rule divides each of them: a client that has some already gets at most three quarters of what the others leave. So
something remains for the next client.

>>> quotas = Quotas(Settings("phi"))
>>> reservation = quotas.bytes.take(b"client", 50_000_000)     # raises QuotaExceeded where too little is left
>>> reservation.release()
>>> async with FairSlots(8).exclusive(b"client"): ...          # waits; clients that wait take turns
"""

import asyncio
import ipaddress
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from polyphi.devices import cpu
from polyphi.serve.admission.settings import Settings

SMALL_THREADS = 4
"""Threads for small requests and other short work."""
LARGE_THREADS = max(1, min(4, cpu.usable() // 4))
"""Threads for large requests: few, so that most cores remain for steps and other work."""
LARGE_IMAGE = 1 << 24
"""Pixels above which an image is large: 16 bytes of memory each while it is decoded, also where its file has few
bytes."""


def share(total: int, others: int) -> int:
    """The most of `total` that a client may have in several parts, where the others have so much."""
    return (total - others) * 3 // 4


class QuotaExceeded(Exception):
    """An amount that doesn't fit. `by_client`: `limit` is that of the client, at present, and `in_use` what it has;
    otherwise they are those of all clients."""

    def __init__(self, what: str, amount: int, in_use: int, limit: int, *, by_client: bool) -> None:
        whose = "one client" if by_client else "all clients"
        super().__init__(
            f"{what}: {amount:,} more than the {in_use:,} in use exceed the {limit:,} of {whose}"
        )
        self.amount, self.in_use, self.limit, self.by_client = amount, in_use, limit, by_client


class Pool:
    """An amount that clients share. Safe to use from several threads. `used`: by all clients.

    A client's only reservation may take all that the others leave, and more where there are no others. `always`: the
    amount of each reservation that is never refused; `first`: a client's only reservation never is."""

    def __init__(self, what: str, total: int, *, always: int = 0, first: bool = False) -> None:
        self.what, self.total, self.always, self.first = what, total, always, first
        self.used = 0
        self._by_client: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    def used_by(self, client: bytes) -> int:
        return self._by_client[client]

    def take(self, client: bytes, amount: int) -> "Reservation":
        """Raises QuotaExceeded where the client or all clients would have too much; 0 always succeeds."""
        reservation = Reservation(self, client)
        reservation.grow(amount)
        return reservation

    def _check(self, client: bytes, amount: int, reserved: int) -> None:
        """Raises QuotaExceeded where a reservation of `reserved` can't take `amount` more."""
        if reserved + amount <= self.always:
            return
        own = self._by_client[client]
        is_only = own == reserved
        left = self.total - (self.used - own)
        # Nothing needs to be left for a next client that is never refused.
        limit = left - left // 4 if self.first else share(left, 0)
        if not is_only and own + amount > limit:
            raise QuotaExceeded(self.what, amount, own, limit, by_client=True)
        if self.used == reserved or (is_only and self.first):
            return
        if self.used + amount > self.total:
            raise QuotaExceeded(self.what, amount, self.used, self.total, by_client=False)

    def _add(self, client: bytes, amount: int, reserved: int = 0, *, checked: bool) -> None:
        with self._lock:
            if checked and amount > 0:
                self._check(client, amount, reserved)
            self.used += amount
            self._by_client[client] += amount
            if not self._by_client[client]:
                del self._by_client[client]


class Reservation:
    """The part of a pool that one request has, until its release."""

    def __init__(self, pool: Pool, client: bytes) -> None:
        self.amount = 0
        self.released = False
        self._pool, self._client = pool, client
        self._lock = threading.Lock()

    def grow(self, amount: int) -> None:
        """Takes `amount` more, or gives back where it is negative; raises QuotaExceeded, and takes nothing, where it
        doesn't fit."""
        with self._lock:
            if not self.released:
                self._pool._add(self._client, amount, self.amount, checked=True)
                self.amount += amount

    def resize(self, amount: int) -> None:
        """Sets the amount to what was measured, also where it exceeds a limit."""
        with self._lock:
            if not self.released:
                self._pool._add(self._client, amount - self.amount, checked=False)
                self.amount = amount

    def release(self) -> None:
        with self._lock:
            if not self.released:
                self.released = True
                self._pool._add(self._client, -self.amount, checked=False)


class FairSlots:
    """So many slots for work. Clients that wait take turns (round robin), each client's work in order. Used in the
    event loop's thread.

    A client that arrives belongs to the present round, one that has had its turn in this round to the next one."""

    def __init__(self, total: int) -> None:
        self.total = self._free = total
        self._running: Counter[bytes] = Counter()
        self._waiting: OrderedDict[bytes, deque[asyncio.Future[None]]] = OrderedDict()
        self._served: set[bytes] = set()  # in this round

    @property
    def running(self) -> int:
        return self.total - self._free

    @property
    def waiting(self) -> int:
        return sum(not slot.done() for queue in self._waiting.values() for slot in queue)

    @asynccontextmanager
    async def exclusive(self, client: bytes) -> AsyncIterator[None]:
        """Waits for a slot, and occupies it inside the context."""
        await self.take(client)
        try:
            yield
        finally:
            self.release(client)

    async def take(self, client: bytes) -> None:
        """Waits for a slot, and occupies it until `release`."""
        if self._free and self._may_take(client):
            self._occupy(client)
            return
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(slot)
        try:
            await slot
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled():  # cancelled just after it got its slot
                self.release(client)
            raise

    def release(self, client: bytes) -> None:
        self._free += 1
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        while self._free and (following := self._next_client()) is not None:
            self._occupy(following)
            self._waiting[following].popleft().set_result(None)
            self._waiting.move_to_end(following)

    def _may_take(self, client: bytes) -> bool:
        own = self._running[client]
        return not own or own < share(self.total, self.running - own)

    def _occupy(self, client: bytes) -> None:
        self._free -= 1
        self._running[client] += 1
        if client in self._served:  # the next round begins
            self._served.clear()
        self._served.add(client)

    def _next_client(self) -> bytes | None:
        """The first waiting client that hasn't had its turn in this round and may take a slot."""
        for client, queue in list(self._waiting.items()):
            while queue and queue[0].done():  # cancelled
                queue.popleft()
            if not queue:
                del self._waiting[client]
        candidates = [client for client in self._waiting if self._may_take(client)]
        return min(candidates, key=self._served.__contains__, default=None)


def client_of(tenant: bytes, address: str) -> bytes:
    """The client of a request: the owner of its API key, or else the IP address (for IPv6 its /64 network)."""
    if ":" in address:
        ip = ipaddress.IPv6Address(address)
        address = str(ip.ipv4_mapped or ipaddress.ip_network((int(ip), 64), strict=False))
    return tenant or address.encode()


class Quotas:
    """The pools of a server whose engine runs `max_num_seqs` sequences at once."""

    def __init__(self, settings: Settings, max_num_seqs: int = 32) -> None:
        capacity = max_num_seqs + settings.max_waiting
        self.requests = Pool("requests that run or wait", capacity, first=True)
        """A client without another request is always admitted."""
        self.sessions = Pool("live sessions", settings.max_live_sessions)
        memory, connections = settings.max_requests_bytes, settings.max_connections
        self.bytes = Pool("bytes of requests", memory, always=memory // (4 * connections))
        """Each request has one reservation (`request.state.bytes`): for its body, then the values in it, media, prompt
        and output that waits to be read."""
