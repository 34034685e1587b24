"""The Python API of a loaded model: `polyphi.load` and `Phi`.

>>> phi = load("path/or/hub-id")
>>> phi.generate("Hello").text
>>> phi.transcribe("talk.wav", to="de", cot=True).translation
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, Unpack, cast, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polyphi.checkpoints.headers import (
    files_beside,
    read_config,
    read_quantization,
    stored_bytes,
    stored_types,
)
from polyphi.checkpoints.modalities import load as load_weights
from polyphi.checkpoints.names import own_layout
from polyphi.checkpoints.parts import parts
from polyphi.checkpoints.peft import adapter_folder, read_peft
from polyphi.checkpoints.processor import make_processor
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.decoding.forms import CallRules, response_grammar, with_rules
from polyphi.decoding.output import Output
from polyphi.devices import memory, placement
from polyphi.engine import scores
from polyphi.engine.capacity import MemoryReport, memory_report
from polyphi.engine.engine import MAX_NUM_SEQS, Engine
from polyphi.engine.request import GREEDY
from polyphi.engine.rows import Conversation, Prompt, parse_prompt
from polyphi.hub import hashes, pull
from polyphi.hub.fingerprint import fingerprint
from polyphi.hub.location import locate
from polyphi.media.media import Caps
from polyphi.model.adapters import put_adapter
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.conversation import unknown_controls
from polyphi.processing.placeholders import TokensPrompt
from polyphi.processing.processor import Processor
from polyphi.processing.reasoning import THINK
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import read_chat_template
from polyphi.quantization import quantize
from polyphi.runtime.arguments import checked
from polyphi.transcription import longform
from polyphi.types.batch import Batch
from polyphi.types.completion import Completion, Delta
from polyphi.types.dialects import as_media
from polyphi.types.inputs.audio import AudioInput
from polyphi.types.media_sources import AnyAudio, ImageSource, audio_source
from polyphi.types.messages import Message, Tokens, with_tools
from polyphi.types.modality import Modality
from polyphi.types.parts import Audio, Image, Item
from polyphi.types.sampling import Grammar, SamplingOptions, SamplingParams
from polyphi.types.tools import FunctionCall, functions
from polyphi.types.transcript import LONGEST_RECORDING, Transcript

log = logging.getLogger(__name__)

Tools = Sequence[Callable[..., Any] | Mapping[str, Any]] | str | None
"""Python functions or OpenAI's schemas, or the JSON of a list of these."""
ResponseFormat = Mapping[str, Any] | type | None
"""A JSON schema, a class of pydantic's models, or OpenAI's `response_format`."""


