"""Transcriptions and translations of uploaded recordings, in OpenAI's format.

An upload is received within size limits, into memory or a private temporary file that is deleted after the request. Its
format is detected from its bytes; its name is ignored. It is decoded completely before any output is sent, so that a
damaged or endless file returns an HTTP error (longform.py), and transcribed in a thread that ends within a step of the
engine after the client has disconnected.
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

from polyphi.engine.added_adapters import UnknownAdapter
from polyphi.engine.engine import Stopped
from polyphi.engine.request import Client
from polyphi.media.media import MediaError
from polyphi.serve.admission.quotas import FairSlots
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer.fetch import media_api_error
from polyphi.serve.answer.metrics import Times
from polyphi.serve.answer.server import AdmittedRequest, Server
from polyphi.serve.answer.tokens import RequestTokens
from polyphi.serve.audio.form import TranscriptionForm, TranslationForm, receive
from polyphi.serve.http.errors import ApiError, also_returns, as_api_error
from polyphi.serve.http.events import Events, unless_disconnected
from polyphi.serve.http.response_json import event
from polyphi.transcription import longform, subtitles
from polyphi.transcription.transcript import text_of
from polyphi.types.transcript import Transcript

log = logging.getLogger("polyphi.serve")
RECORDINGS, DECODERS = 8, 2
"""Recordings that are transcribed at once, and those of them that are being decoded."""
WINDOW = 30.0
"""Maximum seconds of a segment where the text is streamed or `chunking_strategy` is "auto". The first words arrive when
the first segment has been transcribed; shorter segments would have less context and overlap more often."""
VALUES = 8
"""Maximum JSON values of a response per token: a log-probability with bytes, or a word with its times."""
PROMPT_WARNING = "the prompt was ignored: this model transcribes with its own prompts"
IN_MEMORY = 1 << 20
"""Maximum bytes of an upload that is kept in memory instead of a file."""


def routes(server: Server) -> APIRouter:
    router = APIRouter()
    transcriber = Transcriber(server)

    @router.post(
        "/v1/audio/transcriptions",
        summary="Transcribe a recording",
        openapi_extra=TranscriptionForm.openapi(),
        responses=also_returns("text/event-stream", "text/plain"),
    )
    async def transcriptions(request: HttpRequest) -> Response:
        return await transcriber.answer(request, TranscriptionForm)

    @router.post(
        "/v1/audio/translations",
        summary="Translate a recording into another language",
        openapi_extra=TranslationForm.openapi(),
        responses=also_returns("text/event-stream", "text/plain"),
    )
    async def translations(request: HttpRequest) -> Response:
        return await transcriber.answer(request, TranslationForm)

    return router


@dataclass(frozen=True)
class Options:
    """A form and the values derived from it: the task of each segment, the language for verbose JSON, the maximum
    seconds of a segment, and the client."""

    form: TranscriptionForm | TranslationForm
    task: longform.Task
    language: str
    window: float
    caller: Client


class Transcriber:
    """Handles transcription requests: receives uploads and returns transcripts."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._recordings, self._decoders = FairSlots(RECORDINGS), FairSlots(DECODERS)
        self._threads = ThreadPoolExecutor(RECORDINGS, "transcribe")

    async def answer(
        self, request: HttpRequest, form_type: type[TranscriptionForm | TranslationForm]
    ) -> Response:
        if self._server.engine.model.audio is None:
            raise ApiError(
                400,
                "this model has no audio encoder and can't transcribe; use a model with one",
                param="model",
            )
        fields, upload = await receive(request, self._server.settings.max_audio_bytes)
        try:
            options = self._options(request, form_type.parse(fields))
            self._server.media.check(await upload.read(512), "audio", "file")
            await upload.seek(0)
            admitted = self._server.admit(request)
            admitted.use_adapter(options.task.adapter)
        except BaseException:
            upload.file.close()
            raise
        loop = asyncio.get_running_loop()
        texts: asyncio.Queue[str | None] = asyncio.Queue()
        decoded = asyncio.Event()

        def follow(text: str) -> None:
            loop.call_soon_threadsafe(texts.put_nowait, text)

        def closed(task: "asyncio.Task[Transcript]") -> None:
            upload.file.close()
            admitted.release()
            decoded.set()
            texts.put_nowait(None)
            self._record_end(request, admitted.admitted_at, task)

        work = asyncio.create_task(
            self._transcript(
                upload, options, admitted, decoded, follow if options.form.stream else None
            )
        )
        work.add_done_callback(closed)

        def cancel() -> None:
            work.cancel()

        try:
            if options.form.stream:
                await unless_disconnected(request, decoded.wait())
                if work.done():
                    work.result()
                return Events(self._events(work, texts, options), cancel)
            return await self._whole(await unless_disconnected(request, _outcome(work)), options)
        except BaseException:
            cancel()
            raise

    def _options(self, request: HttpRequest, form: TranscriptionForm | TranslationForm) -> Options:
        """The options of a form. Raises ApiError for an unknown model, adapter or language."""
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
            temperatures=form.temperatures,
            seed=form.seed or 0,
        )
        pieces = form.stream or form.chunking_strategy is not None
        longest = longest_segment(settings)
        return Options(
            form,
            task,
            (language or "unknown").lower(),
            min(WINDOW, longest) if pieces else longest,
            self._server.caller(request),
        )

    async def _transcript(
        self,
        upload: UploadFile,
        options: Options,
        admitted: AdmittedRequest,
        decoded: asyncio.Event,
        follow: Callable[[str], None] | None,
    ) -> Transcript:
        """The transcript of an upload, computed in a thread. When cancelled, it ends after that thread."""
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        run: asyncio.Future[Transcript] | None = None

        def on_progress(seconds: float) -> None:
            loop.call_soon_threadsafe(decoded.set)

        client = options.caller.client
        async with self._recordings.exclusive(client):
            try:
                async with self._decoders.exclusive(client):
                    run = loop.run_in_executor(
                        self._threads,
                        partial(
                            self._transcribe, upload, options, admitted, on_progress, follow, stop
                        ),
                    )
                    run.add_done_callback(lambda _: decoded.set())
                    await decoded.wait()
                return await asyncio.shield(run)
            except asyncio.CancelledError:
                stop.set()
                if run is not None:
                    await asyncio.wait({run})
                    run.exception()  # retrieved, so that asyncio doesn't log it
                raise

    def _record_end(
        self, request: HttpRequest, admitted_at: float, task: "asyncio.Task[Transcript]"
    ) -> None:
        """Updates the metrics and the log with the end of a transcription."""
        metrics, times = self._server.metrics, Times(admitted_at, None, None, time.monotonic())
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ApiError) and error.status < 500:
            return
        reason = "abort" if task.cancelled() else "error" if error else "stop"
        metrics.finished(times, reason, prompt=0, cached=0, generated=0)
        if reason == "stop":
            transcript = task.result()
            metrics.arrived(transcript.adapter)
            metrics.transcribed(
                transcript.seconds,
                prompt=transcript.prompt_tokens,
                generated=transcript.answer_tokens,
            )
            self._server.log_prompt(request, {"text": text_of(transcript)})

    def _transcribe(
        self,
        upload: UploadFile,
        options: Options,
        admitted: AdmittedRequest,
        on_progress: Callable[[float], None],
        follow: Callable[[str], None] | None,
        stop: threading.Event,
    ) -> Transcript:
        """The transcript of an upload. Raises ApiError for an invalid recording, and 429 where other prompts leave too
        little memory for pieces of more than half an hour."""

        def reserve(count: int) -> None:
            if self._server.settings.max_audio_seconds > Settings.max_audio_seconds:
                admitted.reserve(count)

        name = "the given bytes of a clip"
        try:
            with _stored(upload) as source:
                name = str(source) if isinstance(source, Path) else name
                (transcript,) = longform.transcribe(
                    self._server.engine,
                    [source],
                    options.task,
                    window=options.window,
                    caller=options.caller,
                    max_seconds=self._server.settings.max_recording_seconds,
                    on_progress=on_progress,
                    on_text=follow,
                    reserve=reserve,
                    stop=stop,
                )
                warnings = (PROMPT_WARNING,) if options.form.prompt else ()
                return replace(transcript, warnings=(*warnings, *transcript.warnings))
        except (Stopped, ApiError):
            raise
        except UnknownAdapter as error:
            raise as_api_error(error) from None
        except ValueError as error:
            message = str(error).replace(name, "the file")
            if isinstance(error, MediaError):
                self._server.metrics.media_rejected(error.reason)
                raise media_api_error(MediaError(message, error.reason), "file") from None
            raise ApiError(400, message, param="file") from None
        except Exception as error:
            log.error("a transcription failed", exc_info=error)
            raise as_api_error(error) from None

    async def _whole(self, transcript: Transcript, options: Options) -> Response:
        answers = self._server.answers
        if options.form.response_format == "json":
            return await answers.response(await self._json(transcript, options))
        if options.form.response_format == "verbose_json":
            return await answers.response(
                await answers.build_part(
                    partial(_verbose, transcript, options), VALUES * transcript.answer_tokens
                )
            )
        if options.form.response_format == "text":
            return PlainTextResponse(text_of(transcript) + "\n")
        text = await answers.in_thread(
            partial(subtitles.write, transcript, options.form.response_format)
        )
        return PlainTextResponse(text)

    async def _json(self, transcript: Transcript, options: Options) -> dict[str, Any]:
        """The fields of a JSON response and of a stream's last event."""
        return {"text": text_of(transcript), **await self._extra_fields(transcript, options)}

    async def _events(
        self,
        work: "asyncio.Task[Transcript]",
        texts: "asyncio.Queue[str | None]",
        options: Options,
    ) -> AsyncIterator[bytes]:
        empty = True
        while (text := await texts.get()) is not None:
            empty = False
            yield event({"type": "transcript.text.delta", "delta": text})
        try:
            transcript = await work
        except ApiError as error:
            yield event(error.body)
            return
        if empty:  # clients expect a delta before the text is done
            yield event({"type": "transcript.text.delta", "delta": ""})
        done = {"type": "transcript.text.done", **await self._json(transcript, options)}
        async for piece in self._server.answers.event(done):
            yield piece

    async def _extra_fields(self, transcript: Transcript, options: Options) -> dict[str, Any]:
        """The fields of a JSON response other than its text."""
        fields: dict[str, Any] = {
            "usage": usage(transcript),
            "adapter": transcript.adapter,
        }
        if transcript.translation is not None and transcript.text:
            fields["transcript"] = transcript.text
        if options.form.logprobs:
            build = partial(logprobs, self._server.tokens, transcript)
            size = VALUES * transcript.answer_tokens
            fields["logprobs"] = await self._server.answers.build_part(build, size)
        if transcript.warnings:
            fields["warnings"] = list(transcript.warnings)
        return fields


