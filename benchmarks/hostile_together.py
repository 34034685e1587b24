"""All attacks at once from three addresses, beside honest clients of a fourth one, and a stop in the middle.

    python benchmarks/hostile.py runs/nano/model --all-at-once --minutes 10

Honest clients (hostile_honest.py) send chats, structured outputs, images and recordings. Alone they note the right
answers; then all attacks run for a few seconds, so that memory that is allocated once is allocated; then for the
minutes. Aims: no answer is lost or wrong; a refusal has Retry-After; once all clients have left, every gauge of
/metrics that counts requests, blocks or reserved bytes is zero; memory without caches, which have limits of their own,
is flat (the median of the last third at most 1.1 times that of the first) and within a minute back (1.1 times what it
was before). Then honest clients and attacks begin again and the server receives SIGTERM: it must end within 10 s with
exit code 0 and leave no child process.
"""

import asyncio
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle

import httpx2
import psutil
from hostile_attacks import under_attack
from hostile_beside import (
    BACK,
    MORE,
    Beside,
    cached,
    client_of,
    in_use,
    resident,
    uncached,
    until_idle,
    until_released,
    watch_health,
)
from hostile_honest import Honest, Sent, honest_requests, sent
from load import quantiles
from server_process import server

ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
CLIENTS = 4
WARM, MIDDLE = 20.0, 10.0
"""Seconds of all attacks before anything is measured, and before the stop."""
STOP = 10.0
"""Seconds from SIGTERM to the end of the server."""
CHILDREN = 1.0
"""Seconds until processes of a server that has ended have ended too."""
WAIT = 60.0
"""Seconds after which a server that doesn't stop is killed."""