class Phi:
    """A model with its tokenizer and processor. It implements the `Generate` protocol (types/generate.py), so
    `polyphi_eval` can evaluate it. `memory`: a report of its memory use on the device. `source`: the folder or hub id
    that `load` read it from. `reasoning`: whether answers may begin with `<think>...</think>`, by the checkpoint's chat
    template or its name."""

    @checked
    def __init__(self, model: PhiModel, processor: Processor, **engine: Any) -> None:
        self.engine = Engine(model, processor, **engine)
        self.memory: MemoryReport | None = None
        self.source: str | Path | None = None
        self.reasoning = False

    @property
    def model(self) -> PhiModel:
        return self.engine.model

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def parameters(self) -> int:
        """Number of parameters, of quantized weights too."""
        return parts(self.config)[-1].parameters

    @property
    def fingerprint(self) -> str:
        """A hash that differs between checkpoints (hub/fingerprint.py). Raises ValueError for a model that
        wasn't loaded from one."""
        if self.source is None:
            raise ValueError("only a model that `load` read from a checkpoint has a fingerprint")
        return fingerprint(locate(self.source))

    @property
    def context(self) -> int:
        """Maximum tokens of prompt and answer together: the model's context, or what the memory allows."""
        return self.engine.longest

    @property
    def processor(self) -> Processor:
        return self.engine.processor

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; after `load(..., tokenizer=None)` a `NoTokenizer`, which raises for text."""
        return self.processor.tokenizer

    @overload
    def generate(
        self,
        messages: list[str],
        *,
        sampling: SamplingParams | Mapping[str, Any] = ...,
        adapter: str | None = ...,
        tools: Tools = ...,
        response_format: ResponseFormat = ...,
        **options: Unpack[SamplingOptions],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        messages: Prompt,
        images: Sequence[Image | ImageSource] = ...,
        audios: Sequence[Audio | AnyAudio] = ...,
        *,
        sampling: SamplingParams | Mapping[str, Any] = ...,
        adapter: str | None = ...,
        tools: Tools = ...,
        response_format: ResponseFormat = ...,
        **options: Unpack[SamplingOptions],
    ) -> Completion: ...

    @checked
    def generate(
        self,
        messages: Prompt | list[str],
        images: Sequence[Image | ImageSource] = (),
        audios: Sequence[Audio | AnyAudio] = (),
        *,
        sampling: SamplingParams | Mapping[str, Any] = GREEDY,
        adapter: str | None = "auto",
        tools: Tools = None,
        response_format: ResponseFormat = None,
        **options: Unpack[SamplingOptions],
    ) -> Completion | list[Completion]:
        """The assistant's answer to a text, to `Message`s or OpenAI-style dicts, or the continuation of token ids; to a
        list of texts the list of their answers, as `generate_many`.

        >>> phi.generate("What is this?", images=["cat.png"], max_tokens=20).text

        `images` and `audios` are sources of `Image` and `Audio`, or these types. They come before a text, fill the
        parts {"type": "image"} and {"type": "audio"} without content of messages, and the placeholders of token ids,
        in order: one placeholder for each, or as many as it has tokens. Token ids may be a sequence of ints, a tensor
        [n] or a `TokensPrompt`; they get no generation prompt. `Completion.tokens` are the generated ids. `adapter`:
        "auto" (images -> vision, audio alone -> speech, text -> none), the name of an adapter, or "none" or None.

        `options` are the fields of `SamplingParams`, and replace those of `sampling`. `tools`: Python functions or
        OpenAI's schemas, which the model may call: `Completion.tool_calls`. `response_format`: the form of the answer,
        as a JSON schema, a pydantic model's class or OpenAI's `response_format`; with tools the model chooses between
        calls and this form.

        Raises ValueError for an argument of a wrong type, an unknown adapter, media that can't be read or that the
        model has no encoder for, placeholders that don't fit the media, and a prompt that doesn't fit the context
        together with `max_tokens`.
        """
        is_list = isinstance(messages, list) and all(isinstance(m, str) for m in messages)
        texts = cast(list[str], messages) if is_list else []
        if texts and (images or audios):
            raise ValueError(
                "images= and audios= go with one text, found a list of them; write a list of conversations and "
                "generate_many: [[Message.user(Image(...), text)], ...]"
            )
        one = None if texts else parse_prompt(cast(Prompt, messages), images, audios)
        completions = self.generate_many(
            texts if one is None else [one],
            sampling=sampling,
            adapter=adapter,
            tools=tools,
            response_format=response_format,
            **options,
        )
        return completions if one is None else completions[0]

    @checked
    def generate_many(
        self,
        conversations: Iterable[Prompt],
        *,
        sampling: SamplingParams | Mapping[str, Any] | Sequence[SamplingParams] = GREEDY,
        adapter: str | None = "auto",
        tools: Tools = None,
        response_format: ResponseFormat = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Completion]:
        """Answers to many texts, conversations or prompts of token ids, decoded in batches; each equals the result of
        `generate`, which documents the arguments and errors. `sampling`: one for all, or one for each. Ids with media
        are `TokensPrompt`s."""
        offers: list[list[dict[str, Any]]] = []

        def prompts() -> Iterator[Prompt]:
            for conversation in conversations:
                prompt = _with_tools(parse_prompt(conversation), tools)
                offers.append(_offered(prompt))
                yield prompt

        form = (functions(tools) or [], response_grammar(response_format))
        own: SamplingParams | list[SamplingParams]
        if isinstance(sampling, SamplingParams | Mapping):
            own = _sampling(sampling, options, *form)
        else:
            own = [_sampling(one, options, *form) for one in sampling]
        completions = self.engine.generate_many(prompts(), sampling=own, adapter=adapter)
        each = repeat(own) if isinstance(own, SamplingParams) else own
        return [
            _with_calls(completion, one, offered)
            for completion, one, offered in zip(completions, each, offers, strict=False)
        ]

    @checked
    def stream(
        self,
        messages: Prompt,
        images: Sequence[Image | ImageSource] = (),
        audios: Sequence[Audio | AnyAudio] = (),
        *,
        sampling: SamplingParams | Mapping[str, Any] = GREEDY,
        adapter: str | None = "auto",
        tools: Tools = None,
        response_format: ResponseFormat = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Delta]:
        """The streamed answer: the joined texts and `tokens` of the deltas equal those of `generate`, and the last one
        has its `completion`. Arguments and errors as of `generate`; errors are raised before the first delta."""
        prompt = _with_tools(parse_prompt(messages, images, audios), tools)
        form = (functions(tools) or [], response_grammar(response_format))
        own = _sampling(sampling, options, *form)
        deltas = self.engine.stream(prompt, sampling=own, adapter=adapter)
        return _calls_at_end(deltas, own, _offered(prompt))

    @property
    def max_audio_seconds(self) -> float:
        """Longest audio clip of a prompt, and longest chunk of a recording that `transcribe` processes at once.

        30 minutes by default, the longest in the model's training; it may be set to up to 10,080 (2.8 hours). An hour
        takes 45,000 tokens of the context (docs/transcription.md has the cost). Setting it raises ValueError for other
        values.
        """
        return self.processor.caps.audio_seconds

    @max_audio_seconds.setter
    @checked
    def max_audio_seconds(self, seconds: float) -> None:
        self.processor.caps = Caps.for_audio(seconds)

    @checked
    def count(self, messages: Conversation) -> Tokens:
        """The number of tokens of a conversation with the generation prompt, without running the model: equal to
        `generate`'s report. Only the headers of images and most audio files are read."""
        parsed = parse_prompt(messages)
        assert not isinstance(parsed, TokensPrompt)
        return self.processor.count(parsed)

    @checked
    def tokenize(self, messages: Conversation, *, generation_prompt: bool = True) -> list[int]:
        """The token ids of a text or conversation, with placeholders repeated for each token of their image or audio.

        `generate` of these ids, with the same images and audio in order, gives the answer to `messages`. Only the
        headers of images and of WAV, FLAC and OGG files are read; MP3 files and videos are decoded. With
        `generation_prompt` the ids end in `<|assistant|>`, without it in `<|endoftext|>`. Raises ValueError for media
        that can't be read and without a tokenizer.
        """
        parsed = parse_prompt(messages)
        assert not isinstance(parsed, TokensPrompt)
        return self.processor.tokenize(parsed, generation_prompt=generation_prompt)

    @checked
    def embed(
        self, part: Image | Audio | Item, *, projector: Literal["speech", "vision"] = "speech"
    ) -> Float[Tensor, "n D"]:
        """The projected embeddings of one image, audio clip or item of a further modality, which replace its
        placeholders in the language model: float32 [n D] on the CPU, n tokens of the model's width D.

        Audio goes through the audio `projector` "speech", as in a conversation without images; with an image the
        model uses the one named "vision". The engine's cache of encoder outputs is used and filled: an image that
        was just embedded isn't encoded again for an answer. Raises ValueError for other parts, media that can't be
        read, and where the model has no encoder for them.
        """
        if isinstance(part, Image):
            row = self.engine.rows.ids_row([self.tokenizer.image_id or 0], [part])
        elif isinstance(part, Audio):
            row = self.engine.rows.ids_row([self.tokenizer.audio_id or 0], [part])
            audio = row.of(AudioInput)
            assert audio is not None
            layouts = tuple(replace(clip, branch=projector) for clip in audio.layouts)
            row = row.with_inputs(replace(audio, layouts=layouts))
        else:
            placeholder = self.tokenizer.placeholders.get(part.modality, 0)
            row = self.engine.rows.ids_row([placeholder], [part])
        return self.engine.encode(row)

    @checked
    def score(
        self, messages: Prompt, continuation: str, *, adapter: str | None = "auto"
    ) -> list[float]:
        """Natural log-probability of each token of `continuation` as the assistant's answer."""
        return self.score_many([(messages, continuation)], adapter=adapter)[0]

    @checked
    def score_many(
        self, pairs: Iterable[tuple[Prompt, str]], *, adapter: str | None = "auto"
    ) -> list[list[float]]:
        """`score` of many (conversation, continuation) pairs, several in one forward."""
        return scores.score_many(self.engine, pairs, adapter=adapter)

    @checked
    def transcribe(
        self,
        audio: Audio | AnyAudio,
        sample_rate: float | None = None,
        *,
        to: str | None = None,
        cot: bool = False,
        sampling: SamplingParams | None = None,
        adapter: str | None = "auto",
        window: float | None = None,
        words: Literal["estimated", "aligned"] | None = None,
        max_seconds: float = LONGEST_RECORDING,
    ) -> Transcript:
        """The transcript of a recording: a path, bytes, (samples, rate), samples with their `sample_rate` in Hz, or an
        `Audio`. `to` (a code such as "de", or a language's name): translate into this language; with `cot` the model
        first writes the transcript and then translates it, which is better and returns both (report 2.2.2); otherwise
        the transcript is empty.

        Up to 30 minutes (`max_audio_seconds`), or what fits the context, are processed at once; longer recordings are
        cut at quiet points (transcription/longform.py). `window`: maximum seconds of a chunk; shorter chunks have more
        precise times. `words`: add word times, "estimated" from character counts over voiced time or "aligned" by
        attention (transcription/align.py). The transcript's `warnings` list missing and doubtful parts. With `sampling`
        answers are used as generated; without it decoding is greedy, and repeated where an answer loops or is cut off.

        The prompts are the published ones. `adapter` as in `generate`. Raises ValueError for a language that the model
        wasn't trained for, and for a recording that can't be read or lasts more than `max_seconds` (a day).
        """
        source = audio.source if isinstance(audio, Audio) else audio
        return self.transcribe_many(
            [audio_source(source, sample_rate)],
            to=to,
            cot=cot,
            sampling=sampling,
            adapter=adapter,
            window=window,
            words=words,
            max_seconds=max_seconds,
        )[0]

    @checked
    def transcribe_many(
        self,
        audios: Sequence[Audio | AnyAudio],
        *,
        to: str | None = None,
        cot: bool = False,
        sampling: SamplingParams | None = None,
        adapter: str | None = "auto",
        window: float | None = None,
        words: Literal["estimated", "aligned"] | None = None,
        max_seconds: float = LONGEST_RECORDING,
        on_progress: Callable[[float], None] = lambda seconds: None,
    ) -> list[Transcript]:
        """`transcribe` of many recordings; short ones run in one batch. `on_progress` is called with the seconds of
        audio that have just been finished. Raises ValueError if any recording can't be read."""
        task = longform.transcription(to, cot)
        task = replace(task, adapter=adapter, sampling=sampling, words=words)
        return longform.transcribe(
            self.engine,
            [as_media("audio", audio).source for audio in audios],
            task,
            window=window,
            max_seconds=max_seconds,
            on_progress=on_progress,
        )

    @checked
    def logits(
        self,
        messages_or_ids: Prompt,
        images: Sequence[Image | ImageSource] = (),
        audios: Sequence[Audio | AnyAudio] = (),
        *,
        last: int | None = None,
        adapter: str | None = "auto",
    ) -> tuple[Int[Tensor, " T"], Float[Tensor, "n V"]]:
        """(ids [T] after placeholder expansion, float32 logits [n V]), both on the CPU, for exact comparison.

        n is T, or with `last` the number of last positions to compute logits for (at most T): the head and the last
        block's MLP then run for these only. The published vocabulary takes 0.8 MB for each position. With `last`
        matrix products have fewer rows and may sum in another order, so logits can differ in their last bits.

        Messages get the generation prompt. Ids are used as they are, with `images` and `audios` (sources of `Image` and
        `Audio`, or these types) for their placeholders, in order; "auto" then depends on which of the two are given.
        Raises ValueError as `generate`, and for `last` below 1.
        """
        prompt = parse_prompt(messages_or_ids, images, audios)
        return self.logits_many([prompt], last=last, adapter=adapter)[0]

    @checked
    def logits_many(
        self,
        prompts: Iterable[Prompt],
        *,
        last: int | None = None,
        adapter: str | None = "auto",
    ) -> list[tuple[Int[Tensor, " _"], Float[Tensor, "_ V"]]]:
        """`logits` of many prompts (conversations, token ids, `TokensPrompt`s), in their order; short ones share one
        forward. All results are in memory at once: use `last` where that suffices. Raises ValueError as `logits`."""
        ids: list[Tensor] = []

        def rows() -> Iterator[Batch]:
            for prompt in prompts:
                row = self.engine.rows.row(prompt, adapter=adapter)
                ids.append(row.ids)
                yield row

        logits = scores.logits_many(self.engine, rows(), last)
        return list(zip(ids, logits, strict=True))

    @checked
    def save(self, folder: str | Path) -> None:
        """Write the model as a checkpoint that `load` and transformers read: the weights as they were loaded (with
        further adapters), tokenizer and processor files. A model with `quant` is written as by `polyphi export
        --quant`, in a layout that only polyphi reads. `polyphi export` has other layouts, dtypes and a model card.
        Raises ValueError for a folder that has files, and for a `quant` that can't be stored ("bf16")."""
        target = Path(folder).expanduser()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(
                f"{target}: expected a new or empty folder, found a file or files in it"
            )
        with tempfile.TemporaryDirectory() as temporary:
            layout = own_layout(self.config)
            beside = [] if self.source is None else files_beside(locate(self.source), layout)
            if self.tokenizer.has_vocabulary:  # after load(tokenizer=), not the checkpoint's
                self.tokenizer.save(temporary)
            own = {file.name: file for file in Path(temporary).iterdir()}
            files = [*own.values(), *(file for file in beside if file.name not in own)]
            dtype = self.model.decoder.norm.weight.dtype if self.model.quant else None
            save_checkpoint(
                self.model, target, layout, dtype=dtype, quant=self.model.quant, files=files
            )

    def __repr__(self) -> str:
        modalities = ", ".join(["text", *self.model.towers])
        weights = self.model.decoder.norm.weight
        dtype = self.model.quant or str(weights.dtype).removeprefix("torch.")
        source = "" if self.source is None else f"{str(self.source)!r}, "
        size = f"{self.parameters:,} parameters in {dtype} on {weights.device}"
        return f"Phi({source}{size}, reads {modalities})"


