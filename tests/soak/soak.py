"""Honest clients of a server that others attack: is an answer lost or wrong, and is the door open to a new client?

    python tests/soak/soak.py [MODEL] [--minutes 10] [--seconds 1] [--attacks NAME ...] [-- options of polyphi serve]

Starts `polyphi serve`, by default with the model of the package polyphi-nano. Honest clients, each with an address and
one kind of request, first note the answers that they get alone. Then they run beside each attack of attacks.py for some
seconds, beside all attacks for the rest of the minutes, and while SIGTERM stops the server. Meanwhile a new client
every half second sends a greeting of one token, and /health is requested five times a second.

Aims: no honest answer is lost or wrong; each greeting is answered, half of them within `--seconds`; /health always
returns 200; attackers receive no 5xx but 503; afterwards no gauge of /metrics counts a request, and memory without
caches is back; the server's log has no traceback; it ends with exit code 0 and leaves no process. A refusal (429 or 503
with Retry-After) is followed by another try. Rounding depends on the batch, so a generated token may also be one that
was nearly as likely, and after it the answers may differ. The exit code is 1 if an aim is missed.
"""

import argparse
import asyncio
import base64
import json
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx2
import jsonschema
import psutil
import soundfile
import soxr
from attacks import ATTACKS, CHAT, LIVE, MIB, RESPONSES, TRANSCRIPTIONS, client_at
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.fixtures.pdfs import text_pdf

NANO = Path(__file__).parents[2] / "models" / "nano" / "polyphi_nano"
PATIENCE, LONGEST_WAIT, BACK, TRIM, STOP = 300.0, 10.0, 60.0, 6.0, 10.0
"""Seconds until a request is lost, between two tries at most, until memory is back, until an idle server returns free
memory to the system, and from SIGTERM to the end."""
MARGIN = 0.3
"""Largest difference of two tokens' log-probabilities that rounding explains (docs/numbers.md, batch invariance)."""
MORE = 1.2
"""Memory is back below this many times what it was: after each of several rounds of all attacks the nano model's server
had 440 to 510 MiB, without growth, by which parts of the heap were in use."""
CACHES = ("encoder_cached_bytes", "kv_cache_bytes", "stored_responses_bytes")
"""Gauges of memory that stays in use without requests."""
CAPACITIES = {"kv_cache_blocks", "kv_cache_blocks_cached", "stored_responses", *CACHES}
"""Gauges that don't count requests."""
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["colour", "count"],
    "additionalProperties": False,
}


class Refused(Exception):
    """A refusal: its code, and the seconds until the next try."""


@dataclass
class Phase:
    """What happened beside some attacks: seconds of answers, greetings and /health, refusals by code, faults, and what
    the attackers received."""

    name: str
    answers: list[float] = field(default_factory=list)
    greetings: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    received: dict[str, dict[str, int]] = field(default_factory=dict)

    def missed(self, seconds: float) -> list[str]:
        """The aims that were missed; `seconds`: that of a greeting."""
        statuses = {status for seen in self.received.values() for status in seen}
        failed = sorted(status for status in statuses if status[0] == "5" and status != "503")
        missed = [*self.faults, *(f"attackers received {status}" for status in failed)]
        if (middle := statistics.median(self.greetings or [0.0])) > seconds:
            missed.append(f"the median greeting takes {middle:.1f} s")
        return [f"{self.name}: {what}" for what in missed]


# ---------------------------------------------------------------------- honest requests


