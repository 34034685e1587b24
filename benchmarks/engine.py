"""The model and the engine against transformers' own classes, on the same random weights at the published size:

- decode: one sequence, the tokens after a prompt of 256 (Phi3ForCausalLM with its cache)
- prefill: that prompt
- conformer, siglip: a clip of 30 s; a crop of 448 pixels (Phi4Multimodal's encoders with their default attention), as
  stored, laid out for this CPU ("bf16") and in 8 bits ("int8-all")
- mixed batch: eight requests (text, image, audio) in one batch, against the same one after another
- transcription (`--parts transcription`): the whole transcription of a 30 s clip by the engine alone, in int8-all

    polyphi bench engine [--json]
    python benchmarks/engine.py --layers 4 --parts decoder

transformers computes in the precision in which it is fastest on this machine (`sidebyside.fastest_precision`), which is
part of the peer's name: bfloat16, or float32 on a CPU without bfloat16 instructions. There each decode row names the
faster of the two, since one token takes about the same time in both. Ours is what `polyphi.load` gives on this machine:
weights in bfloat16, multiplied in float32 where the CPU has no bfloat16 instructions. In bfloat16 both sides hold the
same tensors; in float32 the peer has its own copies, and where all of them don't fit into the free memory, the decoder
is cut to 8 layers, which the peer's name says (`--layers` overrides this).

Sides take turns in one process with the same threads; results are medians. The int8 rows have the same peer, since the
library has no int8 for a CPU. Limits are measured in the same run: the rate of reading memory for decode (bytes of
weights that a token needs), that of int8 products for int8 rows, that of products in bfloat16, or in float32 where
these are faster, for all others; the run prints which. transformers' default attention makes full crops causal, which
spares it half of the scores; ours sees the whole crop. `--json` has the rows of the published list alone; the table has
the others too.

A CPU with AVX2 alone is emulated by

    ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 POLYPHI_MAX_CPU_ISA=AVX2 \\
        python benchmarks/engine.py

which limits torch, MKL, oneDNN and our own kernels.
"""

