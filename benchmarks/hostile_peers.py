"""A client of an attack, and what an attack is (hostile.py).

>>> async def greets(peer: Peer) -> None:              # one round; it begins again until the attack is stopped
...     await peer.post(CHAT, chat("hi"))
>>> Attack({greets: 4})

A `Peer` connects from an address of its attack, and counts in `seen` what it received: HTTP statuses, "left" where it
disconnected itself, "no answer" where the server closed the connection.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

CHAT, COMPLETIONS, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
RESPONSES, TRANSCRIPTIONS = "/v1/responses", "/v1/audio/transcriptions"
JSON = "application/json"
PIECE = 1 << 20
"""Bytes of a body that are written at once."""
ROUNDS, PAUSE = 100_000, 0.02
"""Rounds of a client, and seconds between two."""
ANSWER = 600.0
"""Seconds after which a client gives up."""


@dataclass
class Peer:
    """Client `number` of several of one attack. `started`: it has sent its first request, body included."""

    port: int
    address: str
    number: int
    seen: Counter[str] = field(default_factory=Counter)
    started: bool = False

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(self.address, 0), **options
        )

    async def post(
        self, path: str, body: bytes, *, content_type: str = JSON, leave: float = ANSWER
    ) -> bytes:
        """Send one request and return its whole answer, headers included; b"" where the client disconnected after
        `leave` seconds."""
        header = head("POST", path, content_type=content_type, length=len(body))
        return await self.exchange(header, body, leave)

    async def get(self, path: str) -> bytes:
        return await self.exchange(head("GET", path), b"", ANSWER)

    async def exchange(self, header: bytes, body: bytes, leave: float) -> bytes:
        reader, writer = await self.connect()
        try:
            async with asyncio.timeout(leave):
                try:
                    await self.write(writer, header, body)
                except ConnectionError:  # a refusal may come before the end of the body
                    self.started = True
                answer = await reader.read()
        except TimeoutError:
            self.seen["left"] += 1
            return b""
        finally:
            writer.transport.abort()
        if not answer:
            raise ConnectionError("no answer")
        self.seen[answer[9:12].decode()] += 1
        return answer

    async def write(self, writer: asyncio.StreamWriter, header: bytes, body: bytes = b"") -> None:
        writer.write(header)
        view = memoryview(body)
        for start in range(0, len(body), PIECE):
            writer.write(view[start : start + PIECE])
            await writer.drain()
        self.started = True

    async def context(self) -> int:
        """Tokens of the server's longest context."""
        answer = await self.get("/props")
        return int(json.loads(answer.partition(b"\r\n\r\n")[2])["context"])


Client = Callable[[Peer], Awaitable[None]]


@dataclass(frozen=True)
class Attack:
    """How many of which clients attack at once.

    `probe`: a request of another client whose time is measured beside the attack (hostile_probes.py). `own`: the attack
    comes from the address that also sends the greetings. `once`: each client has one round, and greetings are sent
    until all have ended.
    """

    clients: dict[Client, int]
    probe: str = ""
    own: bool = False
    once: bool = False


def head(method: str, path: str, *, content_type: str = JSON, length: int = 0) -> bytes:
    """The headers of a request whose answer ends with the connection."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close"]
    if method == "POST":
        lines += [f"content-type: {content_type}", f"content-length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def chat(content: Any = "hi", *, max_tokens: int = 2, **more: Any) -> bytes:
    messages = [{"role": "user", "content": content}]
    return json.dumps({"messages": messages, "max_tokens": max_tokens, **more}).encode()


async def again(client: Client, peer: Peer, rounds: int) -> None:
    """Run a client, and start it again when it has ended or was disconnected."""
    for _ in range(rounds):
        try:
            await client(peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            peer.seen["no answer"] += 1
            await asyncio.sleep(0.2)
        await asyncio.sleep(PAUSE)
