"""A client among others that stall the server: how long do its greetings take, and is all memory freed afterwards?

    python benchmarks/hostile.py runs/nano/model [--attacks texts scores] [--greetings 20] [--json hostile.json]

Starts `polyphi serve` on a free port. Each attack runs in its own process, from another address of this machine
(127.0.0.2), over and over until the concurrent greetings are done:

| attack | what it sends |
|---|---|
| connections | 50 whose headers arrive slowly, 20 whose bodies never come, 2 unread streams, 3 senders of hard bodies |
| texts | 4 chats of 3.9 million emoji |
| scores | 6 calls for the log-probabilities of 16 prompts of 8,000 tokens (or of what the context holds) |
| tokens | 2 calls of /tokenize with 3.9 million characters |
| media | 4 chats with a picture of 36 crops or a clip of ten minutes, a new one each time |
| queue | 60 chats with long answers |

A greeting (a chat with an answer of 8 tokens) is sent every half second, alone and then during each attack, and /health
is requested five times a second. Aims: the median greeting takes at most the larger of three times its time alone and
0.5 s; /health always answers within 0.2 s; half a second after the attackers have disconnected, none of their requests
is in progress; within a minute memory is released. The exit code is 1 if an aim is missed.

    python benchmarks/hostile.py --attack texts --port PORT        # one attack, until it is stopped
"""

import argparse
import asyncio
import base64
import io
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HEAD = "POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
CHAT, COMPLETIONS, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
DRIPPING, HALF, UNREAD, SENDING = 50, 20, 2, 3
ATTACKERS = "127.0.0.2"
EVERY, HEALTH = 0.5, 0.2
"""Seconds between greetings and between requests of /health."""
LEAST = b'"max_tokens": 2'
IN_USE = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
TIMES, SECONDS, LONGEST_HEALTH, RELEASED, BACK = 3.0, 0.5, 0.2, 0.5, 60.0
"""The aims: a greeting's time as a multiple of its time alone, or in seconds; seconds of /health; seconds until no
request is in progress, and until memory is released."""
WARM = 5.0
"""Seconds of each attack before anything is measured."""
MORE = 1.1
"""Memory counts as released below this many times what it was before, cached encoder outputs excluded."""


def chat(content: Any = "hi", **more: Any) -> bytes:
    return json.dumps(
        {"messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}
    ).encode()


def picture(url: str) -> bytes:
    return chat([{"type": "image_url", "image_url": {"url": url}}])


def odd_bodies() -> list[bytes]:
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


# ---------------------------------------------------------------------- the attackers' process

begun: set[str] = set()


async def connected(port: int, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(ATTACKERS, 0), **options)


async def drips(port: int, number: int) -> None:
    _, writer = await connected(port)
    writer.write(b"GET /v1/models HTTP/1.1\r\n")
    begun.add(f"drips {number}")
    while True:
        writer.write(b"x-a: b\r\n")
        await writer.drain()
        await asyncio.sleep(0.5)


async def half(port: int, number: int) -> None:
    reader, writer = await connected(port)
    writer.write(HEAD.format(CHAT, 1_000_000).encode() + b'{"messages": ')
    begun.add(f"half {number}")
    await reader.read()


async def unread(port: int, number: int) -> None:
    """A client that doesn't read its stream: the system's buffers fill, then the server's."""
    _, writer = await connected(port, limit=1)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    body = chat(str(number), stream=True).replace(LEAST, b'"max_tokens": 1500')
    writer.write(HEAD.format(CHAT, len(body)).encode() + body)
    begun.add(f"unread {number}")
    await asyncio.sleep(60)


async def sends(port: int, number: int) -> None:
    bodies = odd_bodies()
    while True:
        for body in bodies[number % len(bodies) :]:
            reader, writer = await connected(port)
            writer.write(HEAD.format(CHAT, len(body)).encode() + body)
            begun.add(f"sends {number}")
            head = await reader.readuntil(b"\r\n\r\n")
            assert not head.startswith(b"HTTP/1.1 500"), head
            writer.close()
            await asyncio.sleep(0.1)


async def post(port: int, path: str, body: bytes) -> None:
    """Send one request and wait for its whole answer, which may be an error."""
    reader, writer = await connected(port)
    try:
        head = HEAD.format(path, len(body)).replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")
        writer.write(head.encode() + body)
        answer = await reader.read()
        if not answer:
            raise ConnectionError("no answer")
        assert not answer.startswith(b"HTTP/1.1 500"), answer
    finally:
        writer.close()


async def texts(port: int, number: int) -> None:
    body = chat("\N{GRINNING FACE}" * 3_900_000)
    while True:
        begun.add(f"texts {number}")
        await post(port, CHAT, body)


def long_prompts(seed: int, context: int) -> list[list[int]]:
    """16 prompts of token ids that have nothing in common."""
    dice = random.Random(seed)
    return [[dice.randrange(300, 3000) for _ in range(min(8000, context - 1))] for _ in range(16)]


async def scores(port: int, number: int) -> None:
    ids = long_prompts(number, await context(port))
    request = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 0}
    while True:
        begun.add(f"scores {number}")
        await post(port, COMPLETIONS, json.dumps(request).encode())


