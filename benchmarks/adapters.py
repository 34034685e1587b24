"""Adapters that come and go under load: is any request answered by the wrong one, and does the memory come back?

    python benchmarks/adapters.py runs/nano/model [--requests 1000] [--clients 8] [--seed 0] [--json adapters.json]

Makes adapters with random weights, of different ranks and for different linears, and starts `polyphi serve` with
`--adapter-folder`. First each adapter answers each prompt alone. Then clients send chats (half of them streamed),
completions, requests of the Responses API and of Anthropic's, each to the model itself or to one of three names of
adapters, while an operator loads, unloads and replaces adapters under these names (`load_inplace`). One request in
twenty is disconnected at a random moment.

An answer is right if it is the one that an adapter gave alone which was loaded under the requested name at some moment
between the request and its answer. HTTP 404 is right if the name had no adapter at some moment of that time. All else
counts as wrong or lost. `--requests` counts the others than those with HTTP 404. In the end all adapters are unloaded;
the server's resident memory is compared with that before the load, after the first adapters. Options of `polyphi serve`
follow `--`, for example `-- --quant int8`. The exit code is 1 if anything was wrong, lost or not released.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import psutil
import torch
from load import gauges
from load_pool import WORDS
from rich.console import Console
from safetensors.torch import save_file
from server_process import server

from polyphi.checkpoints.headers import read_config
from polyphi.model.config import DecoderConfig

NAMES = ("first", "second", "third")
BASE = "base"
"""Stands for the model without an adapter, among the names and the adapters."""
FORMS: tuple[dict[str, Any], ...] = (
    {"r": 64, "lora_alpha": 128},
    {"r": 256, "lora_alpha": 256, "linears": ("self_attn.qkv_proj", "self_attn.o_proj")},
    {
        "r": 32,
        "lora_alpha": 32,
        "use_rslora": True,
        "linears": ("mlp.gate_up_proj", "mlp.down_proj"),
    },
    {"r": 128, "lora_alpha": 256},
    {"r": 64, "lora_alpha": 64, "linears": ("self_attn.qkv_proj",)},
    {"r": 64, "lora_alpha": 128},
)
"""The adapters that are made."""
DISCONNECTED = 0.05
"""Share of requests that are disconnected."""
PROMPTS = 8
REFUSED = 0.05
"""Seconds that a client waits after HTTP 404."""
TOKENS = 16
"""Of an answer."""


def write_adapter(
    folder: Path, decoder: DecoderConfig, seed: int, strength: float = 1.0, **form: Any
) -> None:
    """Write an adapter with random factors in PEFT's format. Its product is about `strength` times as large as that of
    a weight with deviation 1 / sqrt(inputs)."""
    rank, root = form["r"], form.get("use_rslora", False)
    scale = form["lora_alpha"] / (rank**0.5 if root else rank)
    draw = torch.Generator().manual_seed(seed)
    hidden, inner = decoder.hidden_size, decoder.intermediate_size
    queries, keys = decoder.num_attention_heads, decoder.num_key_value_heads
    sizes = {
        "self_attn.qkv_proj": ((queries + 2 * keys) * decoder.head_dim, hidden),
        "self_attn.o_proj": (hidden, queries * decoder.head_dim),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    tensors = {}
    for layer in range(decoder.num_hidden_layers):
        for linear in form.get("linears", sizes):
            outputs, inputs = sizes[linear]
            name = f"base_model.model.model.layers.{layer}.{linear}"
            a = torch.randn(rank, inputs, generator=draw) / inputs**0.5
            b = torch.randn(outputs, rank, generator=draw) * strength / scale / rank**0.5
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    entries = {"peft_type": "LORA", **{k: v for k, v in form.items() if k != "linears"}}
    (folder / "adapter_config.json").write_text(json.dumps(entries))


def write_adapters(folder: Path, decoder: DecoderConfig) -> list[str]:
    """Write all adapters of `FORMS` below a folder: their names."""
    names = [f"adapter-{number}" for number in range(len(FORMS))]
    for number, (name, form) in enumerate(zip(names, FORMS, strict=True)):
        write_adapter(folder / name, decoder, number, **form)
    return names


@dataclass
class Period:
    """The time in which requests to a name may have been answered by `adapter` (None: by an error that there is none):
    from the call that began it to the answer of the call that ended it."""

    adapter: str | None
    begin: float
    end: float = float("inf")


@dataclass
class Result:
    """What happened: counts of requests by end and of the operator's calls, and messages about all that was wrong."""

    ends: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)


