"""Mixed load on a server in another process: no lost requests, no leaked resources, constant memory?

    python benchmarks/load.py runs/nano/model [--minutes 30] [--clients 8] [--seed 0] [--json load.json]
    python benchmarks/load.py runs/nano/model --attacks texts scores tokens media queue connections

Starts `polyphi serve` on a free port and sends it requests from this process over loopback: chats (text, image, audio,
both, video), with tools, response formats, reasoning budgets and several answers; completions with echo, embeddings,
PDFs and text files, transcriptions, M4A, MP4 and WebM, counts of tokens; the Responses API with stored responses that
are resumed, read and deleted; Anthropic's Messages API; and live sessions over a WebSocket. Most of them are streamed
or not; one in eight prompts is long. Of all requests 15 % are disconnected at a random moment (unless they have been
answered before) and 10 % are broken: media cut off or of another type, invalid JSON (load_requests.py, load_live.py;
load_pool.py has their material). With `--attacks`, those of hostile.py run at the same time from another address.
Options of `polyphi serve` follow `--`, for example `-- --reasoning on`.

Before the end all clients pause. The server's counters must then be back at zero, also those of live sessions and of
processes that decode media or follow grammars; and no more responses may be stored than the clients know, or may not
know because they disconnected. Then the clients resume, and the server is stopped (SIGTERM) while requests are under
way. A request that was not disconnected, and was sent before the stop, must end with a whole answer or an error in our
shape; otherwise it counts as lost. Only live sessions may be closed by the stop. Memory is the server's resident set,
sampled every 10 seconds. "First" is the time to the first text of a stream; of live sessions, the time from the end of
an item's audio to its transcript. The exit code is 1 if anything was lost, wrong or not released.
"""

import argparse
import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import numpy as np
import psutil
from load_live import Refused, Wrong, plan_session, run_session
from load_pool import SENTENCE, Pool
from load_requests import (
    CONTAINERS,
    LIVE,
    SHARES,
    STORING,
    Planned,
    judge,
    plan,
)
from rich.console import Console
from rich.table import Table
from server_process import server
from websockets.exceptions import ConnectionClosed, InvalidHandshake

DISCONNECTED = 0.15
"""Share of requests that are disconnected."""
EVERY = 10.0
"""Seconds between two samples of memory."""
LEAVE = (0.01, 0.1, 1.0, 3.0)
"""Seconds within which a request is disconnected."""
PAUSE = 3.0
AFTER = 4.0
"""Seconds of load between the pause and the stop."""
STORED = 1024
"""Most stored responses of one client's address."""
FIRST = (b'"content": "', b'"delta": "', b'"text": "', b"_delta")
"""Bytes that stand in an event with text."""
IN_USE = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "requests_bytes",
    "live_sessions",
)
"""Gauges that must be zero in the pause."""


@dataclass
class Outcome:
    task: str
    end: str
    """whole, refused (an error in our shape), disconnected (by the client), lost, wrong, closed (a live session, by the
    stop), not taken (sent after the stop)."""
    status: int | None
    seconds: float
    first: float | None = None
    """Seconds to the first text of a stream, or from the end of a live session's audio to its transcript."""
    message: str = ""


async def send(client: httpx2.AsyncClient, task: str, request: Planned) -> Outcome:
    began = time.monotonic()
    first: float | None = None
    async with client.stream(request.method, request.path, **request.options) as answer:
        status, body = answer.status_code, b""
        async for piece in answer.aiter_bytes():
            body += piece
            if first is None and any(mark in piece for mark in FIRST):
                first = time.monotonic() - began
    end, message = judge(request, status, body)
    streamed = request.stream and end == "whole"
    return Outcome(
        task, end, status, time.monotonic() - began, first if streamed else None, message
    )