async def tokens(port: int, number: int) -> None:
    body = json.dumps({"prompt": "the quick brown fox " * 195_000}).encode()
    while True:
        begun.add(f"tokens {number}")
        await post(port, TOKENIZE, body)


async def media(port: int, number: int) -> None:
    import numpy as np
    import soundfile
    from PIL import Image

    dice = np.random.default_rng(number)
    while True:
        file = io.BytesIO()
        if number % 2:
            shade = dice.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(shade).resize((2688, 2688)).save(file, "JPEG")
            part = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,"}}
            part["image_url"]["url"] += base64.b64encode(file.getvalue()).decode()  # type: ignore[index]
        else:
            wave = dice.normal(0, 0.1, 600 * 16_000).astype(np.float32)
            soundfile.write(file, wave, 16_000, "PCM_16", format="FLAC")
            data = base64.b64encode(file.getvalue()).decode()
            part = {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}
        begun.add(f"media {number}")
        await post(port, CHAT, chat([part]))


async def queue(port: int, number: int) -> None:
    body = chat(f"Tell me story {number}").replace(LEAST, b'"max_tokens": 900')
    while True:
        begun.add(f"queue {number}")
        await post(port, CHAT, body)


Attack = dict[Callable[[int, int], Awaitable[None]], int]
ATTACKS: dict[str, Attack] = {
    "connections": {drips: DRIPPING, half: HALF, unread: UNREAD, sends: SENDING},
    "texts": {texts: 4},
    "scores": {scores: 6},
    "tokens": {tokens: 2},
    "media": {media: 4},
    "queue": {queue: 60},
}


async def context(port: int) -> int:
    reader, writer = await connected(port)
    writer.write(b"GET /props HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return int(json.loads(answer.partition(b"\r\n\r\n")[2])["context"])


async def again(peer: Callable[[int, int], Awaitable[None]], port: int, number: int) -> None:
    """Run a client, and start it again whenever it is disconnected."""
    while True:
        try:
            await peer(port, number)
        except (ConnectionError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.2)


async def attack(name: str, port: int) -> None:
    """Run all clients of an attack at once. Prints "ready" when each has begun."""
    tasks = [
        asyncio.ensure_future(again(peer, port, number))
        for peer, count in ATTACKS[name].items()
        for number in range(count)
    ]
    while len(begun) < len(tasks):
        await asyncio.sleep(0.05)
    print("ready", flush=True)
    await asyncio.gather(*tasks)


# ---------------------------------------------------------------------- the client during attacks


@dataclass
class Beside:
    """Measurements during an attack: seconds of greetings and of /health, seconds until none of its requests was in
    progress (`gone`) and until memory was released (`back`; None: not in time), and resident bytes before, at most and
    afterwards."""

    attack: str
    greetings: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    gone: float | None = None
    back: float | None = None
    memory: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.greetings)

    def missed(self, alone: float) -> list[str]:
        """The aims that were missed."""
        most = max(TIMES * alone, SECONDS)
        return [
            what
            for what, missed in (
                (f"greeting {self.median:.2f} s of {most:.2f}", self.median > most),
                (f"/health {max(self.health):.2f} s", max(self.health) > LONGEST_HEALTH),
                ("requests in progress", self.gone is None),
                ("memory not released", self.back is None),
            )
            if missed
        ]


