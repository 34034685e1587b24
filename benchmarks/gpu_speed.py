"""The checks of gpu.py that train and measure speed. Bounds are shares of the GPU's peak (the plan's table), or of its
rate of reading memory measured in the same process; at the tiny size a speed has none."""

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from gpu_models import Line, language, median_seconds, random_packed, text_rows, wait
from torch import Tensor

from polyphi.checkpoints.processor import make_processor
from polyphi.data.packing import Pack
from polyphi.engine.engine import Engine
from polyphi.model.decoder import DecoderLayer, ForwardContext
from polyphi.model.multimodal import PhiModel
from polyphi.planning.assumptions import UTILISATION
from polyphi.planning.devices import peak_flops
from polyphi.prepared.prepare import prepare
from polyphi.quantization.integer_weights import Quantized
from polyphi.quantization.quantize import head_of
from polyphi.train import parallel
from polyphi.train.loss import NextToken
from polyphi.train.memory import activations
from polyphi.train.optimizer import make_optimizer, set_lr
from polyphi.train.stage_loss import StageLoss
from polyphi.types.sampling import SamplingParams
from polyphi_recipe import stages
from polyphi_recipe.stages import sizes

READS = 0.6
"""[ours] Least share of the rate of reading memory that decoding one sequence reaches: a step is a recorded graph of
small products, whose kernels reach 70 to 90 % of it, and sampling is outside of it."""
FULL_TOKENS = 4096
"""Tokens of a training step at the published size."""


def read_rate(device: torch.device, tiny: bool) -> float:
    """Bytes per second of reading the device's memory, at best."""
    values = torch.ones((1 << 20) if tiny else (1 << 31), dtype=torch.bfloat16, device=device)
    times = []
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        values.view(-1, 1 << 15).amax(1)
        wait(device)
        times.append(time.perf_counter() - start)
    return values.nbytes / min(times)


def judged(tiny: bool, bound: float | None) -> float | None:
    """The bound of a speed, except at the tiny size, whose speed says nothing."""
    return None if tiny else bound


# ------------------------------------------------------------------------------ training


