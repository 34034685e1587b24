"""Mixed load on a server in another process: no lost requests, no leaked resources, constant memory?

    python benchmarks/load.py runs/nano/model [--minutes 30] [--clients 8] [--seed 0] [--json load.json]
    python benchmarks/load.py runs/nano/model --attacks texts scores tokens media queue connections

Starts `polyphi serve` on a free port and sends it requests from this process over loopback: chats (text, picture, clip,
both), streamed or not, completions with echo, transcriptions, counts of tokens; one in eight prompts is long. Of all
requests 15 % are cancelled at a random moment (unless they have been answered before) and 10 % are broken: media cut
off or of another type, invalid JSON. With `--attacks`, those of hostile.py run at the same time from another address.
Before the end all clients pause, and the server's counters must be back at zero; then they resume, and it is stopped
(SIGTERM) while requests are under way. A request that was not cancelled, and was sent before the stop, must end with a
whole answer or an error in our shape; otherwise it counts as lost. Memory is the server's resident set, sampled every
10 seconds. The exit code is 1 if anything was lost, wrong or not released.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import numpy as np
import psutil
import soundfile
from PIL import Image
from rich.console import Console
from rich.table import Table

GIVEN_UP, BROKEN, LONG = 0.15, 0.10, 0.125
EVERY = 10.0
"""Seconds between two samples of memory."""
LEAVE = (0.01, 0.1, 1.0, 3.0)
"""Seconds within which a request is cancelled."""
PAUSE = 3.0
AFTER = 4.0
"""Seconds of load between the pause and the stop."""
WORDS = [
    "the",
    "river",
    "was",
    "quiet",
    "that",
    "morning",
    "and",
    "nobody",
    "on",
    "the",
    "bridge",
    "spoke",
    "while",
    "boats",
    "went",
    "by",
    "under",
    "a",
    "low",
    "grey",
    "sky",
    "toward",
    "harbour",
    "walls",
    "where",
    "nets",
    "were",
    "drying",
    "and",
    "gulls",
    "waited",
    "for",
    "scraps",
    "of",
    "fish",
]
SHARES = {
    "chat": 5,
    "chat stream": 5,
    "picture": 3,
    "clip": 3,
    "both": 2,
    "picture stream": 2,
    "clip stream": 2,
    "completion": 2,
    "echo": 2,
    "transcription": 2,
    "transcription stream": 1,
    "tokenize": 2,
}


@dataclass
class Pool:
    """Texts, pictures and clips for requests; the same for the same seed."""

    rng: Random
    characters_per_token: float = 3.0
    context: int = 2048
    pictures: list[bytes] = field(default_factory=list)
    clips: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        pixels = np.random.default_rng(self.rng.getrandbits(32))
        for n in range(12):
            width = self.rng.randint(40, 900)
            height = round(width * self.rng.uniform(0.3, 3))  # long, thin ones are refused
            small = pixels.integers(0, 256, (8, 8, 3), np.uint8)
            file = io.BytesIO()
            image_format = ("PNG", "JPEG", "WEBP")[n % 3]
            Image.fromarray(small).resize((width, height)).save(file, image_format)
            self.pictures.append(file.getvalue())
        for n in range(8):
            file = io.BytesIO()
            wave = voice(self.rng.uniform(0.5, 6.0), self.rng.uniform(90, 250))
            soundfile.write(file, wave, 16000, format=("WAV", "FLAC", "OGG")[n % 3])
            self.clips.append(file.getvalue())

    def text(self, tokens: int) -> str:
        """About so many tokens of words."""
        words, characters = [], 0
        while characters < tokens * self.characters_per_token:
            words.append(self.rng.choice(WORDS))
            characters += len(words[-1]) + 1
        return " ".join(words)


def voice(seconds: float, pitch: float) -> np.ndarray:
    """A voiced hum with syllables, which the silence detector takes for speech."""
    at = np.arange(int(16000 * seconds)) / 16000
    hum = sum(np.sin(2 * np.pi * pitch * k * at) / k for k in range(1, 12))
    return (0.15 * hum * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * at))).astype(np.float32)


@dataclass
class Planned:
    """A request: its path, the client's options, whether the answer is streamed."""

    path: str
    options: dict[str, Any]
    stream: bool
    broken: bool = False