import argparse
import io
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture
from sidebyside import (
    Row,
    Transformers,
    choose_transformers,
    console,
    product_limit,
    read_rate,
    show,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polyphi.api import Phi
from polyphi.checkpoints.names import tensor_names
from polyphi.checkpoints.processor import make_processor
from polyphi.devices import placement
from polyphi.devices.memory import free_memory, other_tensors, tensor_bytes
from polyphi.engine.cache import BLOCK, BlockPool, BlockTable, Memory, StepCache
from polyphi.engine.engine import Engine
from polyphi.model.config import AudioConfig, DecoderConfig, ModelConfig, VisionConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.matrix_products import matrix_products
from polyphi.prepared.memory import model_bytes
from polyphi.prepared.prepare import prepare
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization import quantize as quantized
from polyphi.quantization.integer_weights import EIGHT, Quantized
from polyphi.quantization.quantize import quantize
from polyphi.types.batch import row
from polyphi.types.inputs.audio import AudioLayout
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text
from polyphi.types.sampling import SamplingParams

HERE = Path(__file__).parent
PARTS = ("decoder", "encoders", "mixed", "transcription")
CONTRACT = PARTS[:3]
"""The parts whose rows are in the JSON list; they run by default."""
DECODER = "-decoder"
"""Suffix of a number of layers that the decoder alone is cut to."""
CUT = 8
"""Layers of a decoder that doesn't fit into memory with its peer."""
CACHE = 500_000_000
"""Bytes of keys and values for a transcription."""
BUFFERS = 1.5e9
"""Bytes of caches and activations in addition to the weights."""


@dataclass(frozen=True)
class Size:
    """The model and the work."""

    config: ModelConfig = field(default_factory=ModelConfig)
    prompt: int = 256
    tokens: int = 4
    """Decoded in one turn."""
    frames: int = 3000
    """Of 10 ms."""
    answer: int = 16
    """Tokens of each of the mixed requests."""
    transcript: int = 64
    """Tokens of a transcription."""

    def cut(self, layers: int | None, *, encoders: bool = True) -> "Size":
        """The same with `layers` layers in the decoder, and in the encoders too if they are cut (`encoders`); None
        leaves it whole."""
        if layers is None:
            return self
        c = self.config
        if not encoders:
            config = replace(c, decoder=replace(c.decoder, num_hidden_layers=layers))
            return replace(self, config=config)
        assert c.vision is not None and c.audio is not None
        config = replace(
            c,
            decoder=replace(c.decoder, num_hidden_layers=layers),
            vision=replace(c.vision, num_hidden_layers=layers + 1),
            audio=replace(c.audio, num_blocks=layers),
        )
        return replace(self, config=config)

    def at(self, depth: str) -> "Size":
        """`cut` by a text, as peers' processes receive it: "all", "8" layers of every tower, or "8-decoder"."""
        layers = None if depth == "all" else int(depth.removesuffix(DECODER))
        return self.cut(layers, encoders=not depth.endswith(DECODER))


# ------------------------------------------------------------------------------ models


class Noise:
    """Random tensors of a model: matrices are normal with deviation 0.02, norms 1, biases 0. One stretch of noise,
    rounded to bfloat16, is repeated over all matrices end to end. No row's length divides its length, so no two
    matrices are equal: a peer that deduplicates equal ones would keep one."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        noise = torch.empty(4_000_037)
        noise.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
        self.noise, self.position = noise.bfloat16().to(dtype), 0

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """The tensor of that name in the model."""
        dtype = self.noise.dtype
        if len(shape) == 1:
            unit = ("norm" in name and name.endswith("weight")) or name.endswith("global_invstd")
            return torch.full(tuple(shape), float(unit), dtype=dtype)
        result = torch.empty(tuple(shape), dtype=dtype)
        flat, length = result.view(-1), len(self.noise)
        start = -(self.position % length)
        for first in range(start, len(flat), length):
            last = min(first + length, len(flat))
            skipped = max(0, -first)
            flat[first + skipped : last] = self.noise[skipped : last - first]
        self.position += len(flat)
        return result


def random_model(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> PhiModel:
    """A model with `Noise` as its weights, which has the same values in every dtype."""
    noise = Noise(dtype)
    with torch.device("meta"):
        model = prepare(PhiModel(config))
    state = {name: noise.tensor(name, t.shape) for name, t in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def random_quantized(config: ModelConfig, kind: str) -> PhiModel:
    """A quantized model with `Noise` as its weights, as loaded from a quantized checkpoint: embeddings are rows of the
    head. Each weight is quantized before the next one is made, so that the whole model is never in memory."""
    noise = Noise()
    with torch.device("meta"):
        model = PhiModel(config)
    for part in quantized.parts(model, kind):
        shape = model.get_parameter(part.name).shape
        part.put(Quantized(noise.tensor(part.name, shape).flatten(1), part.form))
    if quantized.head_of(model) is not None:
        model.decoder.embed_tokens.register_parameter("weight", None)
    state = {name: noise.tensor(name, t.shape) for name, t in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return quantized.finish(model, kind).eval().requires_grad_(False)


def public(model: PhiModel, layout: str, prefix: str = "") -> dict[str, Tensor]:
    """The model's own tensors by the names that transformers has for them, behind `prefix`."""
    state = model.state_dict()
    names = tensor_names(model.config, layout).items()
    return {
        name.removeprefix(prefix): state[entry.ours].reshape(entry.shape)
        for name, entry in names
        if name.startswith(prefix)
    }


def decoder_options(d: DecoderConfig) -> dict[str, Any]:
    """The language model's sizes in transformers' words."""
    same = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "max_position_embeddings original_max_position_embeddings rms_norm_eps rope_theta partial_rotary_factor "
        "sliding_window pad_token_id bos_token_id"
    )
    factors = {k: list(getattr(d, k)) for k in ("short_factor", "long_factor")}
    return {name: getattr(d, name) for name in same.split()} | {
        "rope_scaling": {"type": "longrope", **factors},
        "eos_token_id": d.bos_token_id,
        "tie_word_embeddings": True,
    }