@dataclass
class Client:
    """An honest client, which sends one kind of request. `ask` returns an answer, and `fault` what is wrong with it,
    given the one alone ("": nothing)."""

    kind: str
    ask: Callable[["Client"], Awaitable[Any]]
    fault: Callable[[Any, Any], str]
    port: int = 0
    address: str = ""
    alone: Any = None

    async def send(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of a response. Raises Refused, and ValueError for a refusal without the form of the API."""
        async with client_at(self.address, self.port) as client:
            response = await client.request(method, path, **options)
        if response.status_code == 200:
            return response.json()
        text = f"{response.status_code} {response.text[:200]}"
        wait = response.headers.get("retry-after", "")
        if response.status_code not in (429, 503) or not wait.isdigit():
            raise ValueError(text)
        raise Refused(f"{response.status_code} {response.json()['error']['code']}", float(wait))


def chat(content: Any, **fields: Any) -> Callable[[Client], Awaitable[Any]]:
    messages = [{"role": "user", "content": content}]
    body = {"messages": messages, "max_tokens": 24, **fields}
    return lambda client: client.send("POST", CHAT, json=body)


def url_of(data: bytes) -> str:
    return "data:;base64," + base64.b64encode(data).decode()


async def transcription(client: Client) -> Any:
    file = {"file": ("a.flac", (NANO / "media" / "asr_numbers.flac").read_bytes())}
    return await client.send("POST", TRANSCRIPTIONS, files=file)


async def stored(client: Client) -> Any:
    """A stored response, as it was answered and as it is read."""
    body = {"input": "What is 14 minus 4?", "max_output_tokens": 16}
    answer = await client.send("POST", RESPONSES, json=body)
    path = f"{RESPONSES}/{answer['id']}"
    return answer, await client.send("GET", path), await client.send("DELETE", path)


async def session(client: Client) -> Any:
    """The transcript of a live session."""
    samples, rate = soundfile.read(NANO / "media" / "asr_numbers.flac", dtype="float32")
    wave = (32767 * soxr.resample(samples, rate, 24_000)).astype("<i2").tobytes()
    url, local = f"ws://127.0.0.1:{client.port}{LIVE}", (client.address, 0)
    config = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
    try:
        async with connect(url, local_addr=local, compression=None, proxy=None) as socket:
            for event in (
                {"type": "session.update", "session": config},
                {"type": "input_audio_buffer.append", "audio": base64.b64encode(wave).decode()},
                {"type": "input_audio_buffer.commit"},
            ):
                await socket.send(json.dumps(event))
            while True:
                event = json.loads(await socket.recv())
                if event["type"].endswith("transcription.completed"):
                    return event["transcript"]
                if "error" in event:
                    code = event["error"]["code"]
                    if code not in ("queue_full", "too_many_sessions", "stopping"):
                        raise ValueError(str(event))
                    raise Refused(code, 1.0)
    except InvalidStatus as error:
        raise Refused(str(error.response.status_code), 1.0) from None


def tokens_fault(alone: Any, answer: Any) -> str:
    """A token that is neither the one alone nor nearly as likely; after one that is, the answers may differ."""
    first, second = (one["choices"][0]["logprobs"]["content"] for one in (alone, answer))
    for number, (one, other) in enumerate(zip(first, second, strict=False)):
        if one["token"] != other["token"]:
            likely = {top["token"]: top["logprob"] for top in one["top_logprobs"]}
            if max(likely.values()) - likely.get(other["token"], -1e9) <= MARGIN:
                return ""
            return f"token {number} is {other['token']!r}, alone {one['token']!r}"
    return "" if len(first) == len(second) else f"{len(second)} tokens, alone {len(first)}"


def schema_fault(alone: Any, answer: Any) -> str:
    content = answer["choices"][0]["message"]["content"]
    try:
        jsonschema.validate(json.loads(content), SCHEMA)
    except (ValueError, jsonschema.ValidationError):
        return f"not of the schema: {content!r}"
    return ""


def difference(alone: Any, answer: Any) -> str:
    return "" if alone == answer else f"{answer!r}, alone {alone!r}"


def stored_fault(alone: Any, answer: Any) -> str:
    response, reread, deletion = answer
    return difference(response, reread) or ("" if deletion["deleted"] else str(deletion))


def honest_clients(port: int) -> list[Client]:
    likely = {"logprobs": True, "top_logprobs": 5}
    form = {"type": "json_schema", "json_schema": {"name": "boats", "schema": SCHEMA}}
    image = {"url": url_of((NANO / "media" / "shape.png").read_bytes())}
    document = {"filename": "a.pdf", "file_data": url_of(text_pdf("the quick brown fox"))}
    clients = [
        Client("chat", chat("the quick brown fox tells a story", **likely), tokens_fault),
        Client("schema", chat("Which boats?", max_tokens=100, response_format=form), schema_fault),
        Client("image", chat([{"type": "image_url", "image_url": image}], **likely), tokens_fault),
        Client("document", chat([{"type": "file", "file": document}], **likely), tokens_fault),
        Client("transcription", transcription, lambda a, b: difference(a["text"], b["text"])),
        Client("stored response", stored, stored_fault),
        Client("live session", session, difference),
    ]
    for number, client in enumerate(clients):
        client.port, client.address = port, f"127.0.0.{10 + number}"
    return clients


# ---------------------------------------------------------------------- the soak


class Soak:
    """Phases, the present one last, and the aims of the server that were `missed`."""

    def __init__(self, server: psutil.Popen, port: int, show: Callable[[str], None]) -> None:
        self.server, self.port, self.show = server, port, show
        self.phases = [Phase("alone")]
        self.missed: list[str] = []
        self._clients, self._new_clients = honest_clients(port), count()
        self._stopping = False

    async def run(self, names: list[str], minutes: float) -> None:
        """Honest clients alone, beside each attack, beside all of them, and while the server is stopped."""
        end = time.monotonic() + 60 * minutes
        each = max(2.0, 0.4 * 60 * minutes / len(names))
        for client in self._clients * 2:
            await self._answer(client)
        async with self._attackers() as attack:
            async with self._clients_run():
                for name in names:
                    await attack(name, name)
                    await asyncio.sleep(each)
                await attack("all, at first", *names)  # some memory is allocated once
                await asyncio.sleep(5 * each)
                await attack("after each")
            await self._until(self._idle, "requests")
            await asyncio.sleep(TRIM)
            before = await self._uncached()
            async with self._clients_run():
                await attack("all", *names)
                await asyncio.sleep(max(5 * each, end - time.monotonic()))
                await attack("after all")
            await self._until(self._idle, "requests")

            async def is_back() -> bool:
                return await self._uncached() < MORE * before

            await self._until(is_back, f"{before / MIB:.0f} MiB")
            async with self._clients_run():
                await attack("stop", *names)
                await asyncio.sleep(STOP)
                await self._stop()
            await attack("")

    @asynccontextmanager
    async def _attackers(self) -> AsyncIterator[Callable[..., Awaitable[None]]]:
        """A function that begins a phase with attacks, and ends those of the last one."""
        program = str(Path(__file__).with_name("attacks.py"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, program, str(self.port), stdin=PIPE, stdout=PIPE
        )
        assert process.stdin and process.stdout
        inputs, outputs = process.stdin, process.stdout

        async def attack(phase: str, *names: str) -> None:
            inputs.write(json.dumps(names).encode() + b"\n")
            self.phases[-1].received = json.loads(await outputs.readline())
            self.show(str(self.phases[-1]))
            self.phases.append(Phase(phase))

        try:
            yield attack
        finally:
            process.kill()
            await process.wait()

    @asynccontextmanager
    async def _clients_run(self) -> AsyncIterator[None]:
        """Honest clients, greetings and probes run; in the end their last requests are awaited."""
        ended = asyncio.Event()
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}

        async def repeat(client: Client) -> None:
            while not ended.is_set():
                await self._answer(client)
                await asyncio.sleep(0.05)

        async def greet() -> None:
            while not ended.is_set():
                number = next(self._new_clients)
                address, times = f"127.1.{number // 250}.{number % 250 + 1}", self.phases[-1]
                send = partial(self._timed, times.greetings, address, "POST", CHAT, json=body)
                group.create_task(send())
                await asyncio.sleep(0.5)

        async def probe() -> None:
            while not ended.is_set():
                await self._timed(self.phases[-1].health, "127.0.0.1", "GET", "/health")
                await asyncio.sleep(0.2)

        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(repeat(client))
            group.create_task(greet())
            group.create_task(probe())
            yield
            ended.set()

    async def _answer(self, client: Client) -> None:
        """Send a client's request until it is answered."""
        phase, began = self.phases[-1], time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await self._unrefused(client, phase)
        except Exception as error:  # of four libraries
            if not self._stopping:
                phase.faults.append(f"{client.kind}: {error!r}, refusals {dict(phase.refusals)}")
            return
        client.alone = answer if client.alone is None else client.alone
        phase.answers.append(time.monotonic() - began)
        if fault := client.fault(client.alone, answer):
            phase.faults.append(f"{client.kind}: wrong, {fault[:300]}")

    async def _unrefused(self, client: Client, phase: Phase) -> Any:
        while True:
            try:
                return await client.ask(client)
            except Refused as refusal:
                code, wait = refusal.args
                phase.refusals[code] += 1
                if self._stopping:
                    raise
            await asyncio.sleep(min(LONGEST_WAIT, wait))

    async def _timed(self, times: list[float], address: str, *request: str, **options: Any) -> None:
        """A request that may not be refused."""
        phase, began = self.phases[-1], time.monotonic()
        try:
            async with asyncio.timeout(BACK), client_at(address, self.port) as client:
                response = await client.request(*request, **options)
            fault = "" if response.status_code == 200 else response.text
        except (TimeoutError, httpx2.HTTPError) as error:
            fault = repr(error)
        times.append(time.monotonic() - began)
        if fault and not self._stopping:
            phase.faults.append(f"{request[1]} of a new client: {fault[:200]}")

    # The server

    async def _until(self, true: Callable[[], Awaitable[bool]], what: str) -> None:
        end = time.monotonic() + BACK
        while not await true():
            if time.monotonic() > end:
                size, gauges = await self._uncached() / MIB, await self._gauges()
                self.missed.append(f"{what} aren't back: {size:.0f} MiB, {gauges}")
                return
            await asyncio.sleep(0.5)

    async def _gauges(self) -> dict[str, float]:
        """The gauges of /metrics that aren't zero."""
        async with client_at("127.0.0.1", self.port) as client:
            text = (await client.get("/metrics")).text
        totals: Counter[str] = Counter()
        for name in re.findall(r"^# TYPE polyphi:(\S+) gauge", text, re.M):
            totals[name] += sum(
                map(float, re.findall(rf"^polyphi:{name}{{.*?}} (\S+)", text, re.M))
            )
        return {name: total for name, total in totals.items() if total}

    async def _idle(self) -> bool:
        return (await self._gauges()).keys() <= CAPACITIES

    async def _uncached(self) -> float:
        """Resident bytes of the server and its processes without those of caches; shared pages count once."""
        gauges, resident = await self._gauges(), self.server.memory_info().rss
        for child in self.server.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                resident += child.memory_full_info().pss
        return resident - sum(gauges.get(name, 0.0) for name in CACHES)

    async def _stop(self) -> None:
        """Stop the server. What isn't answered then isn't lost, but no answer may be wrong."""
        children = self.server.children(recursive=True)
        self._stopping, began = True, time.monotonic()
        self.server.terminate()
        code = await asyncio.to_thread(self.server.wait, 6 * STOP)
        seconds = time.monotonic() - began
        if code != 0 or seconds > STOP:
            self.missed.append(f"the server stopped with exit code {code} after {seconds:.1f} s")
        _, left = await asyncio.to_thread(psutil.wait_procs, children, 1.0)
        for child in left:
            with suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    self.missed.append(f"left: {child}")


def table(phases: list[Phase]) -> Table:
    seconds = "slowest", "greeting", "slowest", "/health, slowest"
    result = Table("beside", "answers", "refusals", *seconds, "attackers received")
    for phase in phases:
        greetings = [*phase.greetings] or [0.0]
        times = (
            max(phase.answers, default=0.0),
            statistics.median(greetings),
            max(greetings),
            max(phase.health, default=0.0),
        )
        counts = str(len(phase.answers)), str(phase.refusals.total())
        seen = sum(map(Counter, phase.received.values()), Counter[str]())
        received = ", ".join(f"{status} {number:,}" for status, number in sorted(seen.items()))
        result.add_row(phase.name, *counts, *(f"{time:.2f}" for time in times), received)
    return result


def main() -> None:
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0],
        usage="%(prog)s [MODEL] [options] [-- options of polyphi serve]",
    )
    parser.add_argument("model", nargs="?", default=str(NANO / "model"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=1, help="of the median greeting, at most")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    args = parser.parse_args(sys.argv[1:end])
    console = Console(width=200)
    with tempfile.NamedTemporaryFile("w+") as log, console.status("the model is loaded") as status:
        command = [sys.executable, "-m", "polyphi.cli", "serve", args.model, "--port", "0"]
        server = psutil.Popen(command + sys.argv[end + 1 :], stdout=PIPE, stderr=log, text=True)
        try:
            if not (match := re.search(r"http://127.0.0.1:(\d+)", server.stdout.readline())):
                sys.exit(f"the server didn't start: {Path(log.name).read_text()}")
            soak = Soak(server, int(match[1]), status.update)
            asyncio.run(soak.run(args.attacks, args.minutes))
        finally:
            with suppress(psutil.NoSuchProcess):
                server.kill()
        missed = [*soak.missed, *(m for phase in soak.phases for m in phase.missed(args.seconds))]
        if traceback := re.search(r"Traceback.*", Path(log.name).read_text(), re.S):
            missed.append(f"in the server's log: {traceback[0][:2000]}")
    console.print(table(soak.phases[:-1]))
    for what in missed:
        console.print(f"missed: {what}", markup=False, highlight=False)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