def plan(task: str, pool: Pool) -> Planned:
    rng = pool.rng
    stream = task.endswith("stream")
    tokens = rng.randint(3, 40)
    if rng.random() < LONG:
        tokens = round(min(pool.context, 8192) * rng.uniform(0.2, 0.5))
    if task.startswith("transcription"):
        clip = broken_bytes(rng.choice(pool.clips), rng) if (bad := rng.random() < BROKEN) else None
        data = {"response_format": "json" if stream else rng.choice(["json", "text", "srt"])}
        if stream:
            data["stream"] = "true"
        options = {"files": {"file": ("clip", clip or rng.choice(pool.clips))}, "data": data}
        return Planned("/v1/audio/transcriptions", options, stream, bad)
    if task == "tokenize":
        body: dict[str, Any] = {"prompt": pool.text(tokens)}
        path = "/tokenize"
    elif task in ("completion", "echo"):
        path = "/v1/completions"
        body = {"prompt": pool.text(tokens), "max_tokens": rng.randint(4, 48), "logprobs": 1}
        if task == "echo":
            body |= {"echo": True, "max_tokens": 0}
    else:
        path, content = "/v1/chat/completions", [{"type": "text", "text": pool.text(tokens)}]
        bad = rng.random() < BROKEN
        if task.split(maxsplit=1)[0] in ("picture", "both"):
            data = rng.choice(pool.pictures)
            data = broken_bytes(data, rng) if bad else data
            url = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        if task.split(maxsplit=1)[0] in ("clip", "both"):
            data = rng.choice(pool.clips)
            data = broken_bytes(data, rng) if bad and task != "both" else data
            sound = {"data": base64.b64encode(data).decode(), "format": "wav"}
            content.append({"type": "input_audio", "input_audio": sound})
        body = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": rng.randint(4, 64),
            "temperature": rng.choice([0.0, 0.8]),
            "stream": stream,
        }
        if len(content) > 1:
            return Planned(path, {"json": body}, stream, bad)
    if rng.random() < BROKEN:
        whole = json.dumps(body)
        at = rng.randrange(1, len(whole))
        wrong = rng.choice(
            [whole[:at], whole + "}", json.dumps(body | {"temprature": 1}), "[" * at]
        )
        head = {"content-type": "application/json"}
        return Planned(path, {"content": wrong.encode(), "headers": head}, stream, True)
    return Planned(path, {"json": body}, stream)


def broken_bytes(data: bytes, rng: Random) -> bytes:
    """A picture or a clip that no longer is one."""
    return rng.choice(
        [data[: rng.randrange(1, 30)], b"GARBAGE" + data[7:], b"%PDF-1.7" + data[:50]]
    )


@dataclass
class Outcome:
    task: str
    end: str
    """whole, refused (an error in our shape), given up, lost, wrong, not taken (sent after the stop)."""
    status: int | None
    seconds: float
    first: float | None = None
    """Seconds to the first words of a stream."""
    message: str = ""


async def ask(client: httpx2.AsyncClient, task: str, request: Planned) -> Outcome:
    began = time.monotonic()
    first: float | None = None
    async with client.stream("POST", request.path, **request.options) as answer:
        status, body = answer.status_code, b""
        async for piece in answer.aiter_bytes():
            body += piece
            if first is None and (b'"content": "' in piece or b'"delta": "' in piece):
                first = time.monotonic() - began
    end, message = judge(request, status, body)
    streamed = request.stream and end == "whole"
    return Outcome(
        task, end, status, time.monotonic() - began, first if streamed else None, message
    )


def judge(request: Planned, status: int, body: bytes) -> tuple[str, str]:
    """How a request ended, and a message if that is wrong."""
    text = body.decode(errors="replace")
    if status != 200:
        error = json.loads(text).get("error", {}) if text.startswith("{") else {}
        if set(error) != {"message", "type", "param", "code"}:
            return "wrong", f"{status} without our shape: {text[:200]}"
        expected = 400 <= status < 500 if request.broken else status in (429, 503)
        return ("refused", "") if expected else ("wrong", f"{status}: {error['message'][:200]}")
    if request.broken:
        return "wrong", f"a broken request was answered: {text[:200]}"
    if not request.stream:
        return (
            ("whole", "")
            if text.strip() or request.path.startswith("/v1/audio")
            else ("lost", "empty")
        )
    *_, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    if last == "[DONE]" or '"transcript.text.done"' in last:
        return "whole", ""
    if '"error"' in last:
        result = json.loads(last)["error"]
        return (
            ("refused", "")
            if result.get("code") in ("stopping", "out_of_memory")
            else ("wrong", last[:200])
        )
    return "lost", f"a stream that ends with {last[:100]}"


