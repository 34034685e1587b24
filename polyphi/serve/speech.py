"""Transcriptions and translations of uploaded recordings, in OpenAI's shapes.

An upload is received within caps, into memory or a private temporary file that goes with the request, and known by its
bytes: its name is never looked at. It is listened to from beginning to end before anything is sent, so that a damaged
or endless one gets an answer of its own (longform.py), and transcribed in a thread that ends within a step of the
engine once the client has hung up.
"""

import asyncio
import logging
import secrets
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import Any

from fastapi import APIRouter
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from polyphi.engine.engine import Stopped
from polyphi.engine.media import MediaError
from polyphi.engine.request import Caller
from polyphi.engine.sampling import check
from polyphi.messages import SamplingParams, Transcript
from polyphi.serve.answers import event
from polyphi.serve.errors import ApiError
from polyphi.serve.fetch import checked, refusal
from polyphi.serve.metrics import Times
from polyphi.serve.server import Events, Gone, Server, failed, unless_gone
from polyphi.serve.tokens import Tokens
from polyphi.transcription import longform, subtitles

log = logging.getLogger("polyphi.serve")
RECORDINGS = 8
"""Transcribed at once; others wait. Each may hold half an hour of samples; their pieces run in the engine's batches."""
LISTENING = 2
"""Of these, decoded and listened to at once: that is work for a processor, which others need too."""
WINDOW = 30.0
"""Seconds heard at once where the text is streamed or `chunking_strategy` is "auto". The first words come when so much
of the recording has been answered; shorter pieces would give the model less to go by, and overlap more often."""
MAX_FIELDS, MAX_FIELD = 32, 16 << 10
"""Fields of a form beside the file, and bytes of each."""
AROUND = 1 << 20
"""Bytes of a form that its file may not take."""
VALUES = 8
"""Of an answer in JSON for each of its tokens, at most: a log-probability with bytes, or a word with its times."""
IN_MEMORY = 1 << 20
"""Bytes of an upload that don't go to a file."""

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
UNSUPPORTED = ("keywords", "languages", "known_speaker_names", "known_speaker_references")
"""Fields of OpenAI's that would change the answer, if the model had a way to."""
LISTS = ("timestamp_granularities", "include")

_TEXT: dict[str, Any] = {"type": "string"}
_YES: dict[str, Any] = {"type": "boolean", "default": False}
SHARED: dict[str, dict[str, Any]] = {
    "file": {"type": "string", "format": "binary", "description": "WAV, FLAC, OGG or MP3."},
    "model": {**_TEXT, "description": "The model, or one of its adapters."},
    "adapter": {**_TEXT, "default": "auto"},
    "response_format": {**_TEXT, "enum": list(FORMATS), "default": "json"},
    "temperature": {"type": "number", "default": 0, "minimum": 0},
    "prompt": {**_TEXT, "maxLength": 0, "description": "Only empty: the model takes none."},
    "stream": _YES,
    "chunking_strategy": {**_TEXT, "enum": ["auto"], "description": "Pieces of up to 30 s."},
}
TRANSCRIPTION = {
    **SHARED,
    "language": {**_TEXT, "description": "Told back; the model hears which one it is."},
    "timestamp_granularities": {
        "type": "array",
        "items": {**_TEXT, "enum": ["word", "segment"]},
        "default": ["segment"],
    },
    "include": {"type": "array", "items": {**_TEXT, "enum": ["logprobs"]}},
}
TRANSLATION = {
    **SHARED,
    "to_language": {**_TEXT, "default": "en", "description": "A code or a name."},
    "cot": {**_YES, "description": "Write the transcript first, then translate it."},
}


def routes(server: Server) -> APIRouter:
    router = APIRouter()
    desk = Desk(server)

    @router.post(
        "/v1/audio/transcriptions",
        summary="What is said in a recording",
        openapi_extra=_described(TRANSCRIPTION),
    )
    async def transcriptions(request: HttpRequest) -> Response:
        return await desk.answer(request, TRANSCRIPTION)

    @router.post(
        "/v1/audio/translations",
        summary="What is said in a recording, in another language",
        openapi_extra=_described(TRANSLATION),
    )
    async def translations(request: HttpRequest) -> Response:
        return await desk.answer(request, TRANSLATION)

    return router