@dataclass
class Together:
    """Outcomes of honest requests; seconds of /health; bytes of memory without caches, before, every second and
    afterwards, and of caches every second; gauges that weren't zero; and the stop: its seconds, exit code and child
    processes."""

    outcomes: list[Sent] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    before: float = 0.0
    memory: list[float] = field(default_factory=list)
    caches: list[float] = field(default_factory=list)
    after: float = 0.0
    memory_after: float | None = None
    in_use: dict[str, float] = field(default_factory=dict)
    seen: dict[str, dict[str, int]] = field(default_factory=dict)
    stop_outcomes: list[Sent] = field(default_factory=list)
    stop_seconds: float | None = None
    exit_code: int | None = None
    children: list[str] = field(default_factory=list)

    def missed(self) -> list[str]:
        """The aims that were missed."""
        ends = Counter(one.end for one in self.outcomes)
        wrong_at_stop = sum(one.end == "wrong" for one in self.stop_outcomes)
        third = max(1, len(self.memory) // 3)
        first, last = (
            statistics.median(part) if part else 0.0
            for part in (self.memory[:third], self.memory[-third:])
        )
        failed_attackers = {
            status
            for seen in self.seen.values()
            for status in seen
            if status.startswith("5") and status != "503"
        }
        late = self.stop_seconds is None or self.stop_seconds > STOP
        return [
            what
            for what, missed in (
                (f"outcomes {dict(ends)}", ends["right"] < len(self.outcomes)),
                ("no answer", not self.outcomes),
                (f"in use: {self.in_use}", self.in_use),
                (f"memory {last / first if first else 0:.2f} times", last > MORE * first),
                ("memory not released", self.memory_after is None),
                (f"attackers received {failed_attackers}", failed_attackers),
                (f"{wrong_at_stop} wrong at the stop", wrong_at_stop),
                (f"stopped after {self.stop_seconds} s", late),
                (f"exit code {self.exit_code}", self.exit_code != 0),
                (f"child processes: {', '.join(self.children)}", self.children),
            )
            if missed
        ]


async def together(model: str, names: list[str], minutes: float, options: list[str]) -> Together:
    """Run attacks beside honest clients on a server, which is stopped at the end."""
    result = Together()
    with server(model, options) as (child, url, _):
        process, port = psutil.Process(child.pid), int(url.rpartition(":")[2])
        async with client_of(url) as client:
            while (await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.2)
            requests = await honest_requests(client)
            async with under_attack(port, *names, addresses=ADDRESSES):
                await asyncio.sleep(min(WARM, 60 * minutes))
            await until_idle(client, BACK)
            result.before = await uncached(client, process)

            health = Beside("all")
            watching = [
                asyncio.ensure_future(watch_health(client, health)),
                asyncio.ensure_future(watch_memory(client, process, result)),
            ]
            async with under_attack(port, *names, addresses=ADDRESSES) as attackers:
                end = time.monotonic() + 60 * minutes
                await load(client, requests, lambda: time.monotonic() > end, result.outcomes)
            result.seen = attackers.seen
            for task in watching:
                task.cancel()
            result.health = health.health
            await until_idle(client, BACK)
            result.memory_after = await until_released(client, process, result.before, BACK)
            result.in_use, result.after = (
                await still_in_use(client),
                await uncached(client, process),
            )
            await stop(child, client, port, names, requests, result)
    return result


async def load(
    client: httpx2.AsyncClient,
    requests: list[Honest],
    ended: Callable[[], bool],
    outcomes: list[Sent],
) -> None:
    """Honest clients, each of which sends one request after another."""

    async def run(number: int) -> None:
        begin = number * len(requests) // CLIENTS
        for request in cycle(requests[begin:] + requests[:begin]):
            if ended():
                return
            outcomes.append(await sent(client, request))

    await asyncio.gather(*(run(number) for number in range(CLIENTS)))


async def watch_memory(
    client: httpx2.AsyncClient, process: psutil.Process, result: Together
) -> None:
    while True:
        with suppress(TimeoutError, httpx2.HTTPError):
            size = await cached(client)
            result.caches.append(size)
            result.memory.append(resident(process) - size)
        await asyncio.sleep(1)


async def still_in_use(client: httpx2.AsyncClient) -> dict[str, float]:
    try:
        return await in_use(client)
    except (TimeoutError, httpx2.HTTPError) as error:
        return {f"unknown, {type(error).__name__}": 1.0}


async def stop(
    child: "subprocess.Popen[str]",
    client: httpx2.AsyncClient,
    port: int,
    names: list[str],
    requests: list[Honest],
    result: Together,
) -> None:
    """Stop the server in the middle of load and attacks. What isn't answered then isn't lost, but no answer may be
    wrong."""
    async with under_attack(port, *names, addresses=ADDRESSES):
        stopped = asyncio.Event()
        clients = asyncio.ensure_future(
            load(client, requests, stopped.is_set, result.stop_outcomes)
        )
        await asyncio.sleep(MIDDLE)
        children = psutil.Process(child.pid).children(recursive=True)
        stopped.set()
        began = time.monotonic()
        child.send_signal(signal.SIGTERM)
        try:
            result.exit_code = await asyncio.to_thread(child.wait, WAIT)
            result.stop_seconds = time.monotonic() - began
        except subprocess.TimeoutExpired:
            child.kill()
        _, left = psutil.wait_procs(children, CHILDREN)
        result.children = [line for one in left if (line := described(one))]
        clients.cancel()


def described(child: psutil.Process) -> str:
    """A process that runs; "" for one that has ended."""
    try:
        status, command = child.status(), " ".join(child.cmdline())
    except psutil.NoSuchProcess:
        return ""
    return "" if status == psutil.STATUS_ZOMBIE else f"{child.pid} {status} {command[-60:]}"


def show_together(result: Together) -> str:
    rows = []
    for task in sorted({one.task for one in result.outcomes}):
        its = [one for one in result.outcomes if one.task == task]
        ends = ", ".join(f"{n} {end}" for end, n in sorted(Counter(o.end for o in its).items()))
        times = quantiles([one.seconds for one in its if one.end == "right"]) or {}
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in times.items())
        refusals = sum((one.refusals for one in its), Counter())
        codes = ", ".join(f"{code} {number}" for code, number in refusals.items())
        rows.append(f"{task}: {ends}; refusals: {codes or 'none'}; {seconds}")
    rows += [
        f"{one.task} {one.end}: {one.message}" for one in result.outcomes if one.end != "right"
    ][:20]
    for name, seen in result.seen.items():
        received = ", ".join(f"{what}: {number}" for what, number in sorted(seen.items()))
        rows.append(f"{name}: attackers received {received or 'nothing'}")
    health = quantiles(result.health) or {}
    peak = max(result.memory, default=0)
    sizes = (f"{size / 2**20:.0f}" for size in (result.before, peak, result.after))
    rows.append(", ".join(f"/health {name} {value:.3f} s" for name, value in health.items()))
    rows.append(f"memory {' -> '.join(sizes)} MiB, released after {result.memory_after} s")
    for what, samples in (("memory", result.memory), ("caches", result.caches)):
        minutes = (samples[at : at + 60] for at in range(0, len(samples), 60))
        medians = ", ".join(f"{statistics.median(one) / 2**20:.0f}" for one in minutes)
        rows.append(f"{what} by the minute: {medians} MiB")
    rows.append(f"stopped after {result.stop_seconds} s with exit code {result.exit_code}")
    rows += [f"MISSED: {what}" for what in result.missed()]
    return "\n".join(rows)