class Load:
    """N clients, each of which sends one request after another."""

    def __init__(self, url: str, seed: int, clients: int) -> None:
        self.url, self.seed, self.clients = url, seed, clients
        self.outcomes: list[Outcome] = []
        self.going = asyncio.Event()
        self.stopped: float | None = None
        self.under_way = 0

    async def run(self, number: int, pool: Pool) -> None:
        rng = pool.rng
        tasks, shares = list(SHARES), list(SHARES.values())
        async with httpx2.AsyncClient(base_url=self.url, timeout=600, trust_env=False) as client:
            while self.stopped is None:
                await self.going.wait()
                if self.stopped is not None:
                    break
                (task,) = rng.choices(tasks, shares)
                request = plan(task, pool)
                leave = rng.choice(LEAVE) * rng.random() if rng.random() < GIVEN_UP else None
                began = time.monotonic()
                self.under_way += 1
                try:
                    async with asyncio.timeout(leave):
                        self.outcomes.append(await ask(client, task, request))
                except TimeoutError:
                    self.outcomes.append(Outcome(task, "given up", None, time.monotonic() - began))
                except httpx2.HTTPError as error:
                    # A request on a connection that the server closes at the same moment isn't lost if it was sent
                    # after the stop.
                    late = self.stopped is not None and began > self.stopped
                    end = "not taken" if late else "lost"
                    spent = time.monotonic() - began
                    self.outcomes.append(Outcome(task, end, None, spent, message=repr(error)[:200]))
                except Exception as error:
                    spent = time.monotonic() - began
                    self.outcomes.append(
                        Outcome(task, "wrong", None, spent, message=repr(error)[:200])
                    )
                finally:
                    self.under_way -= 1


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


@contextmanager
def server(model: str, options: list[str]) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """`polyphi serve` as a child: the process, its address, its log."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "polyphi.cli", "serve", model, "--port", "0", *options]
        with log.open("w") as errors:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "COLUMNS": "200"},
            )
        try:
            assert process.stdout
            result = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
            if result is None:
                raise SystemExit(f"the server didn't start: {log.read_text()[-2000:]}")
            yield process, result[0], log
        finally:
            process.kill()
            process.wait()


async def loaded(
    process: subprocess.Popen[str], url: str, args: argparse.Namespace
) -> dict[str, Any]:
    from hostile import attacked

    load = Load(url, args.seed, args.clients)
    memory: list[int] = []
    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        while (await client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.2)
        props = (await client.get("/props")).json()
        sample = " ".join(WORDS)
        count = (await client.post("/tokenize", json={"prompt": sample})).json()["count"]
        pools = [
            Pool(Random(f"{args.seed} {n}"), len(sample) / count, props["context"])
            for n in range(args.clients)
        ]
        watch = asyncio.create_task(watch_memory(process.pid, memory))
        clients = [asyncio.create_task(load.run(n, pool)) for n, pool in enumerate(pools)]
        began = time.monotonic()
        load.going.set()
        with attacked(int(url.rpartition(":")[2]), *args.attacks):
            await asyncio.sleep(60 * args.minutes)
        load.going.clear()
        while load.under_way:
            await asyncio.sleep(0.05)
        seconds = time.monotonic() - began
        await asyncio.sleep(PAUSE)
        counters = await gauges(client)
        load.going.set()
        await asyncio.sleep(AFTER)
    under_way = load.under_way
    load.stopped = time.monotonic()
    process.send_signal(signal.SIGTERM)
    await asyncio.gather(*clients)
    drained = time.monotonic() - load.stopped
    code = await asyncio.to_thread(process.wait, 120)
    watch.cancel()
    return report(load.outcomes, memory, counters, seconds) | {
        "under way at the stop": under_way,
        "seconds to the end": drained,
        "exit code": code,
    }


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
        "held": {
            name: counters[name]
            for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        },
        "memory": {
            "first": memory[0],
            "first third": statistics.median(memory[:third]),
            "last third": statistics.median(memory[-third:]),
            "peak": max(memory),
            "remembered of media": counters["encoder_remembered_bytes"],
            "looks": memory,
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
    for name in ("requests", "by end", "by status", "held", "under way at the stop", "exit code"):
        facts.add_row(name, str(result[name]))
    facts.add_row(
        "seconds", f"{result['seconds']:.0f}; {result['seconds to the end']:.1f} after the stop"
    )
    facts.add_row(
        "tokens a second",
        f"{result['tokens read a second']:.1f} read, {result['tokens written a second']:.1f} written",
    )
    sizes = ", ".join(
        f"{name} {value / 2**20:.0f}" for name, value in result["memory"].items() if name != "looks"
    )
    facts.add_row("memory, MiB", f"{sizes} ({len(result['memory']['looks'])} looks)")
    console.print(facts)
    for task, end, message in result["lost or wrong"][:20]:
        console.print(f"[red]{end}[/] {task}: {message}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--attacks", nargs="+", default=[], help="of hostile.py, during the load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("options", nargs="*", help="for polyphi serve, behind --")
    args = parser.parse_args()
    with server(args.model, args.options) as (process, url, log):
        result = asyncio.run(loaded(process, url, args))
        errors = [line for line in log.read_text().splitlines() if "Traceback" in line]
    result["tracebacks in the log"] = len(errors)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    show(result)
    bad = result["lost or wrong"] or any(result["held"].values()) or result["exit code"] or errors
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
