"""Does a server keep memory of short requests? Ten thousand of them, of all APIs, each with another text.

    python benchmarks/short_requests.py runs/nano/model [--requests 10000] [--json short.json]

Starts `polyphi serve` on a free port and sends the requests from four connections, after 200 to warm up. Printed are,
ten times, the resident memory and what the KV cache takes of it (`polyphi:kv_cache_bytes`): a block takes memory when
it is used for the first time, so the cache grows to its full size. The exit code is 1 if all else grows by more than
`KEPT`.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MIB = 1 << 20
WARM, CONNECTIONS, PARTS = 200, 4, 10
KEPT = 32 * MIB
"""Growth beside the KV cache: of the heap's free parts, stored responses and cached words of the tokenizer."""
FILLER = "abcdefghijklmnopqrstuvwxyz" * 2
"""Makes a prompt longer than a block of 32 tokens: shorter ones aren't cached."""


def requests(first: int, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests with different texts, for one API after the other."""
    for number in range(first, first + count):
        text = f"{number} {number * 7919} {FILLER}"
        messages, limit = [{"role": "user", "content": text}], {"max_tokens": 2}
        bodies: list[tuple[str, dict[str, Any]]] = [
            ("/v1/chat/completions", {"messages": messages, **limit}),
            ("/v1/chat/completions", {"messages": messages, "stream": True, **limit}),
            ("/v1/completions", {"prompt": text, **limit}),
            ("/v1/responses", {"input": text, "max_output_tokens": 2}),
            ("/v1/messages", {"messages": messages, **limit}),
            ("/tokenize", {"prompt": text}),
            ("/v1/chat/completions", {"messages": messages, "max_tokens": -1}),
        ]
        yield bodies[number % len(bodies)]


async def send(client: Any, first: int, count: int) -> None:
    remaining = requests(first, count)

    async def connection() -> None:
        for path, body in remaining:
            status = (await client.post(path, json=body)).status_code
            assert status == (400 if body.get("max_tokens") == -1 else 200), (status, path)

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))


async def measured(model: str, count: int) -> list[dict[str, float]]:
    """The number of requests so far, resident bytes, and those of the KV cache."""
    import httpx2
    import psutil
    from server_process import server

    rows: list[dict[str, float]] = []
    with server(model, []) as (child, url, _):
        process = psutil.Process(child.pid)
        async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
            while (await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.2)

            async def record(sent: int) -> None:
                lines = (await client.get("/metrics")).text.splitlines()
                (cache,) = (x.split()[1] for x in lines if x.startswith("polyphi:kv_cache_bytes"))
                row = {"requests": sent, "resident": process.memory_info().rss}
                rows.append({**row, "kv_cache": float(cache)})
                print(json.dumps(rows[-1]), flush=True)

            await send(client, 0, WARM)
            await record(0)
            for part in range(PARTS):
                each = count // PARTS
                await send(client, WARM + part * each, each)
                await record((part + 1) * each)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = asyncio.run(measured(args.model, args.requests))
    if args.json:
        args.json.write_text(json.dumps(rows))
    beside = [row["resident"] - row["kv_cache"] for row in rows]
    print(f"beside the KV cache {beside[0] / MIB:.0f} -> {beside[-1] / MIB:.0f} MiB")
    sys.exit(beside[-1] - beside[0] > KEPT)


if __name__ == "__main__":
    main()
