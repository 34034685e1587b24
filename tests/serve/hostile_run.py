"""Peers that mean no good, all at once, until this process is ended: python hostile_run.py PORT

50 connections whose heads drip, 20 whose bodies never come, 2 that ask for streams and don't read them, and 3 that send
one body after another which is deep, large, a schema or a picture that is none. Says "ready" once all have begun.
"""

import asyncio
import json
import sys

# The bodies are of the test beside this file; it is not imported, so that this process is small and starts at once.
BODIES, PORT = sys.stdin.buffer.read(), int(sys.argv[1])
HEAD = "POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
CHAT = "/v1/chat/completions"
DRIPPING, HALF, UNREAD, SENDING = 50, 20, 2, 3
begun: set[str] = set()


async def drips(number: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", PORT)
    writer.write(b"GET /v1/models HTTP/1.1\r\n")
    begun.add(f"drips {number}")
    while True:
        writer.write(b"x-a: b\r\n")
        await writer.drain()
        await asyncio.sleep(0.5)


async def half(number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    writer.write(HEAD.format(CHAT, 1_000_000).encode() + b'{"messages": ')
    begun.add(f"half {number}")
    await reader.read()


async def unread(number: int) -> None:
    """The system's buffers fill, then the server's."""
    _, writer = await asyncio.open_connection("127.0.0.1", PORT, limit=1)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    wish = {
        "messages": [{"role": "user", "content": f"{number}"}],
        "max_tokens": 1500,
        "stream": True,
    }
    body = json.dumps(wish).encode()
    writer.write(HEAD.format(CHAT, len(body)).encode() + body)
    begun.add(f"unread {number}")
    await asyncio.sleep(60)


async def sends(number: int, bodies: list[tuple[str, bytes]]) -> None:
    while True:
        for path, body in bodies[number % len(bodies) :]:
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            writer.write(HEAD.format(path, len(body)).encode() + body)
            begun.add(f"sends {number}")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200")), head
            writer.close()
            await asyncio.sleep(0.1)


async def again(peer, *given) -> None:  # type: ignore[no-untyped-def]
    """Whoever is thrown out comes back."""
    while True:
        try:
            await peer(*given)
        except (ConnectionError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.2)


async def main() -> None:
    bodies = [(path, body.encode("latin-1")) for path, body in json.loads(BODIES)]
    peers = [again(drips, n) for n in range(DRIPPING)]
    peers += [again(half, n) for n in range(HALF)]
    peers += [again(unread, n) for n in range(UNREAD)]
    peers += [again(sends, n, bodies) for n in range(SENDING)]
    tasks = [asyncio.ensure_future(peer) for peer in peers]
    while len(begun) < len(peers):
        await asyncio.sleep(0.05)
    print("ready", flush=True)
    await asyncio.gather(*tasks)


asyncio.run(main())