class Operator:
    """Loads and unloads adapters, and knows which may answer a request."""

    def __init__(self, client: httpx2.AsyncClient, adapters: list[str], result: Result) -> None:
        self.client, self.adapters, self.result = client, adapters, result
        self.periods = {name: [Period(None, 0.0)] for name in NAMES}

    def loaded(self, name: str) -> str | None:
        return self.periods[name][-1].adapter

    async def call(self, name: str, adapter: str | None) -> None:
        """Loads an adapter under a name, replaces the one there, or unloads it (None)."""
        old, began = self.periods[name][-1], time.monotonic()
        action = "unload" if adapter is None else "load" if old.adapter is None else "replace"
        new = Period(adapter, began)
        self.periods[name].append(new)
        if adapter is None:
            response = await self.client.post("/v1/unload_lora_adapter", json={"lora_name": name})
        else:
            body = {"lora_name": name, "lora_path": adapter, "load_inplace": action == "replace"}
            response = await self.client.post("/v1/load_lora_adapter", json=body)
        old.end = time.monotonic()
        self.result.calls[action] += 1
        if response.status_code != 200:
            self.result.errors.append(f"{action} of {adapter} as {name}: {response.text[:200]}")

    async def work(self, rng: Random, done: asyncio.Event) -> None:
        """Calls after calls until `done`; two names may change at the same time."""

        async def one(name: str) -> None:
            while not done.is_set():
                others = [a for a in self.adapters if a != self.loaded(name)]
                unload = self.loaded(name) is not None and rng.random() < 0.5
                await self.call(name, None if unload else rng.choice(others))
                await asyncio.sleep(rng.random() * (0.02 if unload else 0.3))

        await asyncio.gather(*(one(name) for name in NAMES))
        for name in NAMES:
            if self.loaded(name) is not None:
                await self.call(name, None)

    def possible(self, name: str, begin: float, end: float) -> set[str | None]:
        """The adapters that may answer a request of this time, and None if it may be refused."""
        if name == BASE:
            return {BASE}
        return {p.adapter for p in self.periods[name] if p.begin <= end and p.end >= begin}


APIS = ("chat", "chat stream", "completions", "responses", "messages")


def request_of(api: str, model: str, prompt: str) -> tuple[str, dict[str, Any]]:
    """(path, body) of a prompt's request to one of the APIs."""
    turns = {"messages": [{"role": "user", "content": prompt}], "temperature": 0.0}
    if api == "completions":
        body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0.0}
        return "/v1/completions", {"model": model, **body}
    if api == "responses":
        body = {"input": prompt, "max_output_tokens": TOKENS, "temperature": 0.0}
        return "/v1/responses", {"model": model, **body, "store": False}
    path = "/v1/messages" if api == "messages" else "/v1/chat/completions"
    return path, {"model": model, **turns, "max_tokens": TOKENS, "stream": api == "chat stream"}