def _with_tools(
    prompt: tuple[Message, ...] | TokensPrompt, tools: Any
) -> tuple[Message, ...] | TokensPrompt:
    """The prompt with tools on its system message. Raises ValueError for tools beside token ids."""
    if not tools:
        return prompt
    if isinstance(prompt, TokensPrompt):
        raise ValueError(
            "tools= go with a text or messages, found token ids; they have their tools"
        )
    return with_tools(prompt, tools)


def _offered(prompt: Prompt) -> list[dict[str, Any]]:
    """The tools that a conversation offers; none where they are another text than a list of them."""
    messages = prompt if isinstance(prompt, tuple) else ()
    offered: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message, Message) and message.tools:
            with suppress(ValueError):
                offered += functions(message.tools) or []
    return offered


def _sampling(
    sampling: SamplingParams | Mapping[str, Any],
    options: SamplingOptions,
    tools: Sequence[dict[str, Any]],
    response: Grammar | None,
) -> SamplingParams:
    """The sampling of an answer with these tools and this form."""
    combined = SamplingParams.of(sampling, **options)
    if response is None:
        return combined
    if combined.grammar is not None:
        raise ValueError(
            "an answer has one form: expected grammar= or response_format=, found both"
        )
    return with_rules(combined, tools, response, CallRules())


