"""A loaded model with everything one asks of it: `polyphi.load` and `Phi`.

>>> phi = load("path/or/hub-id")
>>> phi.generate([Message.user("Hello")]).text
>>> phi.transcribe("talk.wav", to="de", cot=True).translation
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polyphi.chat import (
    TRANSCRIBE,
    Audio,
    Completion,
    Delta,
    MediaSource,
    Message,
    SamplingParams,
    Transcript,
)
from polyphi.engine.engine import GREEDY, Conversation, Engine
from polyphi.model import weights
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.media import decode_audio
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer

LANGUAGES = {
    "en": "English",
    "zh": "Chinese",
    "fr": "French",
    "de": "German",
    "it": "Italian",
    "ja": "Japanese",
    "pt": "Portuguese",
    "es": "Spanish",
}
"""The languages of speech input (report, table of supported languages) as the published prompts name them."""
TRANSLATE = "Translate the audio to {language}."
TRANSCRIBE_AND_TRANSLATE = (
    "Transcribe the audio to text, and then translate the audio to {language}. "
    "Use <sep> as a separator between the original transcript and the translation."
)
SEPARATOR = "<sep>"
TOKENS_PER_SECOND = 8
"""Room for the text of a second of speech; quick speakers need about five."""

AudioSource = MediaSource | tuple[np.ndarray, int]


class Phi:
    """Model, tokenizer and processor. It has the `Generate` protocol (chat.py), so `polyphi.eval` can judge it."""

    def __init__(self, model: PhiModel, processor: Processor) -> None:
        self.engine = Engine(model, processor)

    @property
    def model(self) -> PhiModel:
        return self.engine.model

    @property
    def config(self) -> ModelConfig:
        return self.model.config

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
    ) -> Transcript:
        """What a clip (path, bytes, or float32 samples and rate) says. `to` (a code such as "de", or a language's
        name) asks for a translation; with `cot` the model writes the transcript first and translates after it, which
        is better and gives both (report 2.2.2), otherwise the transcript stays empty.

        Prompts are the published ones. `adapter` as in `generate`. Raises ValueError for a language that the model
        wasn't trained for.
        """
        wave, rate = decode_audio(audio)
        seconds = len(wave) / rate
        if cot and to is None:
            raise ValueError(
                "cot=True writes a transcript and then a translation; say which language with to="
            )
        if to is None:
            prompt = TRANSCRIBE
        else:
            prompt = (TRANSCRIBE_AND_TRANSLATE if cot else TRANSLATE).format(language=_language(to))
        messages = [Message.user(Audio((wave, rate)), prompt)]
        answer = self.generate(
            messages,
            sampling=sampling or self._room(messages, seconds, twice=cot),
            adapter=adapter,
        )
        warnings = []
        if answer.finish_reason == "length":
            warnings.append(
                f"the answer was cut after {len(answer.tokens)} tokens; the end of the clip may be missing"
            )
        text, translation = answer.text.strip(), None
        if cot:
            text, found, rest = (piece.strip() for piece in answer.text.partition(SEPARATOR))
            translation = rest if found else None
            if not found:
                warnings.append(
                    f"the model wrote no {SEPARATOR}, so its answer holds no separate translation"
                )
        elif to is not None:
            text, translation = "", text
        return Transcript(text, seconds, translation, tuple(warnings))

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

    def _room(self, messages: Sequence[Message], seconds: float, *, twice: bool) -> SamplingParams:
        """Greedy, with tokens for as much text as the clip can hold, within the context."""
        wanted = 64 + math.ceil(seconds * TOKENS_PER_SECOND) * (2 if twice else 1)
        left = self.config.decoder.max_position_embeddings - self.processor.count(messages)
        return SamplingParams(max_tokens=max(1, min(wanted, left)))


def load(
    path_or_id: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quant: str | None = None,
) -> Phi:
    """A `Phi` from a checkpoint folder or a hub id, in any public layout (`model/weights.py`).

    `device`: "auto" takes CUDA where there is one, else the CPU. `dtype`: "auto" keeps what is stored, or a name such
    as "float32" or "bfloat16". `quant`: None keeps every weight as it is; "int8" and "int4" quantise the decoder's base
    weights and the head (adapters and all else in bfloat16), "bf16" only lays out the encoders for this CPU
    (`model/quantize.py`): such a model is for inference. Raises ValueError, one clear message each.
    """
    if quant and dtype == "auto":
        dtype = torch.bfloat16
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = weights.locate(path_or_id)
    tokenizer = Tokenizer.load(folder)
    kind = None if dtype == "auto" else as_dtype(dtype)
    model = weights.load(folder, device=device, dtype=kind, quant=quant)
    return Phi(model, make_processor(model.config, tokenizer))


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


def _language(to: str) -> str:
    names = {name.lower(): name for name in LANGUAGES.values()}
    if name := LANGUAGES.get(to.lower()) or names.get(to.lower()):
        return name
    known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
    raise ValueError(f"unknown language {to!r}; the model translates speech to {known}")
