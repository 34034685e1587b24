"""What one client may hold of the server, and all clients together: every limit that clients share.

A client is an API key or, without keys, an address (`Server.caller`). docs/limits.md is made from this module.

>>> quotas = Quotas(Settings("phi"))
>>> reservation = quotas.prompts.take(b"client", 50_000_000)     # raises QuotaExceeded where too little is left
>>> reservation.release()
>>> async with quotas.recordings.exclusive(b"client"): ...     # waits; clients that wait take turns

There are two forms. An amount (`Pool`) is refused where it doesn't fit. A slot (`FairSlots`) is waited for, and no
client gets more than its share of the slots while others could need them. Slots that are threads: threads.py. store.py
and adapters.py count theirs themselves (`Quota`).
"""

import asyncio
import ipaddress
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from polyphi.decoding.grammars import PROCESS_MEMORY
from polyphi.devices import cpu
from polyphi.serve.admission.settings import MIB, Settings

SMALL_THREADS = 4
"""Threads for small requests and other short work."""
LARGE_THREADS = max(1, min(4, cpu.usable() // 4))
"""Threads for large requests: few, so that most cores remain for steps and other work."""

LARGE_IMAGE = 1 << 24
"""Pixels above which an image is large: 16 bytes of memory each while it is decoded, also where its file has few
bytes."""


@dataclass(frozen=True)
class Quota:
    """One row of docs/limits.md: the most that `client` and `total` may hold of `what`, and what happens `beyond`."""

    what: str
    unit: str
    client: int
    total: int
    beyond: str


class QuotaExceeded(Exception):
    """An amount that doesn't fit. `by_client`: `limit` is that of the client, at present, and `in_use` what it holds;
    otherwise they are those of all clients."""

    def __init__(
        self, quota: Quota, amount: int, in_use: int, limit: int, *, by_client: bool
    ) -> None:
        whose = "one client" if by_client else "all clients"
        super().__init__(
            f"{quota.what}: {amount:,} {quota.unit} more than the {in_use:,} in use exceed the {limit:,} of {whose}"
        )
        self.quota, self.amount, self.in_use = quota, amount, in_use
        self.limit, self.by_client = limit, by_client


class Pool:
    """An amount that clients share. Safe to use from several threads. `used`: by all clients."""

    def __init__(
        self, quota: Quota, *, single: bool = False, always: int = 0, leaves: bool = False
    ) -> None:
        """`single`: a client without another reservation may take more than its quota, and the only one more than
        `total`. `always`: the amount that a client without another reservation may take also where all clients hold too
        much. `leaves`: a client with another reservation leaves a quarter of what others leave, so that something
        remains for the next one; as reservations end, clients that want much come to hold equal amounts."""
        self.quota, self.used = quota, 0
        self._single, self._always, self._leaves = single, always, leaves
        self._by_client: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    def used_by(self, client: bytes) -> int:
        return self._by_client[client]

    def take(self, client: bytes, amount: int) -> "Reservation":
        """Raises QuotaExceeded where the client or all clients would hold too much; 0 always succeeds."""
        reservation = Reservation(self, client)
        reservation.grow(amount)
        return reservation

    def _check(self, client: bytes, amount: int, reserved: int) -> None:
        """Raises QuotaExceeded where a reservation of `reserved` can't take `amount` more."""
        own, quota = self._by_client[client], self.quota
        alone = own == reserved
        limit, others = quota.client, self.used - own
        if self._leaves and others and not alone:
            limit = min(limit, (quota.total - others) * 3 // 4)
        if own + amount > limit and not (self._single and alone):
            raise QuotaExceeded(quota, amount, own, limit, by_client=True)
        exempt = (self._single and self.used == reserved) or (
            alone and reserved + amount <= self._always
        )
        if self.used + amount > quota.total and not exempt:
            raise QuotaExceeded(quota, amount, self.used, quota.total, by_client=False)

    def _add(self, client: bytes, amount: int, reserved: int = 0, *, checked: bool) -> None:
        with self._lock:
            if checked and amount > 0:
                self._check(client, amount, reserved)
            self.used += amount
            self._by_client[client] += amount
            if not self._by_client[client]:
                del self._by_client[client]


class Reservation:
    """The part of a pool that one request holds, until its release."""

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
    """Slots for work: at most `quota.total` at once, at most `quota.client` of one client. Clients that wait take turns
    (round robin), each client's work in order. Used in the event loop's thread.

    A client that arrives belongs to the present round, one that has had its turn in this round to the next one."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._free = quota.total
        self._running: Counter[bytes] = Counter()
        self._waiting: OrderedDict[bytes, deque[asyncio.Future[None]]] = OrderedDict()
        self._served: set[bytes] = set()  # in this round

    @property
    def running(self) -> int:
        return self.quota.total - self._free

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
        if self._free and self._running[client] < self.quota.client:
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

    def _occupy(self, client: bytes) -> None:
        self._free -= 1
        self._running[client] += 1
        if client in self._served:  # the next round begins
            self._served.clear()
        self._served.add(client)

    def _next_client(self) -> bytes | None:
        """The first waiting client that hasn't had its turn in this round and doesn't have its quota of the slots."""
        for client, queue in list(self._waiting.items()):
            while queue and queue[0].done():  # cancelled
                queue.popleft()
            if not queue:
                del self._waiting[client]
        candidates = [c for c in self._waiting if self._running[c] < self.quota.client]
        return min(candidates, key=self._served.__contains__, default=None)


def client_of(tenant: bytes, address: str) -> bytes:
    """The client of a request: the owner of its API key, or else the IP address (for IPv6 its /64 network)."""
    if ":" in address:
        ip = ipaddress.IPv6Address(address)
        address = str(ip.ipv4_mapped or ipaddress.ip_network((int(ip), 64), strict=False))
    return tenant or address.encode()


def most_of(total: int) -> int:
    """A client's quota of something that one client alone should be able to use: all but a quarter."""
    return max(1, total - total // 4)


class Quotas:
    """All pools and slots of a server whose engine runs `max_num_seqs` sequences at once."""

    def __init__(self, settings: Settings, max_num_seqs: int = 32) -> None:
        requests = max_num_seqs + settings.max_waiting
        first_body = settings.max_bodies_bytes // settings.max_connections
        # A client can send at least one body of maximum size.
        own_bodies = max(settings.max_body_bytes, settings.max_bodies_bytes // 4)
        self.requests = Pool(
            Quota(
                "requests that run or wait (`--max-num-seqs`, `--max-waiting`)",
                "requests",
                most_of(requests),
                requests,
                "HTTP 429 with Retry-After; a client without another request always has a slot",
            ),
            always=1,
            leaves=True,
        )
        self.sessions = Pool(
            Quota(
                "sessions of [live transcription](live.md#limits)",
                "sessions",
                most_of(settings.max_live_sessions),
                settings.max_live_sessions,
                "`error` with `too_many_sessions`, close code 1013",
            ),
            leaves=True,
        )
        self.connections = Pool(
            Quota(
                "open connections, each client being an address",
                "connections",
                most_of(settings.max_connections),
                settings.max_connections,
                "the one that has been open longest without a complete request is closed: of this client, or of all "
                "where these have too many; HTTP 503 where every one has a request that is being answered",
            )
        )
        self.bodies = Pool(
            Quota(
                "request bodies, from their first byte until the prompt is prepared",
                "bytes",
                own_bodies,
                settings.max_bodies_bytes,
                "HTTP 429 for the largest body that the client is sending; 503 where the limit of all is reached, but "
                f"never for the first {first_body // 1024:,} KiB of a client",
            ),
            always=first_body,
        )
        self.parsing = FairSlots(
            Quota("large JSON bodies that are being parsed", "bodies", 1, 1, "waits for a turn")
        )
        self.prompts = Pool(
            Quota(
                "prepared prompts: token ids, crops and log-mel frames",
                "bytes",
                most_of(settings.max_prepared_bytes),
                settings.max_prepared_bytes,
                "HTTP 429 with Retry-After; a client without another prompt may take more",
            ),
            single=True,
            leaves=True,
        )
        self.media = Pool(
            Quota(
                "media that were fetched or read from files, until the prompt is prepared",
                "bytes",
                own_bodies,
                settings.max_bodies_bytes,
                "HTTP 429 with Retry-After",
            ),
            leaves=True,
        )
        self.answers = Pool(
            Quota(
                "responses that wait to be read",
                "bytes",
                64 * MIB,
                256 * MIB,
                "HTTP 429 with Retry-After where the client has other responses to read; 503 where the limit of all is "
                "reached, but never for the first 4 MiB of a client",
            ),
            single=True,
            always=4 * MIB,
        )
        self.streams = Pool(
            Quota(
                "output of streams that waits to be read, beyond 256 KiB a stream",
                "bytes",
                64 * MIB,
                256 * MIB,
                "the stream ends",
            )
        )
        self.stored = Quota(
            "[stored responses](server_api.md#responses-api) (`--store-mb`)",
            "bytes",
            settings.max_stored_bytes // 4,
            settings.max_stored_bytes,
            "the least recently used are dropped, also beyond 1,024 of one client; a response that is larger alone is "
            "not stored",
        )
        self.adapters = Quota(
            "[adapters loaded at runtime](operations.md#loading-adapters-at-runtime)",
            "adapters",
            settings.max_adapters,
            settings.max_adapters,
            f"HTTP 400, as beyond {settings.max_adapter_bytes / MIB:,.0f} MiB of their files",
        )
        self.small = FairSlots(
            Quota(
                "threads for small requests and other short work",
                "threads",
                most_of(SMALL_THREADS),
                SMALL_THREADS,
                "waits for a turn",
            )
        )
        self.large = FairSlots(
            Quota(
                "threads that prepare long texts and decode images and audio",
                "threads",
                most_of(LARGE_THREADS),
                LARGE_THREADS,
                "waits for a turn; after each image and audio clip it is another client's",
            )
        )
        self.large_media = FairSlots(
            Quota(
                f"prompts with an image of more than {LARGE_IMAGE:,} pixels that is being decoded",
                "prompts",
                1,
                1,
                "waits for a turn; after each image it is another client's",
            )
        )
        self.expansions = FairSlots(
            Quota(
                "videos and documents that are being decoded",
                "files",
                1,
                2,
                "waits for a turn; a PDF gives its own back every few seconds, between two pages",
            )
        )
        self.fetches = FairSlots(
            Quota(
                "media that are being fetched",
                "addresses",
                4,
                16,
                "waits for a turn; HTTP 429 with Retry-After for one that doesn't come within a minute",
            )
        )
        self.resolvers = FairSlots(
            Quota(
                "host names that are being resolved, also for requests that have ended",
                "names",
                4,
                16,
                "waits for a turn, within the time of the fetch",
            )
        )
        self.grammars = FairSlots(
            Quota("grammars that are being compiled", "grammars", 1, 4, "waits for a turn")
        )
        self.matchers = FairSlots(
            Quota(
                f"requests with a grammar, each with a process of at most {PROCESS_MEMORY // MIB} MiB",
                "requests",
                most_of(max_num_seqs),
                max_num_seqs,
                "waits for a turn",
            )
        )
        self.recordings = FairSlots(
            Quota("recordings that are being transcribed", "recordings", 4, 8, "waits for a turn")
        )
        self.decoders = FairSlots(
            Quota("recordings that are being decoded", "recordings", 1, 2, "waits for a turn")
        )
