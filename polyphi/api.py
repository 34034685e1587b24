"""A loaded model with everything one asks of it: `polyphi.load` and `Phi`.

>>> phi = load("path/or/hub-id")
>>> phi.generate([Message.user("Hello")]).text
>>> phi.transcribe("talk.wav", to="de", cot=True).translation
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polyphi.batch import Batch
from polyphi.checkpoints.read import (
    load_checkpoint,
    locate,
    read_config,
    read_quantization,
    stored_bytes,
    stored_types,
)
from polyphi.engine import memory, placement
from polyphi.engine.engine import GREEDY, MAX_NUM_SEQS, Engine
from polyphi.engine.placement import MemoryReport
from polyphi.engine.prompt import Conversation, Prompt, parse_prompt
from polyphi.messages import Audio, Completion, Delta, Image, SamplingParams, Tokens, Transcript
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.media import AudioSource
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import NoTokenizer, Tokenizer
from polyphi.quantization import quantize
from polyphi.transcription import longform
from polyphi.transcription.longform import LONGEST_RECORDING


class Phi:
    """Model, tokenizer and processor. It has the `Generate` protocol (chat.py), so `polyphi.eval` can judge it.
    `room` tells what it takes and leaves where it was loaded."""

    def __init__(self, model: PhiModel, processor: Processor, **engine: Any) -> None:
        self.engine = Engine(model, processor, **engine)
        self.room: MemoryReport | None = None

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
        """The tokenizer; a `NoTokenizer`, which refuses text, after `load(..., tokenizer=None)`."""
        return self.processor.tokenizer

    def generate(
        self,
        messages: Prompt,
        images: Sequence[Any] = (),
        audios: Sequence[Any] = (),
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Completion:
        """The assistant's answer to `Message`s or OpenAI-style dicts, or the continuation of token ids.

        `messages` may be a sequence of ints, a tensor [n] or a `TokensPrompt`; ids get no generation prompt. `images`
        and `audios` (what `Image` and `Audio` take, or these) go with ids and fill their placeholders in order, one
        placeholder for each or a run of as many as it has tokens. `Completion.tokens` are the generated ids. `adapter`:
        "auto" (images -> vision, audio alone -> speech, text -> none), the name of an adapter, or "none" or None.

        Raises ValueError for an unknown adapter, media that can't be read or that the model has no encoder for,
        placeholders that don't fit the media, and a prompt that doesn't fit the context together with `max_tokens`.
        """
        prompt = parse_prompt(messages, images, audios)
        return self.engine.generate(prompt, sampling=sampling, adapter=adapter)

    def generate_many(
        self,
        conversations: Iterable[Prompt],
        *,
        sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
        adapter: str | None = "auto",
    ) -> list[Completion]:
        """Answers to many conversations or prompts of token ids, decoded together; each is the one it would get alone.
        `sampling` is one for all, or one for each. Ids with media are `TokensPrompt`s. Raises as `generate`."""
        return self.engine.generate_many(conversations, sampling=sampling, adapter=adapter)

    def stream(
        self,
        messages: Prompt,
        images: Sequence[Any] = (),
        audios: Sequence[Any] = (),
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Iterator[Delta]:
        """The answer in pieces, as it comes: their texts join to `generate`'s text, their `tokens` to its tokens.
        Arguments and errors are those of `generate`; errors are raised before the first piece."""
        prompt = parse_prompt(messages, images, audios)
        return self.engine.stream(prompt, sampling=sampling, adapter=adapter)

    def count(self, messages: Conversation) -> Tokens:
        """Tokens of a conversation with the generation prompt, before anything runs: as many as `generate` will
        report. Of pictures and of most clips only headers are read."""
        return self.processor.count(messages)

    def tokenize(self, messages: Conversation, *, generation_prompt: bool = True) -> list[int]:
        """The token ids of a conversation, placeholders repeated as often as their images and clips have tokens.

        `generate` of these ids, with the same images and audio clips in order, gives the answer of `messages`. Only the
        headers of images and of WAV, FLAC and OGG clips are read; MP3 clips and videos are decoded. With
        `generation_prompt` the ids end in `<|assistant|>`, without it in `<|endoftext|>`. Raises ValueError for media
        that can't be read and without a tokenizer.
        """
        return self.processor.tokenize(messages, generation_prompt=generation_prompt)

    def embed(
        self, part: Image | Audio, *, projector: Literal["speech", "vision"] = "speech"
    ) -> Float[Tensor, "n D"]:
        """The projected embeddings of one image or audio clip, as the language model receives them in the place of its
        placeholders: float32 [n D] on the CPU, n tokens of the model's width D.

        A clip goes through the audio `projector` "speech", as in a conversation without images; beside an image the
        model uses the one named "vision". The engine's cache of encoder outputs is used and filled: an image that
        was just embedded isn't encoded again for an answer. Raises ValueError for other parts, media that can't be
        read, and where the model has no encoder for them.
        """
        return self.engine.embed(part, projector)

    def score(
        self, messages: Prompt, continuation: str, *, adapter: str | None = "auto"
    ) -> list[float]:
        """Natural log-probability of each token of `continuation` as the assistant's answer."""
        return self.engine.score(messages, continuation, adapter=adapter)

    def score_many(
        self, pairs: Iterable[tuple[Prompt, str]], *, adapter: str | None = "auto"
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
            self.engine, audios, task, window=window, max_seconds=max_seconds, on_progress=tell
        )

    def logits(
        self,
        messages_or_ids: Prompt,
        images: Sequence[Any] = (),
        audios: Sequence[Any] = (),
        *,
        last: int | None = None,
        adapter: str | None = "auto",
    ) -> tuple[Int[Tensor, " T"], Float[Tensor, "n V"]]:
        """(ids [T] after placeholder expansion, float32 logits [n V]), both on the CPU, for exact comparison.

        n is T, or with `last` the number of last positions that logits are computed for (T where `last` is more): the
        head and the last block's MLP then run for these alone. The published vocabulary takes 0.8 MB for each position.
        With `last` matrix products have fewer rows and may sum in another order, so logits can differ in their last
        bits.

        Messages get the generation prompt. Ids are taken as they are, with `images` and `audios` (what `Image` and
        `Audio` take, or these) for their placeholders, in order; "auto" then looks at which of the two are given.
        Raises ValueError as `generate`, and for `last` below 1.
        """
        prompt = parse_prompt(messages_or_ids, images, audios)
        return self.logits_many([prompt], last=last, adapter=adapter)[0]

    def logits_many(
        self,
        prompts: Iterable[Prompt],
        *,
        last: int | None = None,
        adapter: str | None = "auto",
    ) -> list[tuple[Int[Tensor, "_"], Float[Tensor, "_ V"]]]:
        """`logits` of many prompts (conversations, token ids, `TokensPrompt`s), in their order; short ones run together
        in one forward. The results of all are in memory at once: give `last` where that suffices. Raises ValueError as
        `logits`."""
        ids: list[Tensor] = []

        def rows() -> Iterator[Batch]:
            for prompt in prompts:
                row = self.engine.row(prompt, adapter=adapter)
                ids.append(row.ids)
                yield row

        logits = list(self.engine.logits_many(rows(), last))
        return list(zip(ids, logits, strict=True))


