"""A loaded model with everything one asks of it: `polyphi.load` and `Phi`.

>>> phi = load("path/or/hub-id")
>>> phi.generate([Message.user("Hello")]).text
>>> phi.transcribe("talk.wav", to="de", cot=True).translation
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polyphi import devices
from polyphi.chat import (
    Completion,
    Delta,
    Message,
    SamplingParams,
    Tokens,
    Transcript,
)
from polyphi.devices import Room
from polyphi.engine import longform, memory
from polyphi.engine.engine import GREEDY, TOGETHER, Conversation, Engine
from polyphi.engine.longform import LONGEST_RECORDING
from polyphi.model import quantize, weights
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.media import AudioSource
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer


class Phi:
    """Model, tokenizer and processor. It has the `Generate` protocol (chat.py), so `polyphi.eval` can judge it.
    `room` tells what it takes and leaves where it was loaded."""

    def __init__(self, model: PhiModel, processor: Processor, **engine: Any) -> None:
        self.engine = Engine(model, processor, **engine)
        self.room: Room | None = None

    @property
    def model(self) -> PhiModel:
        return self.engine.model

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together: what the model reads, or there is memory for."""
        return self.engine.longest

    @property
    def processor(self) -> Processor:
        return self.engine.processor

    @property
    def tokenizer(self) -> Tokenizer:
        return self.processor.tokenizer

    def generate(
        self,
        messages: Conversation,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Completion:
        """The assistant's answer to `Message`s or OpenAI-style dicts."""
        return self.engine.generate(messages, sampling=sampling, adapter=adapter)

    def generate_many(
        self,
        conversations: Iterable[Conversation],
        *,
        sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
        adapter: str | None = "auto",
    ) -> list[Completion]:
        """Answers to many conversations, decoded together; each is the one it would get alone.
        `sampling` is one for all, or one for each."""
        return self.engine.generate_many(conversations, sampling=sampling, adapter=adapter)

    def stream(
        self,
        messages: Conversation,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Iterator[Delta]:
        """The answer in pieces, as it comes; joined they are `generate`'s text."""
        return self.engine.stream(messages, sampling=sampling, adapter=adapter)

    def count(self, messages: Conversation) -> Tokens:
        """Tokens of a conversation with the generation prompt, before anything runs: as many as `generate` will
        report. Of pictures and of most clips only headers are read."""
        return self.processor.count(messages)

    def score(
        self, messages: Conversation, continuation: str, *, adapter: str | None = "auto"
    ) -> list[float]:
        """Natural log-probability of each token of `continuation` as the assistant's answer."""
        return self.engine.score(messages, continuation, adapter=adapter)

    def score_many(
        self, pairs: Iterable[tuple[Conversation, str]], *, adapter: str | None = "auto"
    ) -> list[list[float]]:
        """`score` of many (conversation, continuation) pairs."""
        return self.engine.score_many(pairs, adapter=adapter)

    def transcribe(
        self,
        audio: AudioSource,
        *,
        to: str | None = None,
        cot: bool = False,
        sampling: SamplingParams | None = None,
        adapter: str | None = "auto",
        window: float | None = None,
        words: Literal["estimated", "aligned"] | None = None,
        max_seconds: float = LONGEST_RECORDING,
    ) -> Transcript:
        """What a recording (path, bytes, or float32 samples and rate) says. `to` (a code such as "de", or a language's
        name) asks for a translation; with `cot` the model writes the transcript first and translates after it, which
        is better and gives both (report 2.2.2), otherwise the transcript stays empty.

        Up to 30 minutes, or what the context holds, are heard at once, longer recordings in pieces cut at quiet points
        (engine/longform.py). `window` asks for shorter pieces, in seconds: the times of segments are then as sure as
        they are short. `words` asks for the times of words, "estimated" by letters over voiced time or "aligned" by
        attention (engine/align.py). What is left out or doubtful stands in the transcript's `warnings`. With
        `sampling` answers are taken as they come; without it they are greedy, and asked for again where they loop or
        break off.

        Prompts are the published ones. `adapter` as in `generate`. Raises ValueError for a language that the model
        wasn't trained for, and for a recording that can't be read or lasts more than `max_seconds` (a day).
        """
        return self.transcribe_many(
            [audio],
            to=to,
            cot=cot,
            sampling=sampling,
            adapter=adapter,
            window=window,
            words=words,
            max_seconds=max_seconds,
        )[0]

    def transcribe_many(
        self,
        audios: Sequence[AudioSource],
        *,
        to: str | None = None,
        cot: bool = False,
        sampling: SamplingParams | None = None,
        adapter: str | None = "auto",
        window: float | None = None,
        words: Literal["estimated", "aligned"] | None = None,
        max_seconds: float = LONGEST_RECORDING,
        tell: Callable[[float], None] = lambda seconds: None,
    ) -> list[Transcript]:
        """`transcribe` of many recordings, answered together where they are short. `tell` hears how many seconds of
        audio have just been finished. Raises ValueError if any of them can't be read."""
        task = longform.transcription(to, cot)
        task = replace(task, adapter=adapter, sampling=sampling, words=words)
        return longform.transcribe(
            self.engine, audios, task, window=window, max_seconds=max_seconds, tell=tell
        )

    def logits(
        self,
        messages_or_ids: Conversation | Sequence[int] | Int[Tensor, " n"],
        images: Sequence[Any] = (),
        audios: Sequence[Any] = (),
        *,
        adapter: str | None = "auto",
    ) -> tuple[Int[Tensor, " T"], Float[Tensor, "T V"]]:
        """(ids after placeholder expansion, float32 logits at every position), for exact comparison.

        Messages get the generation prompt. Ids are taken as they are, with `images` and `audios` (paths or bytes) for
        their placeholders, in order; "auto" then looks at which of the two are given.
        """
        given: list[Any] = (
            messages_or_ids.tolist()
            if isinstance(messages_or_ids, Tensor)
            else list(messages_or_ids)
        )
        if not given:
            raise ValueError("expected messages or token ids, found an empty list")
        if isinstance(given[0], Message | Mapping):
            if images or audios:
                raise ValueError(
                    "pictures and clips of messages stand in their parts; images= and audios= go with ids"
                )
            row = self.engine.row(given, adapter=adapter)
        else:
            row = self.engine.ids_row(given, images, audios, adapter=adapter)
        return row.ids, self.engine.logits(row)


def load(
    path_or_id: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quant: str | None = None,
    together: int = TOGETHER,
    cache_gb: float | None = None,
    kv: str | None = None,
) -> Phi:
    """A `Phi` from a checkpoint folder or a hub id, in any public layout (`model/weights.py`).

    `device`: "auto" takes CUDA where there is one, else Apple's MPS, else the CPU. `dtype`: "auto" keeps what is stored
    where the device is fast in it, or takes float32 (devices.py); or a name such as "float32" or "bfloat16". `quant`:
    None keeps every weight as it is; "int8" and "int4" quantise the decoder's base weights and the head (adapters and
    all else in bfloat16), "int8-all" and "int4-all" adapters and encoders too (in 8 bits), "bf16" only lays out the
    encoders for this CPU (`model/quantize.py`): such a model is for inference. A quantised checkpoint is what it is,
    and needs none. `together`: sequences that run at once; `cache_gb`: memory for their keys and values (engine.py has
    the default); `kv`: "int8" keeps these in 8 bits, in half of the memory (on a CPU). Raises ValueError, one clear
    message each, also where the weights don't fit.
    """
    place = devices.choose(device)
    folder = weights.locate(path_or_id)
    made = weights.quantisation(folder)
    requested = None if dtype == "auto" else as_dtype(dtype)
    tokenizer = Tokenizer.load(folder)
    stored, free = weights.stored_types(folder), memory.free_memory(place)
    config = weights.read_config(folder)
    kind = requested or devices.choose_dtype(stored, place, free, config, quant or made)
    if made:
        needed = weights.stored_bytes(folder)
    else:
        saved = quantize.saved(config, quant)
        needed = max(0, devices.size(stored, kind) - saved)
    devices.check_fits(needed, free, place)
    model = weights.load(folder, device=place, dtype=kind, quant=quant)
    cache = None if cache_gb is None else round(cache_gb * 1e9)
    phi = Phi(
        model, make_processor(model.config, tokenizer), together=together, memory=cache, kv=kv
    )
    phi.room = devices.room(model, free, place, phi.engine.capacity, kv)
    return phi


def make_processor(config: ModelConfig, tokenizer: Tokenizer) -> Processor:
    """The processor whose crops and placeholders fit a model. Raises ValueError if tokenizer and model disagree."""
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the embedding only {config.decoder.vocab_size} rows; "
            "they don't belong together"
        )
    for kind, part, found in (
        ("image", config.vision and config.vision.image_token_id, tokenizer.image_id),
        ("audio", config.audio and config.audio.audio_token_id, tokenizer.audio_id),
    ):
        if part is not None and part != found:
            raise ValueError(
                f"config.json says the {kind} placeholder is id {part}, the tokenizer's is {found}"
            )
    if config.vision is None:
        return Processor(tokenizer)
    return Processor(
        tokenizer, config.vision.crop_size, config.vision.patch_size, config.vision.max_crops
    )


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """A type of weights by its name."""
    found = name if isinstance(name, torch.dtype) else getattr(torch, name, None)
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"dtype must be 'auto', 'float32', 'bfloat16' or 'float16', found {name!r}"
        )
    return found