class Load:
    """Clients, each of which sends one request after another."""

    def __init__(self, url: str, pools: list[Pool]) -> None:
        self.url, self.pools = url, pools
        self.shares = dict(SHARES)
        if not all(pool.containers for pool in pools):
            self.shares = {task: n for task, n in SHARES.items() if task not in CONTAINERS}
        self.outcomes: list[Outcome] = []
        self.running = asyncio.Event()
        self.stopped: float | None = None
        self.under_way = 0

    async def run(self, pool: Pool) -> None:
        """The requests of one client, until the stop."""
        rng = pool.rng
        tasks, shares = list(self.shares), list(self.shares.values())
        async with httpx2.AsyncClient(base_url=self.url, timeout=600, trust_env=False) as client:
            while self.stopped is None:
                await self.running.wait()
                if self.stopped is not None:
                    break
                (task,) = rng.choices(tasks, shares)
                leave = rng.choice(LEAVE) * rng.random() if rng.random() < DISCONNECTED else None
                self.under_way += 1
                try:
                    self.outcomes.append(await self.outcome(client, task, pool, leave))
                finally:
                    self.under_way -= 1

    async def outcome(
        self, client: httpx2.AsyncClient, task: str, pool: Pool, leave: float | None = None
    ) -> Outcome:
        """Sends one request, and disconnects after `leave` seconds."""
        began = time.monotonic()

        def ended(end: str, error: object = "", first: float | None = None) -> Outcome:
            seconds = time.monotonic() - began
            return Outcome(task, end, None, seconds, first, repr(error)[:200] if error else "")

        try:
            if task in LIVE:
                session = plan_session(task, pool)
                url = self.url.replace("http", "ws", 1)
                async with asyncio.timeout(leave) as clock:
                    return ended("whole", first=await run_session(url, session))
            request = plan(task, pool)
            async with asyncio.timeout(leave) as clock:
                return await send(client, task, request)
        except TimeoutError as error:
            return ended("disconnected") if clock.expired() else ended("lost", error)
        except Refused:
            return ended("refused")
        except Wrong as error:
            return ended("wrong", error)
        except (ConnectionClosed, InvalidHandshake) as error:
            return ended("closed") if self.stopped is not None else ended("lost", error)
        except (httpx2.HTTPError, OSError) as error:
            # The server may close a connection at the moment at which the client sends on it.
            late = self.stopped is not None and began > self.stopped
            return ended("not taken" if late else "lost", error)
        except Exception as error:
            return ended("wrong", error)


async def gauges(client: httpx2.AsyncClient) -> dict[str, float]:
    """The server's own counters, labels left out."""
    result: dict[str, float] = {}
    for line in (await client.get("/metrics")).text.splitlines():
        if line.startswith("polyphi:") and "_bucket" not in line:
            name = re.split(r"[{ ]", line, maxsplit=1)[0].removeprefix("polyphi:")
            result[name] = result.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return result


async def watch_memory(pid: int, samples: list[int]) -> None:
    process = psutil.Process(pid)
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        samples.append(process.memory_info().rss)
        await asyncio.sleep(EVERY)


async def loaded(
    process: subprocess.Popen[str], url: str, args: argparse.Namespace
) -> dict[str, Any]:
    from hostile_attacks import attacked

    memory: list[int] = []
    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        while (await client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.2)
        load = Load(url, await pools_for(client, args.seed, args.clients))
        watch = asyncio.create_task(watch_memory(process.pid, memory))
        clients = [asyncio.create_task(load.run(pool)) for pool in load.pools]
        began = time.monotonic()
        load.running.set()
        with attacked(int(url.rpartition(":")[2]), *args.attacks):
            await asyncio.sleep(60 * args.minutes)
        load.running.clear()
        while load.under_way:
            await asyncio.sleep(0.05)
        seconds = time.monotonic() - began
        await asyncio.sleep(PAUSE)
        counters = await gauges(client)
        counters["processes"] = len(passing_processes(psutil.Process(process.pid)))
        unreleased = not_released(counters, load)
        load.running.set()
        await asyncio.sleep(AFTER)
    under_way = load.under_way
    load.stopped = time.monotonic()
    process.send_signal(signal.SIGTERM)
    await asyncio.gather(*clients)
    drained = time.monotonic() - load.stopped
    code = await asyncio.to_thread(process.wait, 120)
    watch.cancel()
    return report(load.outcomes, memory, counters, seconds) | {
        "not released": unreleased,
        "under way at the stop": under_way,
        "seconds to the end": drained,
        "exit code": code,
    }


async def pools_for(client: httpx2.AsyncClient, seed: int, clients: int) -> list[Pool]:
    """The requests of each client, for the server's tokenizer, context and formats."""
    props = (await client.get("/props")).json()
    count = (await client.post("/tokenize", json={"prompt": SENTENCE})).json()["count"]
    characters, context = len(SENTENCE) / count, props["context"]
    return [
        Pool(Random(f"{seed} {n}"), characters, context, props["containers"])
        for n in range(clients)
    ]


