"""A client among others that stall the server: how long do its greetings take, and is all memory freed afterwards?

    python benchmarks/hostile.py runs/nano/model [--attacks texts scores] [--greetings 20] [--json hostile.json]
    python benchmarks/hostile.py runs/nano/model --all-at-once --minutes 10

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
| own_queue | 40 chats with long answers, from the address that also sends the greetings |
| tiny | 10,000 chats of one token; the greetings last until all are answered |
| grammar_compile | 4 schemas with `multipleOf: 9999991`, left after 2 s each; 1000000; an `allOf` of 20 patterns |
| grammar_masks | `n: 8` with `multipleOf: 300007`, and with a context-free grammar of 1,900 optional letters |
| padded_bodies | 5 bodies of 100 MiB and one of 12 MiB: blanks after a chat with 8 long answers |
| small_values | 15 MB and 4 x 75 MB of tiny prompts; a key of 100 MB, 100 MB of choices, and 1.5 million keys |
| unread_stored | 120 requests for a stored response of 56 MB that aren't read |
| pictures | 195 pictures of 9459 x 9459 pixels in a few bytes each; the client leaves after 2 s and comes again |
| recordings | 10 recordings of 20 minutes to transcribe |
| prompts_memory | 60 chats about as much audio as the context holds |

URLs that answer slowly are missing, because the server fetches from no private address; tests/core/serve has them.

A greeting (a chat with an answer of 8 tokens) is sent every half second, alone and then during each attack, and /health
is requested five times a second. Beside some attacks another client also sends an image, a recording to transcribe or a
structured output. Aims: the median greeting takes at most the larger of three times its time alone and 0.5 s, and the
other request of ten times and 5 s; each is answered; /health always answers within 0.2 s; half a second after the
attackers have disconnected, none of their requests is in progress; within a minute memory is released; no attacker
receives an error of the server itself (5xx, except 503). After an attack whose requests stay in progress, the others
get a new server. The exit code is 1 if an aim is missed. Options of `polyphi serve` follow `--`, for example
`-- --requests-gb 0.1` with a short context, so that prompts_memory fills it.

`--all-at-once`: hostile_together.py.

    python benchmarks/hostile.py --attack texts --port PORT        # one attack, until it is stopped
"""

import argparse
import asyncio
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from hostile_attacks import ADDRESS, ATTACKS, LONGEST, attack
from hostile_beside import Beside, beside, client_of, greet, median
from hostile_peers import COMPLETIONS
from hostile_requests import long_prompts
from hostile_together import show_together, together
from server_process import server


async def measured(
    model: str, names: list[str], count: int, options: list[str]
) -> list[tuple[Beside, Beside]]:
    """The results of greetings alone and during each attack. An attack gets a new server where the last one is still
    busy."""
    waiting, results = list(names), []
    while waiting:
        with server(model, options) as (child, url, _):
            port, process = int(url.rpartition(":")[2]), psutil.Process(child.pid)
            async with client_of(url) as client:
                while (await client.get("/ready")).status_code != 200:
                    await asyncio.sleep(0.2)
                # The first requests are slower, and some memory is allocated at first use and stays allocated: keys
                # and values, output buffers of kernels, cached encoder outputs.
                prompts = long_prompts(99, (await client.get("/props")).json()["context"])
                await client.post(COMPLETIONS, json={"prompt": prompts, "max_tokens": 1})
                await greet(client, 10, Beside("warm"))
                alone = Beside("alone")
                await greet(client, count, alone)
                while waiting:
                    result = await beside(client, process, port, waiting.pop(0), count)
                    results.append((alone, result))
                    print(line(alone, result), flush=True)
                    if result.idle_after is None or result.failures:
                        break
    return results


def line(alone: Beside, result: Beside) -> str:
    greeting, before = median(result.greetings), median(alone.greetings)
    slowest, health = (max(times, default=math.inf) for times in (result.greetings, result.health))
    released, back = (
        "not in time" if seconds is None else f"{seconds:.1f} s"
        for seconds in (result.idle_after, result.memory_after)
    )
    memory = " -> ".join(f"{size / 2**20:.0f}" for size in result.memory)
    probe = ""
    if result.probe_alone:
        times = f"{ms(median(result.probe_alone))} -> {ms(median(result.probe))}"
        probe = f"{ATTACKS[result.attack].probe} {times}, "
    seen = ", ".join(f"{what}: {number}" for what, number in sorted(result.seen.items()))
    missed = result.missed(before)
    return (
        f"{result.attack}: greeting {ms(before)} -> {ms(greeting)} (slowest {ms(slowest)}), {probe}"
        f"/health {ms(health)}, no request in progress after {released}, memory {memory} MiB, released after {back}; "
        f"attackers received {seen or 'nothing'}"
        + (f"; MISSED: {', '.join(missed)}" if missed else "")
    )


def ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if math.isfinite(seconds) else "no answer"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0],
        usage="%(prog)s MODEL [options] [-- options of polyphi serve]",
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--greetings", type=int, default=20, help="alone and during each attack")
    parser.add_argument("--all-at-once", action="store_true", help="beside honest clients")
    parser.add_argument("--minutes", type=float, default=10, help="of all attacks at once")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--attack", choices=ATTACKS, help="only attack the server on --port")
    parser.add_argument("--port", type=int)
    parser.add_argument("--address", default=ADDRESS, help="of the attack")
    parser.add_argument("--seconds", type=float, default=LONGEST, help="of the attack, at most")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    if args.attack:
        if args.port is None:
            parser.error("expected --port with --attack")
        asyncio.run(attack(args.attack, args.port, args.address, args.seconds))
        return
    if args.model is None:
        parser.error("expected a model")
    try:
        written, missed = run(args, options)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    if args.json:
        args.json.write_text(json.dumps(written, indent=1))
    sys.exit(missed)


def run(args: argparse.Namespace, options: list[str]) -> tuple[Any, bool]:
    """(the result as JSON, whether an aim was missed). Raises ValueError for a model whose answers differ alone."""
    if args.all_at_once:
        result = asyncio.run(together(args.model, args.attacks, args.minutes, options))
        print(show_together(result))
        return asdict(result), bool(result.missed())
    results = asyncio.run(measured(args.model, args.attacks, args.greetings, options))
    missed = any(one.missed(median(alone.greetings)) for alone, one in results)
    return [asdict(one) for pair in results for one in pair], missed


if __name__ == "__main__":
    main()
