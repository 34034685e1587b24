"""The checks of gpu.py whose results must be right: logits, packs, recorded graphs, attention, gradients.

Bounds are rounding, measured in the same process: the error of a CPU in the same dtype against float64. A GPU rounds as
often, but sums in another order (ALLOWED).
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from gpu_models import Line, conversations, difference, multimodal, whole_float32
from torch import Tensor

from polyphi.engine.engine import Engine
from polyphi.engine.graphs import DecodeGraphs
from polyphi.engine.runner import Runner
from polyphi.model.attention import explicit_attention
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.attention import packed_attention, ragged_attention, varlen_supported
from polyphi.prepared.prepare import prepare
from polyphi.quantization.integer_weights import Quantized
from polyphi.quantization.quantize import BASES, head_of, quantize_frozen
from polyphi.train.loss import NextToken
from polyphi.types.batch import Batch, pack
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
ALLOWED = {"float32": 4.0, "bf16": 2.0}
"""[ours] A result may have this many times the error of a CPU in the same dtype. In float32 it may have more, since a
GPU's exponential, sine and cosine aren't as accurate there; bfloat16 is too coarse for that to matter."""


@torch.inference_mode()
def all_logits(model: PhiModel, batch: Batch) -> Tensor:
    return model.logits(model(batch.to(model.decoder.device))).double().cpu()


def rounding(model: PhiModel, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """(logits in float64, the errors of a CPU in float32 and bfloat16)."""
    truth = all_logits(copy.deepcopy(model).double(), batch)
    errors = {
        name: difference(all_logits(copy.deepcopy(model).to(dtype), batch), truth)
        for name, dtype in DTYPES.items()
    }
    return truth, errors


def mixed_rows(tiny: bool) -> tuple[PhiModel, list[Batch]]:
    model, processor = multimodal(tiny)
    return model, [processor.row(c, generation_prompt=True) for c in conversations(tiny)]


def logits(device: torch.device, tiny: bool) -> Iterator[Line]:
    """CPU against GPU: one pack of text, an image and a clip, each with its adapter."""
    model, rows = mixed_rows(tiny)
    batch = pack(rows)
    truth, errors = rounding(model, batch)
    for name, dtype in DTYPES.items():
        with whole_float32():
            result = all_logits(copy.deepcopy(model).to(device, dtype), batch)
        bound = ALLOWED[name] * errors[name]
        note = f"error of logits against float64; a CPU's in {name}: {errors[name]:.2g}"
        yield Line(f"logits, {name}", difference(result, truth), "", bound, note=note)


def packed(device: torch.device, tiny: bool) -> Iterator[Line]:
    """A pack against its rows alone."""
    model, rows = mixed_rows(tiny)
    _, errors = rounding(model, pack(rows))
    for name, dtype in DTYPES.items():
        ours = copy.deepcopy(model).to(device, dtype)
        with whole_float32():
            together = all_logits(ours, pack(rows))
            alone = torch.cat([all_logits(ours, one) for one in rows])
        note = f"both round; a CPU's error in {name}: {errors[name]:.2g}"
        yield Line(
            f"packed and alone, {name}",
            difference(together, alone),
            "",
            ALLOWED[name] * errors[name],
            note=note,
        )


def graphs(device: torch.device, tiny: bool) -> Iterator[Line]:
    """The recorded decode step against the packed forward, over a greedy answer of all modalities."""
    model, processor = multimodal(tiny)
    rows = [processor.row(c, generation_prompt=True) for c in conversations(tiny)]
    _, errors = rounding(model, pack(rows))
    compared: list[tuple[Tensor, Tensor]] = []
    recorded: list[DecodeGraphs] = []

    def both(self: Runner, step: Any, memory: Any) -> Any:
        decoding = all(p.size == 1 and p.samples and not p.request.features for p in step)
        replayed = None
        if decoding:
            if not recorded:
                recorded.append(DecodeGraphs(self.model, memory))
            replayed = recorded[0].run(step, [self.rope.length(p.request) for p in step]).clone()
        outputs = self.packed(step, memory)
        if replayed is not None:
            compared.append((replayed, torch.cat([output.logits for output in outputs])))
        return outputs

    engine = Engine(model.to(device, torch.bfloat16), processor)
    engine.runner.run = both.__get__(engine.runner)  # type: ignore[method-assign]
    texts = [c for c in conversations(tiny) for _ in range(2)][:5]
    lengths = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (6, 9, 12, 15, 18)]
    engine.generate_many(texts, sampling=lengths)
    if not compared:
        yield Line("CUDA graphs", failure="no step was recorded")
        return
    results, expected = (torch.cat([pair[i].flatten() for pair in compared]) for i in (0, 1))
    note = f"{len(compared)} decode steps of up to 5 sequences; both round; a CPU's error: {errors['bf16']:.2g}"
    value, bound = difference(results, expected), ALLOWED["bf16"] * errors["bf16"]
    yield Line("CUDA graphs and none, bf16", value, "", bound, note=note)


NEW, CACHED = (300, 37, 10, 700), (0, 500, 900, 100)
"""Tokens of each sequence that attend, and those that are cached before them."""


def formula(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], lengths: Sequence[int]
) -> Tensor:
    """Attention by its formula, sequence by sequence."""
    outs = []
    for queries, k, v in zip(q.split(list(lengths)), keys, values, strict=True):
        new, total, group = len(queries), len(k), q.shape[1] // k.shape[1]
        masked = torch.ones(new, total, dtype=torch.bool, device=q.device).triu(total - new + 1)
        k, v = (x.repeat_interleave(group, 1).transpose(0, 1)[None] for x in (k, v))
        outs.append(explicit_attention(queries.transpose(0, 1)[None], k, v, masked)[0])
    return torch.cat([out.transpose(0, 1) for out in outs])


def attention(device: torch.device, tiny: bool) -> Iterator[Line]:
    """Variable-length attention against the formula in float64: a pack with its gradients, and cached tokens."""
    new, cached = ([n // (10 if tiny else 1) for n in some] for some in (NEW, CACHED))
    heads, kv_heads, d = (4, 2, 16) if tiny else (24, 8, 128)
    draw = torch.Generator().manual_seed(0)

    def noise(tokens: int, heads: int) -> Tensor:
        return torch.randn(tokens, heads, d, generator=draw).bfloat16()

    q, k, v = (noise(sum(new), n) for n in (heads, kv_heads, kv_heads))
    totals = [a + b for a, b in zip(new, cached, strict=True)]
    keys, values = ([noise(n, kv_heads) for n in totals] for _ in range(2))
    gradient = noise(sum(new), heads)
    bounds = [0, *np.cumsum(new).tolist()]

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return formula(q, k.split(new), v.split(new), new)

    def with_gradients(
        attend: Callable[..., Tensor], where: torch.device, dtype: torch.dtype
    ) -> list[Tensor]:
        inputs = [x.to(where, dtype, copy=True).requires_grad_() for x in (q, k, v)]
        out = attend(*inputs)
        return [out.detach(), *torch.autograd.grad(out, inputs, gradient.to(where, dtype))]

    cpu = torch.device("cpu")
    truth = with_gradients(exact, cpu, torch.float64)
    yardstick = with_gradients(exact, cpu, torch.bfloat16)
    result = with_gradients(lambda *x: packed_attention(*x, bounds), device, torch.bfloat16)
    whole = formula(q.double(), [x.double() for x in keys], [x.double() for x in values], new)
    rounded = formula(q, keys, values, new)
    where = [[x.to(device) for x in some] for some in (keys, values)]
    continued = ragged_attention(q.to(device), where[0], where[1], new)
    names = (
        "output",
        "gradient of queries",
        "gradient of keys",
        "gradient of values",
        "cached tokens",
    )
    kernel = "varlen_attn" if varlen_supported(q.to(device)) else "loop of fused calls"
    for name, value, expected, close in zip(
        names, [*result, continued], [*truth, whole], [*yardstick, rounded], strict=True
    ):
        error = difference(close, expected)
        note = f"against float64, by a {kernel}; the formula in bf16 on a CPU: {error:.2g}"
        yield Line(
            f"attention, {name}",
            difference(value, expected),
            "",
            ALLOWED["bf16"] * error,
            note=note,
        )
    if device.type == "cuda" and not varlen_supported(q.to(device)):
        yield Line("attention, varlen_attn", skip="this torch has none with grouped heads")


# ------------------------------------------------------------------------------ quantized base


def base(device: torch.device, tiny: bool) -> Iterator[Line]:
    """Gradients of adapters and projectors on a quantized base, against the same weights on a CPU without kernels."""
    model, processor = multimodal(tiny)
    questions = [[*c, Message.assistant("a word or two")] for c in conversations(tiny)]
    batch = pack([processor.row(c, supervise="answers") for c in questions])
    trained = [n for n, _ in model.named_parameters() if ".lora." in n or ".projector." in n]

    def gradients(model: PhiModel) -> Tensor:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        loss, _, _ = NextToken().loss(model, None, None, batch.to(model.decoder.device))
        loss.backward()
        grads = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
        return torch.cat(grads)

    with whole_float32():
        for scheme in BASES:
            ours = quantize_frozen(copy.deepcopy(model).to(device), scheme, trained)
            expected = gradients(numbers(copy.deepcopy(model), ours))
            note = "of adapters and projectors; float32 on a CPU with the same numbers"
            if device.type == "cpu":
                note += "; our CPU kernels round activations to 8 bits"
            value, bound = (
                difference(gradients(ours), expected),
                0.02 if device.type == "cpu" else 1e-4,
            )
            yield Line(f"gradients on {scheme}", value, "", bound, note=note)


def numbers(model: PhiModel, quantized: PhiModel) -> PhiModel:
    """The unquantized model with the numbers that the weights of a quantized one stand for."""
    modules = dict(model.named_modules())
    for path, module in quantized.named_modules():
        if isinstance(kernel := getattr(module, "kernel", None), Quantized):
            weight: Any = modules[path].get_parameter("weight")
            weight.copy_(unpacked(kernel).view_as(weight))
    if (head := head_of(quantized)) is not None:
        prepare(model.decoder).head = head  # type: ignore[assignment]
    return model


def unpacked(weight: Quantized) -> Tensor:
    return weight.rows(torch.arange(weight.shape[0], device=weight.row.device)).cpu()
