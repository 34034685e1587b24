"""Transcriptions and translations of uploaded recordings, in OpenAI's shapes.

An upload is received within caps, into memory or a private temporary file that goes with the request, and known by its
bytes: its name is never looked at. It is listened to from beginning to end before anything is sent, so that a damaged
or endless one gets an answer of its own (longform.py), and transcribed in a thread that ends within a step of the
engine once the client has hung up.
"""

import asyncio
import logging
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import Any

from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from polyphi.engine.engine import Stopped
from polyphi.engine.media import MediaError
from polyphi.engine.request import Caller
from polyphi.messages import Transcript
from polyphi.serve.answers import event
from polyphi.serve.audio_form import TranscriptionForm, TranslationForm, receive
from polyphi.serve.errors import ApiError, failed
from polyphi.serve.events import Events, unless_gone
from polyphi.serve.fetch import checked, refusal
from polyphi.serve.metrics import Times
from polyphi.serve.server import Server
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
VALUES = 8
"""Of an answer in JSON for each of its tokens, at most: a log-probability with bytes, or a word with its times."""
IN_MEMORY = 1 << 20
"""Bytes of an upload that don't go to a file."""


def routes(server: Server) -> APIRouter:
    router = APIRouter()
    desk = Desk(server)

    @router.post(
        "/v1/audio/transcriptions",
        summary="What is said in a recording",
        openapi_extra=TranscriptionForm.described(),
    )
    async def transcriptions(request: HttpRequest) -> Response:
        return await desk.answer(request, TranscriptionForm)

    @router.post(
        "/v1/audio/translations",
        summary="What is said in a recording, in another language",
        openapi_extra=TranslationForm.described(),
    )
    async def translations(request: HttpRequest) -> Response:
        return await desk.answer(request, TranslationForm)

    return router


@dataclass(frozen=True)
class Options:
    """A form and what follows from it: the task of each piece, the language that verbose JSON names, the most seconds
    of a piece, and who sent it."""

    form: TranscriptionForm | TranslationForm
    task: longform.Task
    language: str
    window: float
    caller: Caller


class Desk:
    """Where uploads are taken in and transcripts given out."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._turn, self._ears = asyncio.Semaphore(RECORDINGS), asyncio.Semaphore(LISTENING)
        self._threads = ThreadPoolExecutor(RECORDINGS, "transcribe")

    async def answer(
        self, request: HttpRequest, form_type: type[TranscriptionForm | TranslationForm]
    ) -> Response:
        if self._server.engine.model.audio is None:
            raise ApiError(400, "this model has no audio encoder; it can't hear", param="model")
        fields, upload = await receive(request, self._server.settings.max_audio_bytes)
        try:
            options = self._options(request, form_type.parse(fields))
            await _check_clip(upload)
            ticket = self._server.admit(options.caller)
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
            self._transcript(upload, options, listened, follow if options.form.stream else None)
        )
        work.add_done_callback(closed)

        def cancel() -> None:
            work.cancel()

        try:
            if options.form.stream:
                await unless_gone(request, listened.wait())
                if work.done():
                    work.result()
                return Events(self._events(work, texts, options), cancel)
            return await self._whole(await unless_gone(request, _outcome(work)), options)
        except BaseException:
            cancel()
            raise

    def _options(self, request: HttpRequest, form: TranscriptionForm | TranslationForm) -> Options:
        """Raises ApiError for an unknown model or adapter, and a language that the model wasn't trained for."""
        settings = self._server.settings
        task, language = form.task()
        timed = form.words or form.response_format in ("srt", "vtt")
        task = replace(
            task,
            adapter=self._server.adapter(
                form.model, None if form.adapter == "null" else form.adapter
            ),
            sampling=form.sampling(settings.max_tokens),
            words="estimated" if timed else None,
        )
        pieces = form.stream or form.chunking_strategy is not None
        most = max(1.0, settings.max_audio_seconds - 0.1)  # where a piece was rounded up
        return Options(
            form,
            task,
            (language or "unknown").lower(),
            min(WINDOW if pieces else longform.LONGEST, most),
            self._server.caller(request),
        )

    async def _transcript(
        self,
        upload: UploadFile,
        options: Options,
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
                        self._threads, self._heard, upload, options, tell, follow, stop
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
        options: Options,
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
                    options.task,
                    window=options.window,
                    caller=options.caller,
                    max_seconds=self._server.settings.max_recording_seconds,
                    on_progress=tell,
                    on_text=follow,
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

    async def _whole(self, found: Transcript, options: Options) -> Response:
        answers = self._server.answers
        if options.form.response_format == "json":
            return await answers.response(await self._json(found, options))
        if options.form.response_format == "verbose_json":
            return await answers.response(
                await answers.built(partial(_verbose, found, options), VALUES * found.answer_tokens)
            )
        if options.form.response_format == "text":
            return PlainTextResponse(_text(found) + "\n")
        text = await answers.in_thread(
            partial(subtitles.write, found, options.form.response_format)
        )
        return PlainTextResponse(text)

    async def _json(self, found: Transcript, options: Options) -> dict[str, Any]:
        """An answer in JSON; a stream's last event has the same fields."""
        return {"text": _text(found), **await self._beside(found, options)}

    async def _events(
        self,
        work: "asyncio.Task[Transcript]",
        texts: "asyncio.Queue[str | None]",
        options: Options,
    ) -> AsyncIterator[bytes]:
        while (text := await texts.get()) is not None:
            yield event({"type": "transcript.text.delta", "delta": text})
        try:
            found = await work
        except ApiError as error:
            yield event(error.body)
            return
        done = {"type": "transcript.text.done", **await self._json(found, options)}
        yield await self._server.answers.event(done)

    async def _beside(self, found: Transcript, options: Options) -> dict[str, Any]:
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
        if options.form.logprobs:
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


def _verbose(found: Transcript, options: Options) -> dict[str, Any]:
    """OpenAI's `verbose_json`."""
    body = subtitles.verbose(found, options.language)
    if options.form.words:
        body.setdefault("words", [])
    if not options.form.segments:
        del body["segments"]
    usage = {"type": "duration", "seconds": round(found.seconds, 3)}
    return {**body, "usage": usage, "adapter": found.adapter}


async def _outcome(work: "asyncio.Task[Transcript]") -> Transcript:
    return await work


async def _check_clip(upload: UploadFile) -> None:
    checked(await upload.read(512), "audio", "file")
    await upload.seek(0)