def text_of(api: str, text: str) -> str:
    """The answer in a response's body."""
    if api == "chat stream":
        events = [line.removeprefix("data: ") for line in text.splitlines() if line[:5] == "data:"]
        if events[-1] != "[DONE]":
            raise ValueError(f"a stream without an end: {text[-200:]}")
        choices = [choice for e in events[:-1] for choice in json.loads(e)["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)
    body = json.loads(text)
    if api == "chat":
        return str(body["choices"][0]["message"]["content"])
    if api == "completions":
        return str(body["choices"][0]["text"])
    if api == "responses":
        return "".join(part["text"] for item in body["output"] for part in item["content"])
    return "".join(block["text"] for block in body["content"])


class Load:
    """Clients whose answers are compared with those that each adapter gives alone."""

    def __init__(self, url: str, model: str, adapters: list[str], seed: int) -> None:
        self.url, self.model, self.adapters = url, model, adapters
        self.rng = Random(seed)
        words = [
            " ".join(self.rng.choices(WORDS, k=self.rng.randint(2, 40))) for _ in range(PROMPTS)
        ]
        self.prompts = words
        self.alone: dict[tuple[bool, str, str], str] = {}
        """Answers by (whether of the completions API, adapter, prompt)."""
        self.result = Result()

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, timeout=600, trust_env=False)

    async def answer_alone(self, operator: Operator) -> None:
        """Each adapter's answer to each prompt, with nothing else under way. Prompts to which two adapters give the
        same answer are left out."""
        for adapter in (BASE, *self.adapters):
            name = NAMES[0]
            if adapter != BASE:
                await operator.call(name, adapter)
            for api in ("chat", "completions"):
                for prompt in self.prompts:
                    model = self.model if adapter == BASE else name
                    path, body = request_of(api, model, prompt)
                    response = await operator.client.post(path, json=body)
                    text = text_of(api, response.raise_for_status().text)
                    self.alone[api == "completions", adapter, prompt] = text
            if adapter != BASE:
                await operator.call(name, None)
        self.prompts = [prompt for prompt in self.prompts if self._distinguishes(prompt)]
        if not self.prompts:
            self.result.errors.append("no prompt distinguishes the adapters")

    def _distinguishes(self, prompt: str) -> bool:
        forms, adapters = (False, True), (BASE, *self.adapters)
        return all(
            len({self.alone[form, a, prompt] for a in adapters}) == len(adapters) for form in forms
        )

    async def send(self, client: httpx2.AsyncClient, operator: Operator, rng: Random) -> str:
        """One request, whose end is counted and returned."""
        name, api, prompt = rng.choice((BASE, *NAMES)), rng.choice(APIS), rng.choice(self.prompts)
        path, body = request_of(api, self.model if name == BASE else name, prompt)
        leave = 0.3 * rng.random() if rng.random() < DISCONNECTED else None
        begin = time.monotonic()
        try:
            async with asyncio.timeout(leave):
                response = await client.post(path, json=body)
        except TimeoutError:
            self.result.ends["disconnected"] += 1
            return "disconnected"
        except httpx2.HTTPError as error:
            self.result.ends["lost"] += 1
            self.result.errors.append(f"{api} to {name}: {error!r}")
            return "lost"
        end = self.judge(operator, name, api, prompt, response, begin)
        self.result.ends[end] += 1
        if end in ("wrong", "lost"):
            text = response.text[:300]
            self.result.errors.append(f"{end}: {api} to {name}: {response.status_code} {text}")
        return end

    def judge(
        self,
        operator: Operator,
        name: str,
        api: str,
        prompt: str,
        response: httpx2.Response,
        begin: float,
    ) -> str:
        possible = operator.possible(name, begin, time.monotonic())
        if response.status_code == 404:
            return "refused" if None in possible else "lost"
        if response.status_code != 200:
            return "lost"
        try:
            text = text_of(api, response.text)
        except (ValueError, KeyError):
            return "lost"
        form = api == "completions"
        right = {self.alone[form, a, prompt] for a in possible if a is not None}
        return "right" if text in right else "wrong"

    async def run(self, pid: int, requests: int, clients: int) -> Result:
        process, left, done = psutil.Process(pid), iter(range(requests)), asyncio.Event()
        async with self.client() as client:
            operator = Operator(client, self.adapters, self.result)
            await self.answer_alone(operator)
            self.result.resident.append(process.memory_info().rss)
            work = asyncio.create_task(operator.work(Random(self.rng.random()), done))

            async def send_all(rng: Random) -> None:
                async with self.client() as own:
                    for number in left:
                        while await self.send(own, operator, rng) == "refused":
                            await asyncio.sleep(REFUSED)
                        if number % 100 == 99:
                            self.result.resident.append(process.memory_info().rss)

            await asyncio.gather(*(send_all(Random(self.rng.random())) for _ in range(clients)))
            done.set()
            await work
            await asyncio.sleep(1.0)
            self.result.resident.append(process.memory_info().rss)
            models = [m["id"] for m in (await client.get("/v1/models")).json()["data"]]
            if left_over := set(models) & set(NAMES):
                self.result.errors.append(f"models that were unloaded: {left_over}")
            running = (await gauges(client))["num_requests_running"]
            if running:
                self.result.errors.append(f"{running} requests are still running")
        return self.result


def report(result: Result, seconds: float) -> dict[str, Any]:
    resident = result.resident
    return {
        "requests": result.ends.total() - result.ends["refused"],
        "by end": dict(result.ends),
        "calls": dict(result.calls),
        "seconds": seconds,
        "memory before": resident[0],
        "memory peak": max(resident),
        "memory after": resident[-1],
        "resident": resident,
        "errors": result.errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0],
        usage="%(prog)s MODEL [options] [-- options of polyphi serve]",
    )
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    last = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:last])
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(Path(folder), read_config(args.model).decoder)
        options = ["--name", BASE, "--adapter-folder", folder, *sys.argv[last + 1 :]]
        with server(args.model, options) as (process, url, log):
            load, began = Load(url, BASE, adapters, args.seed), time.monotonic()
            result = report(
                asyncio.run(load.run(process.pid, args.requests, args.clients)),
                time.monotonic() - began,
            )
            if "Traceback" in log.read_text():
                result["errors"].append("the server's log has a traceback")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    console = Console()
    for name, value in result.items():
        text = f"{value / 2**20:.1f} MiB" if name.startswith("memory") else value
        if name == "resident":
            text = ", ".join(f"{one / 2**20:.0f}" for one in value)
        console.print(f"{name}: {text}", highlight=False)
    sys.exit(1 if result["errors"] else 0)


if __name__ == "__main__":
    main()