def load(
    path_or_id: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quant: str | None = None,
    tokenizer: str | Path | Tokenizer | None = "auto",
    together: int = MAX_NUM_SEQS,
    cache_gb: float | None = None,
    kv: str | None = None,
    progress: Callable[[str, float | None], None] = lambda stage, share: None,
) -> Phi:
    """A `Phi` from a checkpoint folder or a hub id, in any public layout (`model/weights.py`).

    `device`: "auto" takes CUDA where there is one, else Apple's MPS, else the CPU. `dtype`: "auto" keeps what is stored
    where the device is fast in it, or takes float32 (placement.py); or a name such as "float32" or "bfloat16". `quant`:
    None keeps every weight as it is; "int8" and "int4" quantise the decoder's base weights and the head (adapters and
    all else in bfloat16), "int8-all" and "int4-all" adapters and encoders too (in 8 bits), "bf16" only lays out the
    encoders for this CPU (`model/quantize.py`): such a model is for inference. A quantised checkpoint is what it is,
    and needs none. `tokenizer`: "auto" loads the one in the checkpoint's folder; a path (of a tokenizer.json or its
    folder) or a `Tokenizer` replaces it; None loads none, and the model then works on token ids alone: answers have
    ids and no text, and whatever needs text raises ValueError. `together`: sequences that run at once; `cache_gb`:
    memory for their keys and values (engine.py has the default); `kv`: "int8" keeps these in 8 bits, in half of the
    memory (on a CPU). `progress`: called with the stage that begins ("checkpoint", where a hub id may be downloaded,
    "tokenizer", "weights", "engine") and the share of it that is done, None where that can't be known; for "weights"
    again and again, with the share of the tensors that are loaded. Raises ValueError, one clear message each, also
    where the weights don't fit.
    """
    progress("checkpoint", None)
    place = placement.choose(device)
    folder = locate(path_or_id)
    made = read_quantization(folder)
    progress("tokenizer", None)
    vocabulary = _load_tokenizer(folder, tokenizer)
    requested = None if dtype == "auto" else as_dtype(dtype)
    stored, free = stored_types(folder), memory.free_memory(place)
    config = read_config(folder)
    kind = requested or placement.choose_dtype(stored, place, free, config, quant or made)
    if made:
        needed = stored_bytes(folder)
    else:
        saved = quantize.saved_bytes(config, quant)
        needed = max(0, placement.size(stored, kind) - saved)
    placement.check_fits(needed, free, place)
    progress("weights", 0.0)
    model = load_checkpoint(
        folder,
        device=place,
        dtype=kind,
        quant=quant,
        progress=lambda share: progress("weights", share),
    )
    progress("engine", None)
    cache = None if cache_gb is None else round(cache_gb * 1e9)
    phi = Phi(
        model, make_processor(model.config, vocabulary), max_num_seqs=together, memory=cache, kv=kv
    )
    phi.room = placement.memory_report(model, free, place, phi.engine.capacity, kv)
    return phi


def _load_tokenizer(folder: Path, tokenizer: str | Path | Tokenizer | None) -> Tokenizer | None:
    """The tokenizer that `load` was given, or the one in the checkpoint's folder."""
    if tokenizer is None or isinstance(tokenizer, Tokenizer):
        return tokenizer
    if tokenizer != "auto":
        return Tokenizer.load(tokenizer)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder}: expected a tokenizer.json beside the weights, found none; give load the path of one as "
            "tokenizer=, or tokenizer=None to work on token ids alone"
        )
    return Tokenizer.load(folder)


def make_processor(config: ModelConfig, tokenizer: Tokenizer | None) -> Processor:
    """The processor whose crops and placeholders fit a model; without a tokenizer, one for token ids alone. Raises
    ValueError if tokenizer and model disagree."""
    if tokenizer is None:
        tokenizer = NoTokenizer(
            config.decoder.vocab_size,
            config.decoder.eos_token_ids,
            config.vision.image_token_id if config.vision else None,
            config.audio.audio_token_id if config.audio else None,
        )
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