@contextmanager
def _stored(upload: UploadFile) -> Iterator[bytes | Path]:
    """An upload as bytes, or as a private temporary file that is deleted afterwards."""
    if (upload.size or 0) <= IN_MEMORY:
        yield upload.file.read()
        return
    with tempfile.NamedTemporaryFile(prefix="polyphi-") as file:
        copyfileobj(upload.file, file, 1 << 20)
        file.flush()
        upload.file.close()
        yield Path(file.name)


def longest_segment(settings: Settings) -> float:
    """Maximum seconds of a segment. Segments may be rounded up to the next sample."""
    return max(1.0, settings.max_audio_seconds - 0.1)


def usage(transcript: Transcript) -> dict[str, Any]:
    """The tokens of a transcription."""
    return {
        "type": "tokens",
        "input_tokens": transcript.prompt_tokens,
        "input_token_details": {
            "text_tokens": transcript.prompt_tokens - transcript.audio_tokens,
            "audio_tokens": transcript.audio_tokens,
        },
        "output_tokens": transcript.answer_tokens,
        "total_tokens": transcript.prompt_tokens + transcript.answer_tokens,
    }


def logprobs(tokens: RequestTokens, transcript: Transcript) -> list[dict[str, Any]]:
    return [
        tokens.entry(token, logprob)
        for segment in transcript.segments
        for token, logprob in zip(segment.tokens, segment.logprobs, strict=True)
    ]


def _verbose(transcript: Transcript, options: Options) -> dict[str, Any]:
    """OpenAI's `verbose_json`."""
    body = subtitles.verbose(transcript, options.language)
    if options.form.words:
        body.setdefault("words", [])
    if not options.form.segments:
        del body["segments"]
    usage = {"type": "duration", "seconds": round(transcript.seconds, 3)}
    return {**body, "usage": usage, "adapter": transcript.adapter}


async def _outcome(work: "asyncio.Task[Transcript]") -> Transcript:
    return await work
