"""What one client may hold of the server, and all clients together: every limit that clients share.

A client is an API key or, without keys, an address (`Server.caller`). docs/limits.md is made from this module.

>>> shares = Shares(Settings("phi"))
>>> hold = shares.prompts.take(b"client", 50_000_000)     # raises Full where too little is left
>>> hold.release()
>>> async with shares.recordings.turn(b"client"): ...     # waits; clients that wait take turns

There are two forms. An amount (`Pool`) is refused where it doesn't fit. A slot (`Turns`) is waited for, and no client
gets more than its share of the slots while others could need them.
"""

import asyncio
import ipaddress
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from polyphi.serve.settings import MIB, Settings


@dataclass(frozen=True)
class Share:
    """One row of docs/limits.md: the most that `client` and `total` may hold of `what`, and what happens `beyond`."""

    what: str
    unit: str
    client: int
    total: int
    beyond: str


class Full(Exception):
    """An amount that doesn't fit. `by_client`: the client's own share is used up, otherwise that of all clients."""

    def __init__(self, share: Share, amount: int, in_use: int, *, by_client: bool) -> None:
        limit, whose = (share.client, "one client") if by_client else (share.total, "all clients")
        super().__init__(
            f"{share.what}: {amount:,} {share.unit} more than the {in_use:,} in use exceed the {limit:,} of {whose}"
        )
        self.share, self.amount, self.in_use, self.by_client = share, amount, in_use, by_client


class Pool:
    """An amount that clients share. Safe to use from several threads. `used`: by all clients."""

    def __init__(self, share: Share, *, single: bool = False) -> None:
        """`single`: a client that holds nothing may take more than its share at once."""
        self.share, self.used = share, 0
        self._single = single
        self._by_client: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    def used_by(self, client: bytes) -> int:
        return self._by_client[client]

    def take(self, client: bytes, amount: int) -> "Hold":
        """Raises Full where the client or all clients would hold too much; 0 always succeeds."""
        hold = Hold(self, client)
        hold.grow(amount)
        return hold

    def _add(self, client: bytes, amount: int, *, checked: bool) -> None:
        with self._lock:
            own, share = self._by_client[client], self.share
            if checked and amount > 0:
                alone = self._single and not own
                if own + amount > share.client and not alone:
                    raise Full(share, amount, own, by_client=True)
                if self.used + amount > share.total and not (alone and not self.used):
                    raise Full(share, amount, self.used, by_client=False)
            self.used += amount
            self._by_client[client] += amount
            if not self._by_client[client]:
                del self._by_client[client]


class Hold:
    """The part of a pool that one request holds, until its release."""

    def __init__(self, pool: Pool, client: bytes) -> None:
        self.amount = 0
        self.released = False
        self._pool, self._client = pool, client
        self._lock = threading.Lock()

    def grow(self, amount: int) -> None:
        """Takes `amount` more; raises Full, and takes nothing, where it doesn't fit."""
        with self._lock:
            if not self.released:
                self._pool._add(self._client, amount, checked=True)
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


class Turns:
    """Slots for work: at most `share.total` at once, at most `share.client` of one client. Clients that wait take turns
    (round robin), each client's work in order. Used in the event loop's thread."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self._free = share.total
        self._running: Counter[bytes] = Counter()
        # The next client is the first.
        self._waiting: OrderedDict[bytes, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def running(self) -> int:
        return self.share.total - self._free

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, client: bytes) -> AsyncIterator[None]:
        """Waits for a slot, and occupies it inside the context."""
        if self._free and self._running[client] < self.share.client:
            self._occupy(client)
        else:
            slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(client, deque()).append(slot)
            try:
                await slot
            except asyncio.CancelledError:
                if slot.done() and not slot.cancelled():  # cancelled just after it got its slot
                    self._release(client)
                raise
        try:
            yield
        finally:
            self._release(client)

    def _occupy(self, client: bytes) -> None:
        self._free -= 1
        self._running[client] += 1

    def _release(self, client: bytes) -> None:
        self._free += 1
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._start_next()

    def _start_next(self) -> None:
        for client in list(self._waiting):
            if not self._free:
                return
            queue = self._waiting[client]
            while queue and queue[0].done():  # cancelled
                queue.popleft()
            if queue and self._running[client] < self.share.client:
                self._occupy(client)
                queue.popleft().set_result(None)
                self._waiting.move_to_end(client)
            if not queue:
                del self._waiting[client]


def client_of(tenant: bytes, address: str) -> bytes:
    """The client of a request: the owner of its API key, or else the IP address (for IPv6 its /64 network)."""
    if ":" in address:
        ip = ipaddress.IPv6Address(address)
        address = str(ip.ipv4_mapped or ipaddress.ip_network((int(ip), 64), strict=False))
    return tenant or address.encode()


def most_of(total: int) -> int:
    """A client's share of something that one client alone should be able to use: all but a quarter."""
    return max(1, total - total // 4)


class Shares:
    """All pools and slots of a server."""

    def __init__(self, settings: Settings) -> None:
        self.bodies = Pool(
            Share(
                "request bodies, from their first byte until the prompt is prepared",
                "bytes",
                max(settings.max_body_bytes, settings.max_bodies_bytes // 4),
                settings.max_bodies_bytes,
                "HTTP 429 for the largest body that the client is sending; 503 where the limit of all is reached",
            )
        )
        self.parsing = Turns(
            Share("large JSON bodies that are being parsed", "bodies", 1, 1, "waits for a turn")
        )
        self.prompts = Pool(
            Share(
                "prepared prompts: token ids, crops and log-mel frames",
                "bytes",
                most_of(settings.max_prepared_bytes),
                settings.max_prepared_bytes,
                "HTTP 429 with Retry-After; a client without another prompt may take more",
            ),
            single=True,
        )
        self.media = Pool(
            Share(
                "media that were fetched or read from files, until the prompt is prepared",
                "bytes",
                max(settings.max_body_bytes, settings.max_bodies_bytes // 4),
                settings.max_bodies_bytes,
                "HTTP 429 with Retry-After",
            )
        )
        self.answers = Pool(
            Share(
                "responses that wait to be read",
                "bytes",
                64 * MIB,
                256 * MIB,
                "HTTP 429 with Retry-After, where the client has other responses to read",
            ),
            single=True,
        )
        self.fetches = Turns(
            Share("media that are being fetched", "addresses", 4, 16, "waits for a turn")
        )
        self.recordings = Turns(
            Share("recordings that are being transcribed", "recordings", 4, 8, "waits for a turn")
        )
        self.decoders = Turns(
            Share("recordings that are being decoded", "recordings", 1, 2, "waits for a turn")
        )