def _described(fields: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": ["file"], "properties": dict(fields)}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


@dataclass(frozen=True)
class Wishes:
    """What a form asks for. `language`: what to tell of it; `window`: seconds of a piece at most; `segments`, `words`:
    whether verbose JSON has them."""

    task: longform.Task
    form: str
    language: str
    window: float
    caller: Caller
    stream: bool
    segments: bool = True
    words: bool = False
    logprobs: bool = False


class Desk:
    """Where uploads are taken in and transcripts given out."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._turn, self._ears = asyncio.Semaphore(RECORDINGS), asyncio.Semaphore(LISTENING)
        self._threads = ThreadPoolExecutor(RECORDINGS, "transcribe")

    async def answer(self, request: HttpRequest, known: Mapping[str, Any]) -> Response:
        if self._server.engine.model.audio is None:
            raise ApiError(400, "this model has no audio encoder; it can't hear", param="model")
        fields, upload = await _received(request, self._server.settings.max_audio_bytes)
        try:
            wishes = _wishes(self._server, request, fields, known)
            await _check_clip(upload)
            ticket = self._server.admit(wishes.caller)
        except BaseException:
            upload.file.close()
            raise
        loop = asyncio.get_running_loop()
        texts: asyncio.Queue[str | None] = asyncio.Queue()
        listened = asyncio.Event()

        def follow(text: str) -> None:
            loop.call_soon_threadsafe(texts.put_nowait, text)

        def closed(done: "asyncio.Task[Transcript]") -> None:
            upload.file.close()
            ticket.release()
            listened.set()
            texts.put_nowait(None)
            self._count(request, ticket.began, done)

        work = asyncio.create_task(
            self._transcript(upload, wishes, listened, follow if wishes.stream else None)
        )
        work.add_done_callback(closed)

        def cancel() -> None:
            work.cancel()

        try:
            if wishes.stream:
                await unless_gone(request, listened.wait())
                if work.done():
                    work.result()
                return Events(self._events(work, texts, wishes), cancel)
            return await self._whole(await unless_gone(request, _outcome(work)), wishes)
        except BaseException:
            cancel()
            raise

    async def _transcript(
        self,
        upload: UploadFile,
        wishes: Wishes,
        listened: asyncio.Event,
        follow: Callable[[str], None] | None,
    ) -> Transcript:
        """The transcript of an upload, made in a thread; cancelled, it ends when that thread has."""
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        run: asyncio.Future[Transcript] | None = None

        def tell(seconds: float) -> None:
            loop.call_soon_threadsafe(listened.set)

        async with self._turn:
            try:
                async with self._ears:
                    run = loop.run_in_executor(
                        self._threads, self._heard, upload, wishes, tell, follow, stop
                    )
                    run.add_done_callback(lambda _: listened.set())
                    await listened.wait()
                return await asyncio.shield(run)
            except asyncio.CancelledError:
                stop.set()
                if run is not None:
                    await asyncio.wait({run})
                    run.exception()  # nobody wants it
                raise

    def _count(self, request: HttpRequest, began: float, done: "asyncio.Task[Transcript]") -> None:
        """Tells metrics and log how it ended."""
        metrics, times = self._server.metrics, Times(began, None, None, time.monotonic())
        error = None if done.cancelled() else done.exception()
        if isinstance(error, ApiError) and error.status < 500:
            return
        reason = "abort" if done.cancelled() else "error" if error else "stop"
        metrics.finished(times, reason, prompt=0, cached=0, generated=0)
        if reason == "stop":
            found = done.result()
            metrics.arrived(found.adapter)
            metrics.transcribed(
                found.seconds, prompt=found.prompt_tokens, generated=found.answer_tokens
            )
            self._server.note(request, {"text": _text(found)})

    def _heard(
        self,
        upload: UploadFile,
        wishes: Wishes,
        tell: Callable[[float], None],
        follow: Callable[[str], None] | None,
        stop: threading.Event,
    ) -> Transcript:
        """Raises ApiError for what is wrong with the recording."""
        name = "the given bytes of a clip"
        try:
            with _stored(upload) as source:
                name = str(source) if isinstance(source, Path) else name
                (found,) = longform.transcribe(
                    self._server.engine,
                    [source],
                    wishes.task,
                    window=wishes.window,
                    caller=wishes.caller,
                    max_seconds=self._server.settings.max_recording_seconds,
                    tell=tell,
                    follow=follow,
                    stop=stop,
                )
                return found
        except Stopped:
            raise
        except ValueError as error:
            told = str(error).replace(name, "the file")
            if isinstance(error, MediaError):
                self._server.metrics.media_rejected(error.reason)
                raise refusal(MediaError(told, error.reason), "file") from None
            raise ApiError(400, told, param="file") from None
        except Exception as error:
            log.error("a transcription failed", exc_info=error)
            raise failed(error) from None

    async def _whole(self, found: Transcript, wishes: Wishes) -> Response:
        answers = self._server.answers
        if wishes.form == "json":
            return await answers.response(await self._json(found, wishes))
        if wishes.form == "verbose_json":
            return await answers.response(
                await answers.built(partial(_verbose, found, wishes), VALUES * found.answer_tokens)
            )
        if wishes.form == "text":
            return PlainTextResponse(_text(found) + "\n")
        text = await answers.in_thread(partial(subtitles.write, found, wishes.form))
        return PlainTextResponse(text)

    async def _json(self, found: Transcript, wishes: Wishes) -> dict[str, Any]:
        """An answer in JSON; a stream's last event has the same fields."""
        return {"text": _text(found), **await self._beside(found, wishes)}

    async def _events(
        self,
        work: "asyncio.Task[Transcript]",
        texts: "asyncio.Queue[str | None]",
        wishes: Wishes,
    ) -> AsyncIterator[bytes]:
        while (text := await texts.get()) is not None:
            yield event({"type": "transcript.text.delta", "delta": text})
        try:
            found = await work
        except ApiError as error:
            yield event(error.body)
            return
        done = {"type": "transcript.text.done", **await self._json(found, wishes)}
        yield await self._server.answers.event(done)

    async def _beside(self, found: Transcript, wishes: Wishes) -> dict[str, Any]:
        """What an answer in JSON has beside its text."""
        more: dict[str, Any] = {
            "usage": {
                "type": "tokens",
                "input_tokens": found.prompt_tokens,
                "input_token_details": {
                    "text_tokens": found.prompt_tokens - found.audio_tokens,
                    "audio_tokens": found.audio_tokens,
                },
                "output_tokens": found.answer_tokens,
                "total_tokens": found.prompt_tokens + found.answer_tokens,
            },
            "adapter": found.adapter,
        }
        if found.translation is not None and found.text:
            more["transcript"] = found.text
        if wishes.logprobs:
            build = partial(_logprobs, self._server.tokens, found)
            size = VALUES * found.answer_tokens
            more["logprobs"] = await self._server.answers.built(build, size)
        if found.warnings:
            more["warnings"] = list(found.warnings)
        return more


@contextmanager
def _stored(upload: UploadFile) -> Iterator[bytes | Path]:
    """An upload as bytes, or as a file that nobody else may read and that is gone afterwards."""
    if (upload.size or 0) <= IN_MEMORY:
        yield upload.file.read()
        return
    with tempfile.NamedTemporaryFile(prefix="polyphi-") as place:
        copyfileobj(upload.file, place, 1 << 20)
        place.flush()
        upload.file.close()
        yield Path(place.name)


def _text(found: Transcript) -> str:
    """The translation where one was asked for."""
    return found.text if found.translation is None else found.translation


def _logprobs(tokens: Tokens, found: Transcript) -> list[dict[str, Any]]:
    return [
        tokens.one(token, logprob)
        for segment in found.segments
        for token, logprob in zip(segment.tokens, segment.logprobs, strict=True)
    ]


def _verbose(found: Transcript, wishes: Wishes) -> dict[str, Any]:
    """OpenAI's `verbose_json`."""
    body = subtitles.verbose(found, wishes.language)
    if wishes.words:
        body.setdefault("words", [])
    if not wishes.segments:
        del body["segments"]
    usage = {"type": "duration", "seconds": round(found.seconds, 3)}
    return {**body, "usage": usage, "adapter": found.adapter}


async def _outcome(work: "asyncio.Task[Transcript]") -> Transcript:
    return await work


async def _received(
    request: HttpRequest, max_bytes: int
) -> tuple[dict[str, list[str]], UploadFile]:
    """The fields of a form, and its file. Raises ApiError for what is no such form, and above a cap."""
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise ApiError(415, "expected a form (multipart/form-data) with a file")
    too_large = ApiError(
        413, f"file: expected at most {max_bytes:,} bytes, found more", param="file"
    )

    async def chunks() -> AsyncIterator[bytes]:
        left = max_bytes + AROUND
        async with aclosing(request.stream()) as stream:
            async for chunk in stream:
                left -= len(chunk)
                if left < 0:
                    raise too_large
                yield chunk

    try:
        form = await MultiPartParser(
            request.headers,
            chunks(),  # type: ignore[arg-type]
            max_files=1,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_FIELD,
        ).parse()
    except MultiPartException:
        raise ApiError(
            400,
            f"the form can't be read; expected multipart/form-data with one file and at most {MAX_FIELDS} fields of "
            f"up to {MAX_FIELD:,} bytes",
        ) from None
    except ClientDisconnect:
        raise Gone from None
    fields: dict[str, list[str]] = {}
    upload: UploadFile | None = None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            upload, place = value, name
        else:
            fields.setdefault(name.removesuffix("[]"), []).append(value)
    if upload is None:
        raise ApiError(400, "file: expected the recording as a file", param="file")
    wrong: ApiError | None = None
    if place != "file":
        wrong = ApiError(400, f"the file is called {place!r:.80}; expected 'file'", param="file")
    elif (upload.size or 0) > max_bytes:
        wrong = too_large
    elif not upload.size:
        wrong = ApiError(400, "file: expected a recording, found an empty file", param="file")
    if wrong is not None:
        upload.file.close()
        raise wrong
    return fields, upload


async def _check_clip(upload: UploadFile) -> None:
    checked(await upload.read(512), "audio", "file")
    await upload.seek(0)


def _wishes(
    server: Server,
    request: HttpRequest,
    fields: Mapping[str, Sequence[str]],
    known: Mapping[str, Any],
) -> Wishes:
    """What a form asks for. Raises ApiError for what there is no way to grant, before anything is done."""
    for name, values in fields.items():
        if name.startswith("chunking_strategy["):
            raise ApiError(
                400,
                "chunking_strategy: expected 'auto'; the cuts of a recording can't be tuned",
                param="chunking_strategy",
            )
        if name in UNSUPPORTED:
            raise ApiError(400, f"{name} isn't supported; leave it out", param=name)
        if name not in known or name == "file":
            near = get_close_matches(name, [n for n in known if n != "file"], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ApiError(400, f"unknown field {name!r:.80}{hint}", param=name[:80])
        if len(values) > 1 and name not in LISTS:
            raise ApiError(400, f"{name}: expected once, found {len(values)} times", param=name)

    def one(name: str, allowed: Sequence[str] = ()) -> str | None:
        value = fields.get(name, [""])[0].strip()
        if value and allowed and value not in allowed:
            expected = ", ".join(allowed)
            raise ApiError(400, f"{name}: expected {expected}, found {value!r:.80}", param=name)
        return value or None

    def some(name: str, allowed: Sequence[str]) -> set[str]:
        for value in fields.get(name, ()):
            if value not in allowed:
                expected = ", ".join(allowed)
                raise ApiError(400, f"{name}: expected {expected}, found {value!r:.80}", param=name)
        return set(fields.get(name, ()))

    def yes(name: str) -> bool:
        value = (one(name) or "false").lower()
        if value not in ("true", "false", "1", "0"):
            raise ApiError(400, f"{name}: expected true or false, found {value!r:.80}", param=name)
        return value in ("true", "1")

    def spoken(name: str, default: str | None) -> str | None:
        called = one(name) or default
        try:
            return None if called is None else longform.language(called)
        except ValueError as error:
            raise ApiError(400, f"{name}: {error}", param=name) from None

    if one("prompt"):
        raise ApiError(
            400,
            "prompt: this model is asked by prompts of its own and takes no other; leave it out",
            param="prompt",
        )
    form, stream = one("response_format", FORMATS) or "json", yes("stream")
    if stream and form not in ("json", "text"):
        raise ApiError(
            400,
            f"response_format: a stream is json or text, found {form!r}; times are known at the end",
            param="response_format",
        )
    granularities = some("timestamp_granularities", ("word", "segment"))
    if granularities and form != "verbose_json":
        raise ApiError(
            400,
            "timestamp_granularities go with response_format verbose_json",
            param="timestamp_granularities",
        )
    include = some("include", ("logprobs",))
    if include and form != "json":
        raise ApiError(400, "include: logprobs go with response_format json", param="include")
    if "to_language" in known:
        language = spoken("to_language", "en")
        task = longform.transcription(language, yes("cot"))
    else:
        language, task = spoken("language", None), longform.transcription()
    words = "word" in granularities
    task = replace(
        task,
        adapter=server.adapter(
            one("model"), None if one("adapter") == "null" else one("adapter") or "auto"
        ),
        sampling=_sampling(one("temperature"), server.settings.max_tokens),
        words="estimated" if words or form in ("srt", "vtt") else None,
    )
    pieces = stream or one("chunking_strategy", ("auto",)) is not None
    most = max(1.0, server.settings.max_audio_seconds - 0.1)  # where a piece was rounded up
    return Wishes(
        task,
        form,
        (language or "unknown").lower(),
        min(WINDOW if pieces else longform.LONGEST, most),
        server.caller(request),
        stream,
        segments=not granularities or "segment" in granularities,
        words=words,
        logprobs="logprobs" in include,
    )


def _sampling(temperature: str | None, max_tokens: int) -> SamplingParams | None:
    """How to draw; at temperature 0 as is best, which is greedy and warmer where an answer loops (longform.py)."""
    try:
        value = float(temperature or 0)
        if value == 0:
            return None
        seed = secrets.randbits(62)
        found = SamplingParams(max_tokens, value, seed=seed, logprobs=0)
        check(found)
    except ValueError:
        raise ApiError(
            400,
            f"temperature: expected a number from 0 to 100, found {temperature!r:.40}",
            param="temperature",
        ) from None
    return found