def _with_calls(
    completion: Completion, sampling: SamplingParams, tools: Sequence[dict[str, Any]]
) -> Completion:
    """A completion with the calls of these tools in its text."""
    if not tools:
        return completion
    output = Output(sampling, tools=tools)
    output.add(Delta(completion.text, completion.finish_reason))
    calls = tuple(
        FunctionCall(call.name, json.loads(call.arguments))
        for call in output.calls
        if call.complete
    )
    others = tuple(_with_calls(other, sampling, tools) for other in completion.others)
    return replace(completion, tool_calls=calls, others=others)


def _calls_at_end(
    deltas: Iterator[Delta], sampling: SamplingParams, tools: Sequence[dict[str, Any]]
) -> Iterator[Delta]:
    """The deltas of an answer, the last one's completion with its tool calls."""
    for delta in deltas:
        whole = delta.completion
        yield (
            delta
            if whole is None
            else replace(delta, completion=_with_calls(whole, sampling, tools))
        )


@checked
def load(
    path_or_id: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quant: str | None = None,
    tokenizer: str | Path | Tokenizer | None = "auto",
    max_num_seqs: int = MAX_NUM_SEQS,
    cache_gb: float | None = None,
    kv: str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    modalities: Sequence[Modality | str | Path] = (),
    verify: bool = False,
    progress: Callable[[str, float | None], None] = lambda stage, share: None,
) -> Phi:
    """A `Phi` from a checkpoint folder or a hub id, in any public layout (`checkpoints/names.py`).

    `nano` is the model in the package polyphi-nano, unless a folder has that name. A hub id is `owner/name` or
    `owner/name@revision`. It is downloaded once, and with a `quant` other than "bf16" quantized once; later calls load
    what is stored (`hub/pull.py`).

    `device`: "auto" selects CUDA if available, else Apple's MPS, else the CPU. `dtype`: "auto" keeps the stored type if
    the device is fast in it, else float32 (placement.py); or a name such as "float32" or "bfloat16". `quant`: None
    keeps all weights; "int8" and "int4" quantize the decoder's base weights and the head (adapters and all else in
    bfloat16), "int8-all" and "int4-all" also adapters and encoders (to int8), "bf16" only packs the encoders for this
    CPU (`quantization/quantize.py`): such a model is for inference. A quantized checkpoint needs no `quant`.
    `tokenizer`: "auto" loads the one in the checkpoint's folder; a path (of a tokenizer.json or its folder) or a
    `Tokenizer` replaces it; None loads none, and the model then works on token ids only: answers have ids and no text,
    and functions that need text raise ValueError. `max_num_seqs`: maximum batch size (sequences); `cache_gb`: memory of
    the KV cache (default: engine.py); `kv`: "int8" stores the cache in int8, with half of the memory (on a CPU).
    `adapters`: name -> folder of further adapters as PEFT writes them, or of a fine-tune's run (checkpoints/peft.py),
    which a quantized model keeps in bfloat16. `modalities`: users' modalities (docs/modality.md), each as an object or
    a Python file, whose weights are in the checkpoint's folder NAME-modality, or as FILE=FOLDER. `verify`: read all
    files of the checkpoint first and compare them with the hashes recorded when they were downloaded or quantized;
    otherwise names, sizes and headers are checked (docs/pull.md). `progress`: called
    with the stage that begins ("checkpoint", "download" and "quantization" of a new hub id, "verification",
    "tokenizer", "weights", "engine") and the share of it that is done, None where unknown; for "download" in other
    threads. Raises ValueError for invalid arguments, checkpoints and adapters, and for a hub id that can't be
    downloaded; OSError for an interrupted download, which the same call resumes, and a full disk; ValueError if the
    weights don't fit, and with `verify` for a file that differs from its hash and a folder without recorded hashes.
    """
    progress("checkpoint", None)
    target = placement.choose(device)
    folder = pull.find(path_or_id, quant, progress=progress)
    if verify:
        progress("verification", 0.0)
        hashes.check(folder, lambda share: progress("verification", share))
    stored_quant = read_quantization(folder)
    progress("tokenizer", None)
    vocabulary = _load_tokenizer(folder, tokenizer)
    requested = None if dtype == "auto" else as_dtype(dtype)
    stored, free = stored_types(folder), memory.free_memory(target)
    config = read_config(folder)
    scheme = quant or stored_quant
    weight_dtype = requested or placement.choose_dtype(stored, target, free, scheme)
    if stored_quant:
        needed = stored_bytes(folder, table=target.type != "cpu")
    else:
        saved = quantize.saved_bytes(config, quant, target.type)
        needed = max(0, placement.size(stored, weight_dtype) - saved)
    placement.check_fits(needed, free, target)
    further = {
        name: read_peft(adapter_folder(source), config) for name, source in (adapters or {}).items()
    }
    progress("weights", 0.0)
    model = load_checkpoint(
        folder,
        device=target,
        dtype=weight_dtype,
        quant=quant,
        progress=lambda share: progress("weights", share),
    )
    for name, adapter in further.items():
        put_adapter(model, name, adapter.config, adapter.factors)
    processor = make_processor(model.config, vocabulary)
    for modality in modalities:
        load_weights(model, processor, modality, folder)
    progress("engine", None)
    cache = None if cache_gb is None else round(cache_gb * 1e9)
    phi = Phi(
        model,
        processor,
        max_num_seqs=max_num_seqs,
        memory=cache,
        kv=kv,
    )
    phi.source = path_or_id
    phi.memory = memory_report(model, free, target, phi.engine.capacity, kv)
    # The template of Phi-4-mini-reasoning, the only one with a fixed system text, doesn't mention the marks.
    named = "reasoning" in Path(path_or_id).name.lower() or phi.tokenizer.fixed_system is not None
    phi.reasoning = named or THINK in read_chat_template(folder)
    return phi


def _load_tokenizer(folder: Path, tokenizer: str | Path | Tokenizer | None) -> Tokenizer | None:
    """The tokenizer of the argument `tokenizer` of `load`, or the one in the checkpoint's folder."""
    if tokenizer is None or isinstance(tokenizer, Tokenizer):
        return tokenizer
    if tokenizer != "auto":
        return Tokenizer.load(tokenizer)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder}: expected a tokenizer.json next to the weights, found none; pass the path of one to load as "
            "tokenizer=, or tokenizer=None to work on token ids only"
        )
    loaded = Tokenizer.load(folder)
    if unknown := unknown_controls(loaded.marks, loaded.controls):
        log.warning(
            "%s: tokenizer.json has %d tokens beyond Phi-4's, such as %r; texts of prompts never become such tokens",
            folder,
            len(unknown),
            unknown[0][:80],
        )
    return loaded


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype with a name; raises ValueError for other than the supported ones."""
    dtype = name if isinstance(name, torch.dtype) else getattr(torch, name, None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"dtype must be 'auto', 'float32', 'bfloat16' or 'float16', found {name!r}"
        )
    return dtype
