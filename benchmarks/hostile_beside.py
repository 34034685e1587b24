"""The client beside an attack: its greetings, /health, another request, and the server's memory (hostile.py)."""

import asyncio
import base64
import io
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
import psutil
from hostile_attacks import ADDRESS, ATTACKS, OWN_ADDRESS, under_attack
from hostile_media import RATE
from hostile_peers import CHAT, JSON, TRANSCRIPTIONS, chat
from load import gauges
from load_pool import voice
from load_requests import SCHEMA

WARM = 5.0
"""Seconds of an attack before anything is measured."""
SETTLE = 20.0
"""Seconds until that attack's memory is released; what stays then counts as allocated once."""
EVERY, HEALTH = 0.5, 0.2
"""Seconds between greetings and between requests of /health."""
PATIENCE = 60.0
"""Seconds after which a request beside an attack counts as unanswered."""
TIMES, SECONDS, LONGEST_HEALTH, RELEASED, BACK = 3.0, 0.5, 0.2, 0.5, 60.0
"""The aims: a greeting's time as a multiple of its time alone, or in seconds; seconds of /health; seconds until no
request is in progress, and until memory is released."""
PROBE_TIMES, PROBE_SECONDS = 10.0, 5.0
"""The aim for another client's image, transcription or structured output: it takes turns with the attack's."""
MORE = 1.1
"""Memory counts as released below this many times what it was before, caches excluded."""
LONGEST_ONCE = 300.0
"""Seconds of greetings beside an attack that ends by itself."""
CACHES = ("encoder_cached_bytes", "kv_cache_bytes", "stored_responses_bytes")
"""Gauges of memory that stays in use without requests."""
CAPACITIES = ("kv_cache_blocks", "kv_cache_blocks_cached", *CACHES)
"""Gauges, except those of stored responses, that needn't be zero without requests."""


@dataclass
class Beside:
    """Measurements during an attack.

    Seconds of `greetings`, of /health and of the attack's probe, alone and beside it; `failures` counts those without
    an answer. Seconds until none of the attack's requests was in progress (`idle_after`) and until memory was released
    (`memory_after`; None: not in time). Resident bytes before, at most and afterwards, child processes included. `seen`
    counts what the attackers received.
    """

    attack: str
    greetings: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    probe_alone: list[float] = field(default_factory=list)
    probe: list[float] = field(default_factory=list)
    idle_after: float | None = None
    memory_after: float | None = None
    memory: list[int] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)

    def missed(self, alone: float) -> list[str]:
        """The aims that were missed; `alone`: seconds of a greeting without an attack."""
        most = max(TIMES * alone, SECONDS)
        greeting, health = median(self.greetings), max(self.health, default=float("inf"))
        probe_most = max(PROBE_TIMES * median(self.probe_alone), PROBE_SECONDS)
        failed_attackers = sorted(s for s in self.seen if s.startswith("5") and s != "503")
        return [
            what
            for what, missed in (
                (f"greeting {greeting:.2f} s of {most:.2f}", greeting > most),
                (f"/health {health:.2f} s", health > LONGEST_HEALTH),
                (f"no answer: {dict(self.failures)}", bool(self.failures)),
                (
                    f"{ATTACKS[self.attack].probe} {median(self.probe):.2f} s of {probe_most:.2f}",
                    bool(self.probe_alone) and median(self.probe) > probe_most,
                ),
                ("requests in progress", self.idle_after is None),
                ("memory not released", self.memory_after is None),
                (f"attackers received {', '.join(failed_attackers)}", bool(failed_attackers)),
            )
            if missed
        ]


def median(seconds: list[float]) -> float:
    return statistics.median(seconds) if seconds else float("inf")


# ---------------------------------------------------------------------- requests of the client beside


def greeting(number: int) -> dict[str, Any]:
    body = chat(f"{number} hello", max_tokens=8)
    return {"url": CHAT, "content": body, "headers": {"content-type": JSON}}


def structured() -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "boats", "schema": SCHEMA}}
    body = chat("Which boats?", max_tokens=64, response_format=form)
    return {"url": CHAT, "content": body, "headers": {"content-type": JSON}}


def image() -> dict[str, Any]:
    from PIL import Image

    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((400, 300)).save(file, "PNG")
    return {"url": CHAT, "json": about(file.getvalue())}


def about(file: bytes) -> dict[str, Any]:
    """A chat about an image."""
    url = "data:image/png;base64," + base64.b64encode(file).decode()
    part = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    return {"messages": [{"role": "user", "content": [part]}], "max_tokens": 8}


def transcription() -> dict[str, Any]:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, voice(3.0, 150.0, RATE), RATE, format="WAV")
    return {"url": TRANSCRIPTIONS, "files": {"file": ("clip.wav", file.getvalue())}}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "structured": structured,
    "image": image,
    "transcription": transcription,
}


def client_of(url: str) -> httpx2.AsyncClient:
    """A client with a new connection for each request: a server may close an idle one at the moment at which the client
    sends on it."""
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False, limits=limits)


