"""What the checks of gpu.py share: a line of the table, random models and rows, measures."""

import io
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image as Picture
from torch import Tensor

from polyphi.checkpoints.processor import make_processor
from polyphi.model.config import AdapterConfig, ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization.integer_weights import Quantized
from polyphi.quantization.quantize import EMBEDDING, parts
from polyphi.types.batch import Batch, pack, row
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from polyphi_recipe.stages import sizes


@dataclass(frozen=True)
class Line:
    """A line of the table. `least`: whether `bound` is the smallest value that passes, instead of the largest. Without
    a bound a value is reported only. `note`: where the bound comes from."""

    work: str
    value: float = math.nan
    unit: str = ""
    bound: float | None = None
    least: bool = False
    note: str = ""
    skip: str = ""
    failure: str = ""

    @property
    def verdict(self) -> str:
        if self.failure:
            return "fail"
        if self.skip:
            return "skipped"
        if not math.isfinite(self.value):
            return "fail"
        if self.bound is None:
            return "no bound"
        passes = self.value >= self.bound if self.least else self.value <= self.bound
        return "pass" if passes else "fail"

    def to_json(self) -> dict[str, Any]:
        """Its fields and verdict; a value that is no number is null."""
        value = self.value if math.isfinite(self.value) else None
        return {**asdict(self), "value": value, "verdict": self.verdict}


# ------------------------------------------------------------------------------ models and rows


def multimodal(tiny: bool) -> tuple[PhiModel, Processor]:
    """A random model of all modalities, `lab` or tiny, on the CPU, whose weights are numbers of bfloat16. Adapters
    aren't zero."""
    tokenizer = Tokenizer.train(["which colours does it have ? a word or two about it ."] * 4, 512)
    config = (sizes.MICRO if tiny else sizes.LAB).model
    assert config.vision is not None and config.audio is not None
    decoder = replace(config.decoder, eos_token_ids=())
    if tiny:  # with weights that have a form in 4 bits
        shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        decoder = replace(decoder, **shape, vocab_size=tokenizer.vocab_size)
    config = replace(
        config,
        decoder=decoder,
        vision=replace(config.vision, image_token_id=tokenizer.image_id),
        audio=replace(config.audio, audio_token_id=tokenizer.audio_id),
    )
    model = prepare(PhiModel(config))
    model.initialise(0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora." in name and name.endswith(".b"):
                parameter.normal_(std=0.02, generator=draw)
    model = model.bfloat16().float().eval().requires_grad_(False)
    return model, make_processor(config, tokenizer)


def conversations(tiny: bool) -> list[list[Message]]:
    """Text, an image of noise, an audio clip of noise."""
    random, image, audio = np.random.default_rng(0), io.BytesIO(), io.BytesIO()
    side = (60, 80) if tiny else (600, 800)
    Picture.fromarray(random.integers(0, 256, (*side, 3), np.uint8)).save(image, "PNG")
    noise = 0.1 * random.standard_normal(6_000 if tiny else 48_000)
    soundfile.write(audio, noise, 16_000, format="WAV")
    question = "which colours does it have ? " * (1 if tiny else 20)
    media = ([], [Image(image.getvalue())], [Audio(audio.getvalue())])
    return [[Message.user(*some, question)] for some in media]


def language(device: torch.device, tiny: bool, *, adapters: bool = False) -> PhiModel:
    """The language model at the published size, or tiny, random in bfloat16 on the device."""
    config = ModelConfig(vision=None, audio=None, adapters={})
    if tiny:
        shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = replace(config, decoder=replace(sizes.MICRO.model.decoder, **shape))
    if adapters:
        config = replace(config, adapters={"vision": AdapterConfig(4 if tiny else 64, 8.0)})
    with torch.device("meta"):
        model = prepare(PhiModel(config))
    model = model.bfloat16().to_empty(device=device).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.fill_("norm" in name)
    return model


def random_packed(model: PhiModel, scheme: str, *, gradients: bool) -> PhiModel:
    """The model with random bytes as its quantized weights, without their quantization, which takes a minute at the
    published size; with `gradients` as `quantize_frozen` leaves it."""
    device = model.decoder.device
    for part in parts(model, scheme):
        if gradients and part.name == EMBEDDING and device.type != "cpu":
            continue
        pieces = {}
        for name, (dtype, shape) in part.form.layout(part.shape).items():
            if dtype == torch.uint8:
                pieces[name] = torch.randint(256, shape, dtype=dtype)
            else:
                pieces[name] = torch.full(shape, {4: 1e-5, 6: 5e-6, 8: 1e-6}[part.form.bits])
        part.put(Quantized.stored(pieces, part.shape, device, gradients=gradients))
    model.quant = scheme
    return model


def text_rows(model: PhiModel, tokens: int, rows: int, adapter: str | None = None) -> Batch:
    """A pack of rows of random tokens, all supervised."""
    draw = torch.Generator().manual_seed(0)
    length, vocabulary = tokens // rows, model.config.decoder.vocab_size
    ids = torch.randint(vocabulary, (rows, length), generator=draw).tolist()
    return pack([row(some, supervise=[True] * length, adapter=adapter) for some in ids])


# ------------------------------------------------------------------------------ measures


def difference(result: Tensor, expected: Tensor) -> float:
    """The error of a tensor relative to the expected one, both in the 2-norm. Infinite for NaN."""
    error = (
        result.double().cpu() - expected.double().cpu()
    ).norm() / expected.double().cpu().norm()
    return float(error) if bool(error.isfinite()) else math.inf


def wait(device: torch.device) -> None:
    """Wait until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(device: torch.device, work: Callable[[], object], repeats: int) -> float:
    """The median duration of some work; two first runs aren't timed."""
    times = []
    for repeat in range(repeats + 2):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        if repeat > 1:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def whole_float32() -> Iterator[None]:
    """While active, float32 products are float32, not TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