def passing_processes(server: psutil.Process) -> list[psutil.Process]:
    """The child processes of a server, without those that fork others, for grammars and for decoding, and stay until
    the end."""
    forks = ("matcher_process", '"task": "fork"')
    lines = {child: " ".join(child.cmdline()) for child in server.children()}
    stays = [child for child, line in lines.items() if any(fork in line for fork in forks)]
    assert len(stays) <= len(forks), stays
    return [child for child in server.children(recursive=True) if child not in stays]


def not_released(counters: dict[str, float], load: Load) -> dict[str, float]:
    """The counters that should be zero, or smaller, in the pause."""
    known = sum(len(ids) for pool in load.pools for ids in pool.conversations)
    unknown = sum(o.task in STORING and o.end == "disconnected" for o in load.outcomes)
    limits = {"stored_responses": min(STORED, known + unknown)}
    limits |= dict.fromkeys((*IN_USE, "processes"), 0)
    return {name: counters[name] for name, most in limits.items() if counters[name] > most}


def report(
    outcomes: list[Outcome], memory: list[int], counters: dict[str, float], seconds: float
) -> dict[str, Any]:
    third = max(1, len(memory) // 3)
    latencies = {}
    for task in SHARES:
        whole = [o for o in outcomes if o.task == task and o.end == "whole"]
        firsts = [o.first for o in whole if o.first is not None]
        latencies[task] = {
            "whole": len(whole),
            "seconds": quantiles([o.seconds for o in whole]),
            "first": quantiles(firsts),
        }
    return {
        "requests": len(outcomes),
        "seconds": seconds,
        "by end": dict(Counter(o.end for o in outcomes)),
        "by status": dict(Counter(str(o.status or o.end) for o in outcomes)),
        "lost or wrong": [
            [o.task, o.end, o.message] for o in outcomes if o.end in ("lost", "wrong")
        ],
        "latencies": latencies,
        "tokens read a second": counters["prompt_tokens_total"] / seconds,
        "tokens written a second": counters["generation_tokens_total"] / seconds,
        "in the pause": {
            name: counters[name] for name in (*IN_USE, "processes", "stored_responses")
        },
        "memory": {
            "first": memory[0],
            "first third": statistics.median(memory[:third]),
            "last third": statistics.median(memory[-third:]),
            "peak": max(memory),
            "cached of media": counters["encoder_cached_bytes"],
            "stored responses": counters["stored_responses_bytes"],
            "samples": memory,
        },
    }


def quantiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"p50": statistics.median(values), "p95": float(np.quantile(values, 0.95))}


def show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table("task", "whole answers", "p50 s", "p95 s", "first p50 s", "first p95 s")
    for task, its in result["latencies"].items():
        row = [task, str(its["whole"])]
        for part in (its["seconds"], its["first"]):
            row += [f"{part[q]:.2f}" if part else "" for q in ("p50", "p95")]
        table.add_row(*row)
    console.print(table)
    facts = Table(show_header=False)
    for name in ("requests", "by end", "by status", "in the pause", "not released"):
        facts.add_row(name, str(result[name]))
    for name in ("under way at the stop", "exit code", "tracebacks in the log"):
        facts.add_row(name, str(result[name]))
    facts.add_row(
        "seconds", f"{result['seconds']:.0f}; {result['seconds to the end']:.1f} after the stop"
    )
    facts.add_row(
        "tokens a second",
        f"{result['tokens read a second']:.1f} read, {result['tokens written a second']:.1f} written",
    )
    sizes = ", ".join(
        f"{name} {value / 2**20:.0f}"
        for name, value in result["memory"].items()
        if name != "samples"
    )
    facts.add_row("memory, MiB", f"{sizes} ({len(result['memory']['samples'])} samples)")
    console.print(facts)
    for task, end, message in result["lost or wrong"][:20]:
        console.print(f"[red]{end}[/] {task}: {message}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0],
        usage="%(prog)s MODEL [options] [-- options of polyphi serve]",
    )
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--attacks", nargs="+", default=[], help="of hostile.py, during the load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:end])
    # Requests that run at the end must finish, also on a slow machine.
    with server(args.model, ["--drain-seconds", "60", *sys.argv[end + 1 :]]) as (process, url, log):
        result = asyncio.run(loaded(process, url, args))
        errors = [line for line in log.read_text().splitlines() if "Traceback" in line]
    result["tracebacks in the log"] = len(errors)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    show(result)
    bad = result["lost or wrong"] or result["not released"] or result["exit code"] or errors
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