async def timed(
    send: Awaitable[httpx2.Response], what: str, seconds: list[float], result: Beside
) -> None:
    """Add the seconds of a request to a list, or count its failure."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            answer = await send
    except (TimeoutError, httpx2.HTTPError) as error:
        result.failures[f"{what}: {type(error).__name__}"] += 1
        seconds.append(PATIENCE)
        return
    if answer.status_code == 200:
        seconds.append(time.monotonic() - began)
    else:
        result.failures[f"{what}: {answer.status_code}"] += 1


async def greet(
    client: httpx2.AsyncClient,
    count: int,
    result: Beside,
    until: Callable[[], bool] = lambda: True,
) -> None:
    """Send a greeting every half second, whether the last one is answered or not, at least `count` and until `until` is
    true."""
    greetings = []
    began, number = time.monotonic(), 0
    while number < count or (not until() and time.monotonic() - began < LONGEST_ONCE):
        send = client.post(**greeting(number))
        greetings.append(asyncio.ensure_future(timed(send, "greeting", result.greetings, result)))
        number += 1
        await asyncio.sleep(EVERY)
    await asyncio.gather(*greetings)


async def watch_health(client: httpx2.AsyncClient, result: Beside) -> None:
    while True:
        await timed(client.get("/health"), "/health", result.health, result)
        await asyncio.sleep(HEALTH)


async def probe_again(
    client: httpx2.AsyncClient, name: str, result: Beside, ended: asyncio.Event
) -> None:
    request = PROBES[name]()
    while not ended.is_set():
        await timed(client.post(**request), name, result.probe, result)
        await asyncio.sleep(EVERY)


# ---------------------------------------------------------------------- the server


def resident(process: psutil.Process) -> int:
    """Resident bytes of the server and its child processes, pages that these share counted once."""
    total = process.memory_info().rss
    for child in process.children(recursive=True):
        try:
            total += child.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


async def in_use(client: httpx2.AsyncClient) -> dict[str, float]:
    """The gauges of /metrics that aren't zero and should be without requests, and those of stored responses."""
    gauge_names = set()
    async with asyncio.timeout(PATIENCE):
        for line in (await client.get("/metrics")).text.splitlines():
            if line.startswith("# TYPE polyphi:") and line.endswith(" gauge"):
                gauge_names.add(line.split()[2].removeprefix("polyphi:"))
        values = await gauges(client)
    return {
        name: values[name]
        for name in gauge_names
        if values.get(name) and name not in CAPACITIES and not name.startswith("stored")
    }


async def until_idle(client: httpx2.AsyncClient, seconds: float) -> float | None:
    """Seconds until no gauge counts a request; None if not within `seconds`."""
    began = time.monotonic()
    while (requested_at := time.monotonic()) - began <= seconds:
        try:
            if not await in_use(client):
                return requested_at - began
        except (TimeoutError, httpx2.HTTPError):
            pass
        await asyncio.sleep(0.02)
    return None


async def uncached(client: httpx2.AsyncClient, process: psutil.Process) -> float:
    """Resident bytes without those of caches."""
    return resident(process) - await cached(client)


async def cached(client: httpx2.AsyncClient) -> float:
    async with asyncio.timeout(PATIENCE):
        values = await gauges(client)
    return sum(values[name] for name in CACHES)


async def until_released(
    client: httpx2.AsyncClient, process: psutil.Process, before: float, seconds: float
) -> float | None:
    """Seconds until memory without caches is back at `before`; None if not within `seconds`."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with suppress(TimeoutError, httpx2.HTTPError):
            if await uncached(client, process) < MORE * before:
                return time.monotonic() - began
        await asyncio.sleep(0.5)
    return None


async def beside(
    client: httpx2.AsyncClient, process: psutil.Process, port: int, name: str, count: int
) -> Beside:
    """Send greetings during an attack, then wait until its requests and memory are released. The attack runs before for
    a few seconds, so that memory that is allocated once is allocated, unless its requests are counted."""
    one, result = ATTACKS[name], Beside(name)
    if one.probe:
        for _ in range(3):
            send = client.post(**PROBES[one.probe]())
            await timed(send, f"{one.probe} alone", result.probe_alone, result)
    if not one.once:
        cold = await uncached(client, process)
        async with under_attack(port, name):
            await asyncio.sleep(WARM)
        await until_idle(client, BACK)
        await until_released(client, process, cold, SETTLE)
    result.memory, before = [resident(process)] * 2, await uncached(client, process)

    async def watch_memory() -> None:
        while True:
            result.memory[1] = max(result.memory[1], resident(process))
            await asyncio.sleep(0.05)

    watching = asyncio.ensure_future(watch_memory())
    health = asyncio.ensure_future(watch_health(client, result))  # also while the attack begins
    addresses = [OWN_ADDRESS if one.own else ADDRESS]
    async with under_attack(port, name, addresses=addresses) as attackers:
        await asyncio.sleep(2)
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            if one.probe:
                group.create_task(probe_again(client, one.probe, result, ended))
            await greet(client, count, result, lambda: not one.once or attackers.done(name))
            ended.set()
        health.cancel()
    result.seen = attackers.seen[name]
    watching.cancel()
    result.idle_after = await until_idle(client, RELEASED)
    result.memory_after = await until_released(client, process, before, BACK)
    result.memory.append(resident(process))
    return result