@contextmanager
def attacked(port: int, *names: str) -> Iterator[None]:
    """Run the attacks while the block runs, each in its own process."""
    command = [sys.executable, __file__, "--port", str(port), "--attack"]
    processes = [subprocess.Popen([*command, n], stdout=subprocess.PIPE) for n in names]
    try:
        for process in processes:
            assert process.stdout and process.stdout.readline() == b"ready\n"
        yield
        assert all(process.poll() is None for process in processes), "an attack ended early"
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def greet(client: Any, count: int, result: Beside) -> None:
    """Send a greeting every half second, whether the last one is answered or not, and request /health meanwhile."""

    async def send(number: int) -> None:
        began = time.monotonic()
        content = chat(f"{number} hello").replace(LEAST, b'"max_tokens": 8')
        answer = await client.post(
            CHAT, content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 200, answer.text
        result.greetings.append(time.monotonic() - began)

    async def look() -> None:
        while True:
            began = time.monotonic()
            answer = await client.get("/health")
            assert answer.status_code == 200, answer.text
            result.health.append(time.monotonic() - began)
            await asyncio.sleep(HEALTH)

    looking = asyncio.ensure_future(look())
    tasks = []
    for number in range(count):
        tasks.append(asyncio.ensure_future(send(number)))
        await asyncio.sleep(EVERY)
    await asyncio.gather(*tasks)
    looking.cancel()


async def beside(client: Any, process: Any, port: int, result: Beside, count: int) -> Beside:
    """Send greetings during the attack `result.attack`, then wait until its requests and memory are released."""

    async def watch() -> None:
        while True:
            result.memory[1] = max(result.memory[1], process.memory_info().rss)
            await asyncio.sleep(0.05)

    async def gauge(*names: str) -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        prefixes = tuple(f"polyphi:{name}" for name in names)
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(prefixes))

    watching = asyncio.ensure_future(watch())
    with attacked(port, result.attack):
        await asyncio.sleep(2)
        await greet(client, count, result)
    watching.cancel()
    ended = time.monotonic()
    while result.gone is None and time.monotonic() - ended < BACK:
        if not await gauge(*IN_USE):
            result.gone = time.monotonic() - ended
        await asyncio.sleep(0.02)
    if result.gone is not None and result.gone > RELEASED:
        result.gone = None
    while result.back is None and time.monotonic() - ended < BACK:
        cached = await gauge("encoder_remembered_bytes")
        if process.memory_info().rss - cached < MORE * result.memory[0]:
            result.back = time.monotonic() - ended
        await asyncio.sleep(0.5)
    result.memory.append(process.memory_info().rss)
    return result


async def measured(model: str, names: list[str], count: int) -> tuple[Beside, list[Beside]]:
    """The results of greetings alone, and of greetings during each attack."""
    import httpx2
    import psutil
    from load import server

    with server(model, []) as (child, url, _):
        port, process = int(url.rpartition(":")[2]), psutil.Process(child.pid)
        async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
            while (await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.2)
            # The first requests are slower, and some memory is allocated at first use and stays allocated: keys and
            # values, output buffers of kernels, cached encoder outputs.
            prompts = long_prompts(99, (await client.get("/props")).json()["context"])
            await client.post(COMPLETIONS, json={"prompt": prompts, "max_tokens": 1})
            for name in names:
                with attacked(port, name):
                    await asyncio.sleep(WARM)
            await greet(client, 10, Beside("warm"))
            alone = Beside("alone")
            await greet(client, count, alone)
            before = process.memory_info().rss
            results = [
                await beside(client, process, port, Beside(name, memory=[before] * 2), count)
                for name in names
            ]
    return alone, results


def report(alone: Beside, results: list[Beside]) -> str:
    rows = [
        f"alone: greeting {1000 * alone.median:.0f} ms, /health {1000 * max(alone.health):.0f} ms"
    ]
    for result in results:
        released, back = (
            "not in time" if seconds is None else f"{seconds:.1f} s"
            for seconds in (result.gone, result.back)
        )
        memory = " -> ".join(f"{size / 2**20:.0f}" for size in result.memory)
        missed = result.missed(alone.median)
        rows.append(
            f"{result.attack}: greeting {1000 * result.median:.0f} ms ({result.median / alone.median:.1f}x, slowest "
            f"{1000 * max(result.greetings):.0f}), /health {1000 * max(result.health):.0f} ms, "
            f"no request in progress after {released}, memory {memory} MiB, released after {back}"
            + (f"; MISSED: {', '.join(missed)}" if missed else "")
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--greetings", type=int, default=20, help="alone and during each attack")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--attack", choices=ATTACKS, help="only attack the server on --port")
    parser.add_argument("--port", type=int)
    args = parser.parse_args()
    if args.attack:
        asyncio.run(attack(args.attack, args.port))
    if args.model is None:
        parser.error("expected a model")
    alone, results = asyncio.run(measured(args.model, args.attacks, args.greetings))
    print(report(alone, results))
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in (alone, *results)], indent=1))
    sys.exit(1 if any(one.missed(alone.median) for one in results) else 0)


if __name__ == "__main__":
    main()
