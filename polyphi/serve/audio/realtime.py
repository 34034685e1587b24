"""Live transcription over a WebSocket, by the events of OpenAI's Realtime API for transcription sessions.

A client appends audio; `live.Live` cuts it into items, and sends partial text and transcripts. A session counts as one
of the server's requests, since at most one of its items is transcribed at a time. Its audio, its messages and its time
are limited. When the client disconnects, what is being generated for it ends within a step of the engine.
"""

import asyncio
import base64
import binascii
import io
import json
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import soundfile
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from polyphi.serve.answer.metrics import Times
from polyphi.serve.answer.server import LARGE, Server
from polyphi.serve.audio.realtime_schema import RATES, Append, SessionSettings, Update, parse_event
from polyphi.serve.audio.transcriptions import logprobs, longest_segment, usage
from polyphi.serve.http.errors import ApiError, as_api_error
from polyphi.serve.http.json_parser import checked
from polyphi.transcription import longform
from polyphi.transcription.live import (
    AudioItem,
    BufferFull,
    Committed,
    Completed,
    Failed,
    Live,
    LiveEvent,
    SpeechStarted,
    SpeechStopped,
    TooShort,
    TranscriptDelta,
)
from polyphi.transcription.transcript import text_of

log = logging.getLogger("polyphi.serve")
SUBPROTOCOL = "realtime"
UNREAD = 256
"""Events that a client may leave unread before its messages are no longer processed."""
G711 = {"audio/pcmu": "ULAW", "audio/pcma": "ALAW"}
CLOSE_CODES = {429: 1013, 503: 1013}
"""WebSocket close codes of errors that end a session: "try again later"; 1011 for the server's errors, else 1008."""
TRANSCRIPTION = "conversation.item.input_audio_transcription"


def routes(server: Server) -> APIRouter:
    router = APIRouter()

    @router.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await Session(server, socket).run()

    return router


