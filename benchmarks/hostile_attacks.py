"""All attacks of hostile.py, each of which runs in its own process.

>>> with attacked(port, "texts", "queue") as attackers:      # from 127.0.0.2
...     ...
>>> attackers.seen                                           # {"texts": {"400": 31}, "queue": {"200": 3, "429": 2}}
"""

import asyncio
import json
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import hostile_bodies
import hostile_grammars
import hostile_media
import hostile_requests
from hostile_peers import ROUNDS, Attack, Peer, again

ATTACKS: dict[str, Attack] = {
    **hostile_requests.ATTACKS,
    **hostile_grammars.ATTACKS,
    **hostile_bodies.ATTACKS,
    **hostile_media.ATTACKS,
}
ADDRESS, OWN_ADDRESS = "127.0.0.2", "127.0.0.1"
"""The attacks' address, unless others are named, and that of the client beside them."""
BEGIN, STOP = 60.0, 10.0
"""Seconds until all clients of an attack have sent something, and until it has stopped."""
LONGEST = 3600.0
"""Seconds after which an attack stops by itself."""


async def attack(name: str, port: int, address: str = ADDRESS, seconds: float = LONGEST) -> None:
    """Run all clients of an attack at once, until SIGTERM or for `seconds`.

    Prints "ready" when each has sent something (or can't), "done" when all have ended, and at the end what they
    received, as JSON.
    """
    seen: Counter[str] = Counter()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    one = ATTACKS[name]
    peers = [
        (client, Peer(port, address, number, seen))
        for client, count in one.clients.items()
        for number in range(count)
    ]
    rounds = 1 if one.once else ROUNDS

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for client, peer in peers:
                group.create_task(again(client, peer, rounds))

    clients = asyncio.ensure_future(run())
    began = time.monotonic()
    while not all(peer.started for _, peer in peers) and time.monotonic() - began < BEGIN:
        if clients.done() or stopped.is_set():
            break
        await asyncio.sleep(0.05)
    print("ready", flush=True)
    stop = asyncio.ensure_future(stopped.wait())
    await asyncio.wait({clients, stop}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if clients.done():
        clients.result()  # raises the error of a client
        print("done", flush=True)
        await asyncio.wait({stop}, timeout=seconds)
    clients.cancel()
    print(json.dumps(seen), flush=True)


class Attackers:
    """Processes of attacks. `seen`: what the clients of each received, once they have stopped."""

    def __init__(self, processes: dict[str, subprocess.Popen[bytes]]) -> None:
        self.processes = processes
        self.seen: dict[str, dict[str, int]] = {}

    def done(self, name: str) -> bool:
        """Whether all clients of an attack have ended."""
        output = self.processes[name].stdout
        assert output is not None
        return bool(select.select([output], [], [], 0)[0])

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for name, process in self.processes.items():
            try:
                output, _ = process.communicate(timeout=STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
            lines = output.splitlines()
            self.seen[name] = json.loads(lines[-1]) if lines and lines[-1].startswith(b"{") else {}


@contextmanager
def attacked(port: int, *names: str, addresses: Sequence[str] = (ADDRESS,)) -> Iterator[Attackers]:
    """Run attacks while the block runs, each in its own process; the addresses in turn."""
    script = Path(__file__).with_name("hostile.py")
    command = [sys.executable, str(script), "--port", str(port), "--attack"]
    attackers = Attackers(
        {
            name: subprocess.Popen(
                [*command, name, "--address", addresses[number % len(addresses)]],
                stdout=subprocess.PIPE,
                bufsize=0,  # so that `done` sees every line that wasn't read
            )
            for number, name in enumerate(names)
        }
    )
    try:
        for process in attackers.processes.values():
            assert process.stdout and process.stdout.readline() == b"ready\n"
        yield attackers
        early = [name for name, one in attackers.processes.items() if one.poll() is not None]
        assert not early, f"an attack ended early: {', '.join(early)}"
    finally:
        attackers.stop()


@asynccontextmanager
async def under_attack(
    port: int, *names: str, addresses: Sequence[str] = (ADDRESS,)
) -> AsyncIterator[Attackers]:
    """The same for an event loop with other clients: attacks begin and end in a thread."""
    with ExitStack() as stack:
        context = attacked(port, *names, addresses=addresses)
        attackers = await asyncio.to_thread(stack.enter_context, context)
        yield attackers
        await asyncio.to_thread(stack.close)
