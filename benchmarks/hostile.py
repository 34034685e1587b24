"""A client beside peers that mean no good: how much longer do its short chats take?

    python benchmarks/hostile.py runs/nano/model [--rounds 5] [--seconds 8] [--json hostile.json]

Starts `polyphi serve` on a free port. In turns, a client asks short chats alone and beside a third process, which keeps
50 connections whose heads drip, 20 whose bodies never come, 2 that ask for streams and don't read them, and 3 that send
one body after another which is deep, large, a slow grammar, or a picture that is none. Printed are medians of one run
and their ratio; 1 is the exit code if it reaches 2, or if anything is still held afterwards.

    python benchmarks/hostile.py --peers PORT             # that third process, until it is ended
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HEAD = "POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
CHAT = "/v1/chat/completions"
DRIPPING, HALF, UNREAD, SENDING = 50, 20, 2, 3
FORM = {"type": "regex", "regex": "[a-z ]{60}"}
"""What the client's answers look like, so that they are as long with any model."""
LEAST, MOST = b'"max_tokens": 2', b'"max_tokens": 100'
HELD = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


def chat(content: Any = "hi", **more: Any) -> bytes:
    return json.dumps(
        {"messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}
    ).encode()


def picture(url: str) -> bytes:
    return chat([{"type": "image_url", "image_url": {"url": url}}])


def bodies() -> list[bytes]:
    clip = {"data": "UklGRiQAAABXQVZFZm10IBAAAAABAAEA", "format": "wav"}
    properties = {f"k{i:06}": {"type": "integer", "minimum": i} for i in range(22_000)}
    return [
        b"[" * 100_000 + b"]" * 100_000,
        json.dumps({f"f{i}": i for i in range(100_000)}).encode(),
        picture("data:" + "," * 1_000_000),
        b'{"messages": "\xff\xfe"}',
        picture("data:image/png;base64," + "QUJD" * 9999),
        chat([{"type": "input_audio", "input_audio": clip}]),
        chat(
            response_format={
                "type": "json_schema",
                "json_schema": {"schema": {"properties": properties}},
            }
        ),
        chat(temperature=1).replace(b"1}", b"NaN}"),
        chat(response_format={"type": "regex", "regex": ".*[ab].{18}c|.*b.{19}d"}),
    ]


# ---------------------------------------------------------------------- the peers' process

begun: set[str] = set()


async def drips(port: int, number: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/models HTTP/1.1\r\n")
    begun.add(f"drips {number}")
    while True:
        writer.write(b"x-a: b\r\n")
        await writer.drain()
        await asyncio.sleep(0.5)


async def half(port: int, number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD.format(CHAT, 1_000_000).encode() + b'{"messages": ')
    begun.add(f"half {number}")
    await reader.read()


async def unread(port: int, number: int) -> None:
    """The system's buffers fill, then the server's."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    body = chat(str(number), stream=True).replace(LEAST, b'"max_tokens": 1500')
    writer.write(HEAD.format(CHAT, len(body)).encode() + body)
    begun.add(f"unread {number}")
    await asyncio.sleep(60)


async def sends(port: int, number: int) -> None:
    made = bodies()
    while True:
        for body in made[number % len(made) :]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD.format(CHAT, len(body)).encode() + body)
            begun.add(f"sends {number}")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200")), head
            writer.close()
            await asyncio.sleep(0.1)


async def again(peer: Any, *given: int) -> None:
    """Whoever is thrown out comes back."""
    while True:
        try:
            await peer(*given)
        except (ConnectionError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.2)


async def peers(port: int) -> None:
    """All of them at once. Says "ready" when each has begun."""
    kinds = {drips: DRIPPING, half: HALF, unread: UNREAD, sends: SENDING}
    tasks = [
        asyncio.ensure_future(again(peer, port, number))
        for peer, count in kinds.items()
        for number in range(count)
    ]
    while len(begun) < len(tasks):
        await asyncio.sleep(0.05)
    print("ready", flush=True)
    await asyncio.gather(*tasks)


@contextmanager
def hostile(url: str) -> Iterator[None]:
    """The peers go on while this lasts."""
    command = [sys.executable, __file__, "--peers", url.rpartition(":")[2]]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"ready\n"
            yield
            assert process.poll() is None, "they went on all the time"
        finally:
            process.kill()


# ---------------------------------------------------------------------- the client beside them


def measured(model: str, rounds: int, seconds: float) -> dict[str, Any]:
    import httpx2
    from load import server

    def latencies(seconds: float) -> list[float]:
        found: list[float] = []
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            body = chat(f"1 + {len(found)}", response_format=FORM).replace(LEAST, MOST)
            answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 200, answer.text
            found.append(time.monotonic() - began)
        return found

    def held() -> float:
        told = client.get("/metrics").text.splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in told
            if line.startswith(tuple(f"polyphi:{name}" for name in HELD))
        )

    alone: list[float] = []
    beside: list[float] = []
    with (
        server(model, []) as (_, url, _),
        httpx2.Client(base_url=url, timeout=600, trust_env=False) as client,
    ):
        latencies(seconds)  # the first of all are slower
        for _ in range(rounds):
            alone += latencies(seconds)
            with hostile(url):
                beside += latencies(seconds)
            end = time.monotonic() + 60
            while (left := held()) and time.monotonic() < end:
                time.sleep(0.05)
    before, after = statistics.median(alone), statistics.median(beside)
    late = [statistics.quantiles(found, n=20)[-1] for found in (alone, beside)]
    return {
        "alone": before,
        "beside": after,
        "ratio": after / before,
        "p95": late,
        "chats": [len(alone), len(beside)],
        "held": left,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of each turn")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peers", type=int, metavar="PORT")
    args = parser.parse_args()
    if args.peers:
        asyncio.run(peers(args.peers))
    if args.model is None:
        parser.error("expected a model")
    found = measured(args.model, args.rounds, args.seconds)
    print(
        f"{1000 * found['alone']:.0f} ms alone, {1000 * found['beside']:.0f} ms beside them: "
        f"{found['ratio']:.2f} times; p95 {1000 * found['p95'][0]:.0f} and {1000 * found['p95'][1]:.0f} ms; "
        f"{found['chats']} chats; held afterwards: {found['held']:g}"
    )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    sys.exit(1 if found["ratio"] >= 2 or found["held"] else 0)


if __name__ == "__main__":
    main()