class Session:
    """A transcription session: one WebSocket."""

    def __init__(self, server: Server, socket: WebSocket) -> None:
        self._server, self._socket = server, socket
        self._loop = asyncio.get_running_loop()
        self._caller = server.caller(socket)
        self._id = f"sess_{secrets.token_hex(8)}"
        self._expires_at = int(time.time() + server.settings.live_seconds)
        self._session = SessionSettings.default(server.settings.name)
        self._live: Live | None = None
        self._odd = b""  # of a sample whose second byte comes with the next event
        self._last_item: str | None = None
        self._events: asyncio.Queue[str | None] = asyncio.Queue()

    async def run(self) -> None:
        """Serves the session until its end."""
        offered = self._socket.scope.get("subprotocols", ())
        await self._socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        sender = asyncio.ensure_future(self._send())
        error: ApiError | None = None
        try:
            with self._server.admit(self._socket, live=True):
                try:
                    self._start()
                    await self._receive(sender)
                finally:
                    if self._live is not None:
                        self._live.stop()
        except WebSocketDisconnect:
            sender.cancel()
        except ApiError as failure:
            error = failure
            self._post_error(error)
        except BaseException:
            sender.cancel()
            raise
        finally:
            if self._live is not None:
                close = self._server.in_turn(False, self._caller, self._live.close)
                await asyncio.shield(close)
        # In the loop's order: after the events that other threads have sent.
        self._loop.call_soon(self._events.put_nowait, None)
        with suppress(WebSocketDisconnect, asyncio.CancelledError):
            await sender
        if error is not None and sender.done() and not sender.cancelled():
            with suppress(WebSocketDisconnect, RuntimeError):
                default = 1011 if error.status >= 500 else 1008
                code = CLOSE_CODES.get(error.status, default)
                await self._socket.close(code, error.code or "")

    def _start(self) -> None:
        """Checks the address, and sends `session.created`."""
        if self._server.engine.model.audio is None:
            raise ApiError(
                400,
                "this model has no audio encoder and can't transcribe; use a model with one",
                param="model",
            )
        query = self._socket.query_params
        if (intent := query.get("intent", "transcription")) != "transcription":
            raise ApiError(
                400, f"intent: expected 'transcription', found {intent!r:.80}", param="intent"
            )
        if model := query.get("model"):
            self._server.adapter(model, "auto")
            self._session.audio.input.transcription.model = model
        self._post_session("session.created")

    async def _receive(self, sender: "asyncio.Future[None]") -> None:
        """Processes messages until the client disconnects (WebSocketDisconnect). Raises ApiError after a limit in
        time."""
        settings = self._server.settings
        end = self._loop.time() + settings.live_seconds
        while True:
            idle = self._loop.time() + settings.live_idle_seconds
            try:
                async with asyncio.timeout_at(min(idle, end)):
                    message = await self._socket.receive()
            except TimeoutError:
                if idle < end:
                    seconds = f"{settings.live_idle_seconds:g} s"
                    raise ApiError(
                        408,
                        f"the session ended because no event arrived for {seconds}; append audio, or open a session "
                        "when there is some",
                        code="session_idle",
                    ) from None
                raise ApiError(
                    408,
                    f"the session ended after {settings.live_seconds:g} s; open another one",
                    code="session_expired",
                ) from None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1000))
            text = message.get("text") or ""
            large = len(text) > LARGE
            await self._server.in_turn(large, self._caller, self._process, text)
            await asyncio.sleep(0)  # the events of this message are in the queue afterwards
            if self._events.qsize() > UNREAD:
                read = asyncio.ensure_future(self._events.join())
                await asyncio.wait({read, sender}, return_when=asyncio.FIRST_COMPLETED)
                read.cancel()

    async def _send(self) -> None:
        while (text := await self._events.get()) is not None:
            await self._socket.send_text(text)
            self._events.task_done()

    def _post(self, type: str, **fields: Any) -> None:
        """Sends an event, from any thread, in the order of the calls."""
        text = json.dumps({"type": type, "event_id": f"event_{secrets.token_hex(8)}", **fields})
        with suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, text)

    def _post_error(self, error: ApiError, event_id: str | None = None) -> None:
        self._post("error", error={**error.body["error"], "event_id": event_id})

    def _post_session(self, type: str) -> None:
        self._post(type, session=self._session.body(self._id, self._expires_at))

    def _process(self, text: str) -> None:
        """Processes a message, in a thread; an invalid one is answered with an error."""
        event_id: Any = None
        try:
            try:
                value = json.loads(checked(text.encode()))  # within the limits of a body
            except (ValueError, RecursionError):
                raise ApiError(400, "expected a JSON text message", code="invalid_json") from None
            event_id = value.get("event_id") if isinstance(value, dict) else None
            event = parse_event(value)
            if isinstance(event, Update):
                self._update(event.session)
            elif isinstance(event, Append):
                self._append(event.audio)
            elif event.type == "input_audio_buffer.commit":
                self._open_live().commit()
            else:
                self._odd = b""
                self._open_live().clear()
                self._post("input_audio_buffer.cleared")
        except ApiError as error:
            self._post_error(error, event_id if isinstance(event_id, str) else None)
        except TooShort as error:
            code = "input_audio_buffer_commit_empty"
            self._post_error(ApiError(400, str(error), code=code), event_id)
        except BufferFull as error:
            code = "input_audio_buffer_full"
            self._post_error(ApiError(429, str(error), param="audio", code=code), event_id)
        except Exception as error:
            log.error("an event of a live session failed", exc_info=error)
            self._post_error(as_api_error(error), event_id)

    def _update(self, changes: dict[str, Any]) -> None:
        old, new = self._session, self._session.updated(changes)
        self._server.adapter(new.audio.input.transcription.model, "auto")
        if self._live is not None:
            before, after = old.audio.input, new.audio.input
            if after.format != before.format:
                raise ApiError(
                    400,
                    "the format can only be changed before the first audio; open another session",
                    param="session.audio.input.format",
                )
            if (after.turn_detection, after.transcription) != (
                before.turn_detection,
                before.transcription,
            ):
                if not self._live.idle:
                    raise ApiError(
                        400,
                        "these settings can't be changed while audio waits for its transcript; commit or clear it, and "
                        "wait for the transcripts",
                        param="session.audio.input",
                        code="session_busy",
                    )
                self._live.configure(after.turns, self._task(new))
        self._session = new
        self._post_session("session.updated")

    def _task(self, session: SessionSettings) -> longform.Task:
        adapter = self._server.adapter(session.audio.input.transcription.model, "auto")
        return replace(longform.transcription(), adapter=adapter)

    def _open_live(self) -> Live:
        """The transcription, created for the first audio."""
        if self._live is None:
            own, settings = self._session.audio.input, self._server.settings
            self._live = Live(
                self._server.engine,
                self._task(self._session),
                rate=RATES[own.format.type],
                emit=self._on_event,
                turns=own.turns,
                buffered=settings.max_live_buffer_seconds,
                window=longest_segment(settings),
                caller=self._caller,
            )
        return self._live

    def _append(self, audio: str) -> None:
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(400, "audio: expected base64", param="audio") from None
        live, rest = self._open_live(), b""
        if law := G711.get(self._session.audio.input.format.type):
            samples = _decode(data, law)
        else:
            data = self._odd + data
            whole = len(data) // 2 * 2
            samples, rest = np.frombuffer(data[:whole], "<i2"), data[whole:]
        live.append(samples)
        self._odd = rest

    def _item_id(self, item: AudioItem) -> str:
        return f"item_{self._id.removeprefix('sess_')}_{item.number}"

    def _on_event(self, event: LiveEvent) -> None:
        """Sends an event of the transcription to the client."""
        item_id = self._item_id(event.item)
        part = {"item_id": item_id, "content_index": 0}
        if isinstance(event, SpeechStarted):
            ms = round(1000 * event.seconds)
            self._post("input_audio_buffer.speech_started", item_id=item_id, audio_start_ms=ms)
        elif isinstance(event, SpeechStopped):
            ms = round(1000 * event.seconds)
            self._post("input_audio_buffer.speech_stopped", item_id=item_id, audio_end_ms=ms)
        elif isinstance(event, Committed):
            self._post_item(item_id)
        elif isinstance(event, TranscriptDelta):
            self._post(f"{TRANSCRIPTION}.delta", **part, delta=event.text)
        elif isinstance(event, Completed):
            self._post(f"{TRANSCRIPTION}.completed", **part, **self._transcript(event))
        else:
            self._post(f"{TRANSCRIPTION}.failed", **part, error=self._failure(event))

    def _post_item(self, item_id: str) -> None:
        content = [{"type": "input_audio", "transcript": None}]
        item = {"id": item_id, "object": "realtime.item", "type": "message", "role": "user"}
        fields = {"previous_item_id": self._last_item}
        self._post("input_audio_buffer.committed", item_id=item_id, **fields)
        for name in ("added", "done"):
            whole = {**item, "status": "completed", "content": content}
            self._post(f"conversation.item.{name}", item=whole, **fields)
        self._last_item = item_id

    def _transcript(self, event: Completed) -> dict[str, Any]:
        """The fields of a transcript for an event to the client; also updates the metrics."""
        transcript, metrics, now = event.transcript, self._server.metrics, time.monotonic()
        metrics.arrived(transcript.adapter)
        times = Times(now - event.waited, None, None, now)
        metrics.finished(times, "stop", prompt=0, cached=0, generated=0)
        metrics.transcribed(
            transcript.seconds, prompt=transcript.prompt_tokens, generated=transcript.answer_tokens
        )
        metrics.live_completed(event.waited, event.revised)
        text = text_of(transcript)
        self._server.log_prompt(self._socket, {"text": text})
        fields: dict[str, Any] = {"transcript": text, "usage": usage(transcript)}
        if self._session.include:
            fields["logprobs"] = logprobs(self._server.tokens, transcript)
        if transcript.warnings:
            fields["warnings"] = list(transcript.warnings)
        return fields

    def _failure(self, event: Failed) -> dict[str, Any]:
        if not isinstance(event.error, ValueError):
            log.error("a live transcription failed", exc_info=event.error)
        now = time.monotonic()
        times = Times(now, None, None, now)
        self._server.metrics.finished(times, "error", prompt=0, cached=0, generated=0)
        fields: dict[str, Any] = as_api_error(event.error).body["error"]
        return fields


def _decode(data: bytes, law: str) -> np.ndarray:
    """The samples of G.711 audio."""
    if not data:
        return np.empty(0, np.int16)
    file, raw = io.BytesIO(data), {"format": "RAW", "samplerate": 8000, "channels": 1}
    samples, _ = soundfile.read(file, dtype="int16", subtype=law, **raw)
    return np.asarray(samples)