def training(device: torch.device, tiny: bool) -> Iterator[Line]:
    """Three steps of `text_1` on the same pack, alone and sharded over a process group of one (FSDP2)."""
    size = sizes.MICRO if tiny else sizes.LAB
    stage = stages.at_size("text_1_pretrain", size)
    budget = size.budget(stage)
    config = replace(size.model, vision=None, audio=None, adapters={})
    budget = replace(budget, muon_lr_factor=0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=address, rank=0, world_size=1)
    losses: dict[str, list[float]] = {}
    rate, tokens = 0.0, 128 if tiny else 16_384
    for name in ("whole", "sharded"):
        model = PhiModel(config)
        model.initialise(0)
        model = prepare(model.to(device)).train()
        if name == "sharded":
            parallel.shard(model, "bf16", 1)
        named = {f"decoder.{n}": p for n, p in model.decoder.named_parameters()}
        optimizer = make_optimizer(stage, named, budget)
        loss = StageLoss(NextToken(), model, None, None, "bf16")
        batch = Pack(text_rows(model, tokens, 8))
        losses[name] = []
        for _ in range(4):
            wait(device)
            start = time.perf_counter()
            record = loss.accumulate([batch])
            parallel.clip_gradients(list(named.values()), 1 / record["count"], 1.0)
            set_lr(optimizer, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            wait(device)
            rate = tokens / (time.perf_counter() - start)
            losses[name].append(record["loss"])
        del model, optimizer, loss, named
    torch.distributed.destroy_process_group()
    first, last = losses["sharded"][0], losses["sharded"][-1]
    yield Line(
        f"training, loss after 3 of {first:.4f}",
        last,
        "",
        0.98 * first,
        note="bf16, FSDP2 over one process",
    )
    value = max(abs(a / b - 1) for a, b in zip(losses["whole"], losses["sharded"], strict=True))
    note = "relative difference of losses; bf16 rounds the weights of both alike (2^-9)"
    yield Line("training, sharded and whole", value, "", 2**-9, note=note)
    yield Line("training, last step", rate, "tokens/s", note="of size lab" if not tiny else "tiny")


def block(device: torch.device, tiny: bool) -> Iterator[Line]:
    """Model FLOPs utilisation of one block of the decoder, forward and backward, in bf16."""
    model = language(torch.device("meta"), tiny)
    d, tokens, rows = model.config.decoder, 128 if tiny else 8192, 2
    layer = prepare(DecoderLayer(d, {})).to(device, torch.bfloat16)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    x = torch.randn(tokens, d.hidden_size, device=device, dtype=torch.bfloat16, requires_grad=True)
    length = tokens // rows
    batch = text_rows(model, tokens, rows).to(device)
    cos, sin = model.decoder.rope(batch, torch.bfloat16)
    context = ForwardContext(cos, sin, (), tuple(range(0, tokens + 1, length)), None)
    gradient = torch.randn_like(x)

    def step() -> None:
        layer(x, context, 0).backward(gradient)

    seconds = median_seconds(device, step, 5)
    products = 6 * tokens * sum(p.numel() for p in layer.parameters() if p.ndim > 1)
    scores = 6 * rows * length**2 * d.num_attention_heads * d.head_dim  # half of them are masked
    flops = (products + scores) / seconds
    if (peak := peak_flops(device)) is None:
        yield Line("block, forward and backward", flops / 1e12, "TFLOP/s", note="no peak is known")
        return
    note = f"{flops / 1e12:.0f} TFLOP/s; the plan assumes {UTILISATION} of whole steps"
    yield Line("block, MFU", flops / peak, "", judged(tiny, UTILISATION), True, note)


# ------------------------------------------------------------------------------ inference


def generation_rate(engine: Engine, sequences: int, prompt: int, tokens: int) -> float:
    """Tokens per second of decoding `sequences` at once, after four tokens of each, which record the graph."""
    vocabulary, draw = engine.model.config.decoder.vocab_size, torch.Generator().manual_seed(0)
    prompts = torch.randint(vocabulary, (sequences, prompt), generator=draw).tolist()
    sampling = SamplingParams(max_tokens=4 + tokens, ignore_eos=True)
    requests = [engine.submit(ids, sampling=sampling) for ids in prompts]
    device = engine.model.decoder.device
    while min(len(r.tokens) for r in requests) < 4:
        engine.step()
    before = sum(len(r.tokens) for r in requests)
    wait(device)
    start = time.perf_counter()
    while not all(r.finish_reason for r in requests):
        engine.step()
    wait(device)
    return (sum(len(r.tokens) for r in requests) - before) / (time.perf_counter() - start)


def weight_bytes(model: PhiModel) -> int:
    """Bytes of the weights that a token needs: the table of embeddings where it is the head too."""
    decoder = model.decoder
    weights: list[Tensor] = [p for n, p in decoder.named_parameters() if n != "embed_tokens.weight"]
    for module in decoder.modules():
        if isinstance(kernel := getattr(module, "kernel", None), Quantized):
            weights += kernel.tensors()
    head = head_of(model)
    weights += [decoder.embed_tokens.weight] if head is None else head.tensors()
    return sum(weight.nbytes for weight in weights)


def decode(device: torch.device, tiny: bool) -> Iterator[Line]:
    """Decoding by the engine in bf16, one sequence and 32."""
    yield from _decode(device, tiny, language(device, tiny), "bf16")


def _decode(device: torch.device, tiny: bool, model: PhiModel, name: str) -> Iterator[Line]:
    prompt, tokens = (20, 8) if tiny else (520, 100)
    limit = read_rate(device, tiny) / weight_bytes(model)
    engine = Engine(model, make_processor(model.config, None))
    one = generation_rate(engine, 1, prompt, tokens)
    note = f"{one / limit:.2f} of reading {weight_bytes(model) / 1e9:.2f} GB of weights a token"
    bound = judged(tiny, READS * limit if name == "bf16" else None)
    yield Line(f"decode {name}, 1 sequence", one, "tokens/s", bound, True, note)
    many = generation_rate(engine, 32, prompt, tokens)
    note = "32 sequences share the reading of weights [ours: 8 times as fast]"
    bound = judged(tiny, 8 * one if name == "bf16" else None)
    yield Line(f"decode {name}, 32 sequences", many, "tokens/s", bound, True, note)
    if name == "bf16" and device.type == "cuda":
        engine.runner.run = engine.runner.packed  # type: ignore[method-assign]
        plain = generation_rate(engine, 1, prompt, tokens)
        note = f"without CUDA graphs {plain:.4g} tokens/s"
        yield Line("decode, graphs over none", one / plain, "", judged(tiny, 1.0), True, note)


def prefill(device: torch.device, tiny: bool) -> Iterator[Line]:
    """Prompts of 2,048 tokens by the engine in bf16."""
    model = language(device, tiny)
    prompt, prompts = (64, 2) if tiny else (2048, 4)
    engine = Engine(model, make_processor(model.config, None), prefix_cache=False)
    ids = torch.randint(model.config.decoder.vocab_size, (prompts, prompt)).tolist()
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    seconds = median_seconds(device, lambda: engine.generate_many(ids, sampling=sampling), 3)
    rate = prompts * prompt / seconds
    peak, layers = peak_flops(device), sum(p.numel() for p in model.decoder.layers.parameters())
    bound = None if peak is None else judged(tiny, UTILISATION * peak / (2 * layers))
    note = f"{2 * layers * rate / 1e12:.1f} TFLOP/s of linear layers; {UTILISATION} of the peak"
    yield Line("prefill bf16", rate, "tokens/s", bound, True, note)


def base_step(device: torch.device, tiny: bool) -> Iterator[Line]:
    """A training step of an adapter of rank 64 at the published size on a base in bf16 and in int4."""
    rates, memory = {}, {}
    for name in ("bf16", "int4"):
        model = language(device, tiny, adapters=True)
        if name == "int4":
            random_packed(model, "int4", gradients=True)
        trained = [p for n, p in model.named_parameters() if ".lora." in n]
        for parameter in trained:
            parameter.data = parameter.data.float()
            parameter.requires_grad_()
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        loss = StageLoss(NextToken(), model.train(), None, None, "bf16")
        tokens = 64 if tiny else FULL_TOKENS
        batch = Pack(text_rows(model, tokens, 4, "vision"))
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

        def step(loss: StageLoss = loss, batch: Pack = batch, optimizer: Any = optimizer) -> None:
            loss.accumulate([batch])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        with activations(model, "recompute"):
            rates[name] = tokens / median_seconds(device, step, 3)
        if device.type == "cuda":
            memory[name] = torch.cuda.max_memory_allocated(device) / 1e9
        yield Line(
            f"adapter on {name}", rates[name], "tokens/s", note=f"{tokens} tokens, recomputed"
        )
        del model, trained, optimizer, loss, step
    bound = judged(tiny, 0.8)
    yield Line("adapter, int4 over bf16", rates["int4"] / rates["bf16"], "", bound, True, "speed")
    if not memory:
        yield Line("adapter, memory", skip="measured on a GPU only")
        return
    note = f"{memory['int4']:.1f} of {memory['bf16']:.1f} GB at most; embeddings stay in bf16"
    bound = judged(tiny, 0.7)
    yield Line("adapter, memory", memory["int4"] / memory["bf16"], "", bound, note=note)


def decode_int4(device: torch.device, tiny: bool) -> Iterator[Line]:
    """Decoding by the engine with weights in int4."""
    bf16 = next(_decode(device, tiny, language(device, tiny), "bf16")).value
    model = random_packed(language(device, tiny), "int4", gradients=False)
    lines = list(_decode(device, tiny, model, "int4"))
    note = f"{bf16:.4g} tokens/s in bf16 [ours: faster by a fifth]"
    yield replace(lines[0], bound=judged(tiny, 1.2 * bf16), note=f"{lines[0].note}; {note}")
    yield lines[1]