def vision_options(v: VisionConfig) -> dict[str, Any]:
    """The vision tower's."""
    same = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads crop_size patch_size layer_norm_eps "
        "image_token_id"
    )
    return {name: getattr(v, name) for name in same.split()} | {"image_size": v.crop_size}


def audio_options(a: AudioConfig) -> dict[str, Any]:
    """The audio tower's."""
    same = (
        "hidden_size intermediate_size num_blocks num_attention_heads ext_pw_out_channel nemo_conv_channels "
        "depthwise_separable_out_channel bias_max_distance audio_token_id"
    )
    return {name: getattr(a, name) for name in same.split()}


def peer_decoder(model: PhiModel, dtype: torch.dtype = torch.bfloat16) -> Any:
    """transformers' language model on the same tensors, or on copies of them in another dtype."""
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(**decoder_options(model.config.decoder))
    with torch.device("meta"):
        peer = Phi3ForCausalLM(config)
    state = in_dtype(public(model, "mini"), dtype)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    peer.load_state_dict(state, assign=True)
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config)  # its tables are in no checkpoint
    return peer.eval()


def peer_vision(model: PhiModel, dtype: torch.dtype = torch.bfloat16) -> Any:
    """transformers' SigLIP, likewise."""
    from transformers import Phi4MultimodalVisionConfig
    from transformers.models.phi4_multimodal.modeling_phi4_multimodal import (
        Phi4MultimodalVisionModel,
    )

    assert model.config.vision is not None
    config = Phi4MultimodalVisionConfig(**vision_options(model.config.vision))
    prefix = "model.embed_tokens_extend.image_embed.img_processor."
    peer = Phi4MultimodalVisionModel._from_config(config, dtype=dtype)
    return filled(peer, in_dtype(public(model, "native", prefix), dtype))


def peer_audio(model: PhiModel, dtype: torch.dtype = torch.bfloat16) -> Any:
    """transformers' Conformer, likewise."""
    from transformers import Phi4MultimodalAudioConfig
    from transformers.models.phi4_multimodal.modeling_phi4_multimodal import (
        Phi4MultimodalAudioModel,
    )

    assert model.config.audio is not None
    config = Phi4MultimodalAudioConfig(**audio_options(model.config.audio))
    prefix = "model.embed_tokens_extend.audio_embed.encoder."
    peer = Phi4MultimodalAudioModel._from_config(config, dtype=dtype)
    return filled(peer, in_dtype(public(model, "native", prefix), dtype))


def filled(peer: Any, state: Mapping[str, Tensor]) -> Any:
    peer.load_state_dict(state, assign=True)
    return peer.eval().requires_grad_(False)


def in_dtype(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in that dtype: the same ones where they have it."""
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def tensors(model: nn.Module) -> Iterator[Tensor]:
    """Everything that a model holds, quantized weights too."""
    yield from (*model.parameters(), *model.buffers(), *other_tensors(model))


def language(config: ModelConfig) -> ModelConfig:
    """Its language model alone."""
    return replace(config, vision=None, audio=None, adapters={})


def endless(config: ModelConfig) -> tuple[ModelConfig, Tokenizer]:
    """The same model, whose answers are all as long as they may be, with a small tokenizer."""
    tokenizer = Tokenizer.train(PHRASES, vocab_size=384)
    assert config.vision is not None and config.audio is not None
    return replace(
        config,
        decoder=replace(config.decoder, eos_token_ids=()),
        vision=replace(config.vision, image_token_id=tokenizer.image_id),
        audio=replace(config.audio, audio_token_id=tokenizer.audio_id),
    ), tokenizer


def read_per_token(model: PhiModel) -> int:
    """Bytes of weights that a decoded token needs: all of the decoder's, but for an embedding where there is a
    separate head."""
    decoder = model.decoder
    all_bytes = sum(tensor_bytes(t) for t in tensors(decoder))
    table = decoder.embed_tokens.weight
    return all_bytes - (
        table.nbytes if quantized.head_of(model) is not None and table is not None else 0
    )


# ------------------------------------------------------------------------------ timing


def paired(
    sides: Mapping[str, Callable[[], object]], repeats: int, per: float = 1.0
) -> dict[str, float]:
    """Median of `per` / seconds of each side; sides take turns after one turn that isn't timed."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    rates = {name: per / statistics.median(s) for name, s in seconds.items()}
    text = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
    console.print(f"  {text}", highlight=False)
    return rates


def int8_rate(size: int = 2048, seconds: float = 2.0) -> float:
    """Operations/s of a square int8 matrix product, as `matmul_rate` for bfloat16."""
    product = Quantized(torch.randn(size, size, dtype=torch.bfloat16), EIGHT)
    x = torch.randn(size, size, dtype=torch.bfloat16)
    best, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        product(x)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


# ------------------------------------------------------------------------------ works


def decoder(size: Size, repeats: int, library: Transformers) -> tuple[list[Row], list[Row]]:
    """Decode and prefill."""
    config = language(size.config)
    ours = random_model(config)
    peers = {library.precision: peer_decoder(ours, library.dtype)}
    if library.chosen and library.precision != "bf16":
        peers["bf16"] = peer_decoder(ours)  # on the same tensors, so it takes no memory
    small = quantize(random_model_on(ours), "int8")
    ids = torch.randint(config.decoder.vocab_size, (size.prompt + size.tokens,))
    prompt, more = ids[: size.prompt], ids[size.prompt :]

    blocks = -(-len(ids) // BLOCK)
    memories, tables = {}, {}
    for model in (ours, small):
        device = torch.device("cpu")
        memories[id(model)] = Memory(config.decoder, blocks, torch.bfloat16, device)
        tables[id(model)] = BlockTable(BlockPool(blocks))
        tables[id(model)].grow(len(ids))

    def ours_run(model: PhiModel, part: Tensor, start: int) -> Tensor:
        """The logits behind `part`, which begins at position `start`; the engine's cache holds what is before it."""
        table = tables[id(model)]
        table.length, end = start, start + len(part)
        batch = row(part.tolist())
        batch = replace(batch, positions=batch.positions + start, seq_lens=(end,))
        hidden = model(batch, StepCache(memories[id(model)], [table], [len(part)]))
        return model.logits(hidden[-1:]).float()

    caches: dict[str, Any] = {}

    def peer_run(name: str, part: Tensor, start: int) -> Tensor:
        """The same logits by the peer in that precision."""
        if start == 0:
            caches[name] = None
        elif surplus := caches[name].get_seq_length() - start:
            caches[name].crop(-surplus)
        out = peers[name].model(
            input_ids=part[None],
            past_key_values=caches[name],
            position_ids=torch.arange(start, start + len(part))[None],
            use_cache=True,
        )
        caches[name] = out.past_key_values
        # The last row by itself: of `logits_to_keep=1` torch 2.13 makes a product over a view with odd strides, which
        # takes 58 times as long (3072 x 20064, one core), and that is no part of this comparison.
        return peers[name].lm_head(out.last_hidden_state[0, -1:]).float()

    def fastest_decode() -> str:
        """The precision in which the peer decodes one token in less time, of three steps each."""
        if len(peers) == 1:
            return library.precision
        start, count = 16, 3
        seconds: dict[str, list[float]] = {}
        for name in peers:
            peer_run(name, prompt[:start], 0)
            peer_run(name, more[:1], start)
        for step in range(1, count + 1):
            for name in peers:
                began = time.perf_counter()
                peer_run(name, more[:1], start + step)
                seconds.setdefault(name, []).append(time.perf_counter() - began)
        text = ", ".join(f"{name} {min(s):.3g} s" for name, s in seconds.items())
        console.print(f"  a token of the peer takes: {text}", highlight=False)
        return min(seconds, key=lambda name: min(seconds[name]))

    def decode(step: Callable[[Tensor, int], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for i in range(size.tokens):
                step(more[i : i + 1], size.prompt + i)

        return run

    steps: dict[str, Callable[[Tensor, int], Tensor]] = {
        "bf16": lambda part, start: ours_run(ours, part, start),
        "peer": lambda part, start: peer_run(library.precision, part, start),
        "int8": lambda part, start: ours_run(small, part, start),
    }
    decoding = fastest_decode()
    first = {name: step(prompt, 0) for name, step in steps.items()}
    same_work(first["bf16"], first["peer"], 0.05)
    same_work(first["int8"], first["peer"], 0.3)
    fill = paired({k: lambda s=s: s(prompt, 0) for k, s in steps.items()}, repeats, size.prompt)  # type: ignore[misc]
    if decoding != library.precision:
        steps["peer"] = lambda part, start: peer_run(decoding, part, start)
        same_work(first["bf16"], steps["peer"](prompt, 0), 0.05)
    read = read_rate()
    rates = paired({k: decode(s) for k, s in steps.items()}, repeats, size.tokens)
    read = max(read, read_rate())
    console.print(f"  memory is read at {read / 1e9:.1f} GB/s", highlight=False)

    d = config.decoder
    layer = sum(p.numel() for p in ours.decoder.layers.parameters())
    flops = 2 * layer + 4 * size.prompt / 2 * d.hidden_size * d.num_hidden_layers  # per token
    rows = []
    names = {"decode": replace(library, precision=decoding).name, "prefill": library.name}
    for kind, model, most in (("bf16", ours, bf16_limit()), ("int8", small, int8_rate())):
        share = rates[kind] * read_per_token(model) / read
        work = f"decode {kind}"
        rows.append(Row(work, rates[kind], rates["peer"], names["decode"], "tok/s", share))
        share = fill[kind] * flops / most
        work = f"prefill {kind}"
        rows.append(Row(work, fill[kind], fill["peer"], names["prefill"], "tok/s", share))
    return rows, []


def bf16_limit() -> float:
    """FLOP/s of matrix products that bfloat16 weights can reach here; their precision is printed."""
    rate, name = product_limit()
    console.print(
        f"  limit of bf16 rows: {name} products, {rate / 1e9:.0f} GFLOP/s", highlight=False
    )
    return rate


def parameters(config: ModelConfig) -> int:
    """The number of a model's parameters."""
    with torch.device("meta"):
        return sum(p.numel() for p in PhiModel(config).parameters())


def fitting(size: Size, library: Transformers) -> tuple[Size, Transformers]:
    """The decoder's size and peer: cut to `CUT` layers, which the peer's name says, where both sides at once need more
    than the free memory."""
    count = parameters(language(size.config))
    # ours in bfloat16 and in int8, and the peer's own copies in float32
    needed = count * (2 + 1.05 + (0 if library.precision == "bf16" else 4)) + BUFFERS
    free = free_memory(torch.device("cpu"))
    if needed <= free or size.config.decoder.num_hidden_layers <= CUT:
        return size, library
    console.print(
        f"  both sides at full size take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: {CUT} layers",
        highlight=False,
    )
    return size.cut(CUT, encoders=False), replace(library, cut=f"{CUT} layers")


def random_model_on(model: PhiModel) -> PhiModel:
    """Another model that holds the same tensors."""
    with torch.device("meta"):
        other = prepare(PhiModel(model.config))
    other.load_state_dict(model.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def same_work(ours: Tensor, peer: Tensor, most: float) -> None:
    """Check that both sides compute the same within `most`, relative to the peer's norm."""
    off = float((ours - peer).norm() / peer.norm())
    assert off < most, f"ours and the peer's result differ by {off:.3f} of its size"


def encoders(size: Size, repeats: int, library: Transformers) -> tuple[list[Row], list[Row]]:
    """The Conformer on a clip, SigLIP on a crop: in bf16 laid out for this CPU (`quantize(model, "bf16")`), and beside
    these rows as `polyphi.load` stores them without `quant`, and in 8 bits."""
    cpu = torch.device("cpu")
    d = replace(size.config.decoder, num_hidden_layers=1, vocab_size=256)  # it isn't run
    model = random_model(replace(size.config, decoder=d, adapters={}))
    v = model.config.vision
    assert model.vision is not None and model.audio is not None and v is not None
    model.audio.encoder.global_invstd.fill_(0.3)
    model.audio.encoder.global_mean.fill_(8.0)
    eyes, ears = peer_vision(model, library.dtype), peer_audio(model, library.dtype)
    crops = torch.randn(1, 3, v.crop_size, v.crop_size).bfloat16()
    masks = torch.ones(1, v.grid, v.grid, dtype=torch.bool)
    mels, clips = (
        (8 + 3 * torch.randn(size.frames, 80)).bfloat16(),
        [AudioLayout(size.frames, "speech")],
    )
    whole = {torch.bfloat16: parameters(size.config)}
    stored = placement.choose_dtype(whole, cpu, free_memory(cpu)) or torch.bfloat16
    kinds: dict[str, PhiModel] = {
        f"as stored, {str(stored).removeprefix('torch.')}": random_model_on(model).to(stored),
        "int8-all": quantize(random_model_on(model), "int8-all"),
        "bf16": quantize(model, "bf16"),
    }
    peers: dict[str, Callable[[], Tensor]] = {
        "conformer": lambda: ears(mels[None].to(library.dtype), None)[0],
        "siglip": lambda: eyes(
            crops.to(library.dtype), patch_attention_mask=masks, output_hidden_states=True
        ).hidden_states[-2],
    }
    works: dict[str, dict[str, Callable[[], Tensor]]] = {
        "conformer": {k: lambda m=m: m.audio.encoder(mels, clips) for k, m in kinds.items()},  # type: ignore[misc]
        "siglip": {k: lambda m=m: m.vision.encoder(crops, masks) for k, m in kinds.items()},  # type: ignore[misc]
    }
    limits = {"bf16": bf16_limit(), "int8-all": int8_rate()}
    rows, others = [], []
    for name, sides in works.items():
        # The peer's: operations inside our own kernels, and oneDNN's of 8 bits, are out of the counter's sight.
        with FlopCounterMode(display=False) as counter:
            expected = peers[name]().float()
        flops: float = counter.get_total_flops()
        if (
            name == "siglip"
        ):  # it runs the last layer, and a head that reads all patches once, whose output is unused
            flops *= (v.num_hidden_layers - 1) / v.num_hidden_layers
        else:
            for side in sides.values():
                same_work(side().float(), expected, 0.1)
        rates = paired(sides | {"peer": peers[name]}, repeats)
        unit = "clips/s" if name == "conformer" else "crops/s"
        for kind in kinds:
            share = flops * rates[kind] / limits.get(kind, limits["bf16"])
            label, where = (name, rows) if kind == "bf16" else (f"{name}, {kind}", others)
            where.append(Row(label, rates[kind], rates["peer"], library.name, unit, share))
    return rows, others


def speech(frames: int, seed: int) -> np.ndarray:
    """A wave of `frames` 10 ms at 16 kHz that the silence detector takes for speech: a voice's harmonics in syllables
    of a quarter of a second."""
    time_ = np.arange(frames * 160) / 16_000
    pitch = 120 + seed
    voice = sum(np.sin(2 * np.pi * pitch * n * time_) / n for n in range(1, 20))
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * time_)
    noise = 0.001 * np.random.default_rng(seed).standard_normal(len(time_))
    return (0.1 * voice * syllables + noise).astype(np.float32)


def transcription(size: Size, repeats: int, library: Transformers) -> tuple[list[Row], list[Row]]:
    """The transcription of a clip in int8-all, from samples to text: `size.transcript` answer tokens, decoded one by
    one. It has no peer."""
    cpu, kind = torch.device("cpu"), "int8-all"
    config, tokenizer = endless(size.config)
    needed = 2 * parameters(config) - quantized.saved_bytes(config, kind) + CACHE
    placement.check_fits(needed, free_memory(cpu), cpu)
    model = random_quantized(config, kind)
    phi = Phi(model, make_processor(config, tokenizer), memory=CACHE)
    sampling = SamplingParams(max_tokens=size.transcript, draft=0)
    seconds = []
    for repeat in range(repeats + 1):
        wave = speech(
            size.frames, repeat
        )  # another one each time, since encoder outputs are cached
        start = time.perf_counter()
        transcript = phi.transcribe((wave, 16_000), sampling=sampling)
        if repeat:
            seconds.append(time.perf_counter() - start)
        assert transcript.answer_tokens == size.transcript, transcript
    console.print(
        f"  {kind}: {in_gigabytes(model)} GB of weights, {transcript.audio_tokens} audio tokens, "
        f"{transcript.answer_tokens} answer tokens, {statistics.median(seconds):.2f} s",
        highlight=False,
    )
    rate = 1 / statistics.median(seconds)
    return [], [Row(f"transcription {kind}", rate, math.nan, "none", "clips/s")]


def in_gigabytes(model: PhiModel) -> str:
    return f"{model_bytes(model) / 1e9:.1f}"


QUESTION = "what do you see"
PHRASES = [QUESTION, "what do you hear", "the quick brown fox", "1 + 2 = 3"]


def requests(size: Size, side: int) -> list[list[Message]]:
    """Eight: four of text, two of a picture, two of a clip."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Picture.fromarray(noise).save(file, "PNG")
    wave = 0.1 * rng.standard_normal(size.frames * 160 // 6).astype(np.float32)  # 5 s of 30
    texts = [[Message.user(Text(f"{PHRASES[2]} {n} " * 10))] for n in range(4)]
    pictured = [[Message.user(Image(file.getvalue()), Text(f"{PHRASES[0]} {n}"))] for n in range(2)]
    spoken = [[Message.user(Audio((wave, 16_000)), Text(f"{PHRASES[1]} {n}"))] for n in range(2)]
    return [*texts, *pictured, *spoken]


def mixed(size: Size, repeats: int, library: Transformers) -> tuple[list[Row], list[Row]]:
    """Requests of text, images and audio in one batch, against the same one after another."""
    config, tokenizer = endless(size.config)
    assert config.vision is not None
    model = quantize(random_model(config), "bf16")
    processor = make_processor(config, tokenizer)
    conversations, sampling = (
        requests(size, config.vision.crop_size),
        SamplingParams(max_tokens=size.answer),
    )

    def one_batch() -> int:
        """Tokens of all answers, by an engine with empty caches."""
        done = Engine(model, processor).generate_many(conversations, sampling=sampling)
        return sum(len(answer.tokens) for answer in done)

    def one_by_one() -> None:
        engine = Engine(model, processor)
        for messages in conversations:
            engine.generate(messages, sampling=sampling)

    rates = paired({"one batch": one_batch, "one by one": one_by_one}, repeats, one_batch())
    name = "polyphi, one after another"
    row_ = Row("mixed batch", rates["one batch"], rates["one by one"], name, "tok/s", None)
    return [row_], []


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The model and the engine against transformers.")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows on stdout")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, help="of every tower; all without")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=CONTRACT)
    parser.add_argument(
        "--peer-dtype",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="precision of transformers; auto is the one that is faster on this machine",
    )
    args = parser.parse_args(arguments)
    try:
        version("transformers")
    except PackageNotFoundError as error:
        parser.error(
            f"the peer needs {error.name}: pip install -r {HERE / 'peers/requirements.txt'}"
        )
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    size = Size().cut(args.layers)
    library = choose_transformers(matrix_products(size.config), args.peer_dtype)
    works = {
        "decoder": decoder,
        "encoders": encoders,
        "mixed": mixed,
        "transcription": transcription,
    }
    rows, others = [], []
    with torch.inference_mode():
        for part in args.parts:
            console.print(f"[bold]{part}[/bold]")
            whole = part != "decoder" or args.layers is not None
            sized, peer = (size, library) if whole else fitting(size, library)
            part_rows, part_others = works[part](sized, args.repeats, peer)
            rows += part_rows
            others += part_others
    show(rows, as_json=args.json, others=others)


if __name__ == "__main__":
    main()
