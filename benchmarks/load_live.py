"""Live sessions of load.py: audio over a WebSocket, and its transcripts.

>>> seconds = await run_session("ws://127.0.0.1:8000", plan_session("live", pool))

A session has one to three items. With turn detection the server ends them after a second of silence, otherwise the
client commits. Each must get its transcript before the next one is sent. Broken events are sent among the others, and
each must be answered by an error.
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from load_pool import BROKEN, LIVE_RATE, Pool
from websockets.asyncio.client import ClientConnection, connect

PATH = "/v1/realtime?intent=transcription"
BUSY = ("queue_full", "too_many_sessions", "stopping")
"""Codes of errors that refuse a session."""
PATIENCE = 300.0
"""Seconds that a transcript may take."""
PIECE = LIVE_RATE // 10
"""Samples of an append."""
SILENCE = np.zeros(round(1.2 * LIVE_RATE), "<i2")
BROKEN_EVENTS = (
    '{"type": "input_audio_buffer.append", "audio": ',
    '{"type": "input_audio_buffer.append", "audio": "*"}',
    '{"type": "input_audio_buffer.append", "audio": "", "rate": 3}',
    '{"type": "response.create"}',
    '{"type": "session.update", "session": {"type": "realtime"}}',
    "[1, 2]",
)
TRANSCRIPTION = "conversation.item.input_audio_transcription"


class Refused(Exception):
    """The server has no place for a session."""


class Wrong(Exception):
    """An event that the session doesn't expect."""


@dataclass
class PlannedSession:
    """Samples of the items, whether the server detects their ends, broken events before each item, the seconds between
    two appends, and whether a client that leaves early closes its socket without a word (`abrupt`)."""

    items: list[np.ndarray]
    turns: bool
    broken: list[str]
    pause: float
    abrupt: bool


def plan_session(task: str, pool: Pool) -> PlannedSession:
    rng = pool.rng
    items = [rng.choice(pool.speech) for _ in range(rng.randint(1, 3))]
    broken = [rng.choice(BROKEN_EVENTS) if rng.random() < 2 * BROKEN else "" for _ in items]
    pause = rng.choice([0.0, 0.02, 0.1])
    return PlannedSession(items, task == "live turns", broken, pause, rng.random() < 0.5)


@asynccontextmanager
async def dialed(url: str, abrupt: bool) -> AsyncIterator[ClientConnection]:
    connection = await connect(url + PATH, compression=None, proxy=None, open_timeout=120)
    try:
        yield connection
    except asyncio.CancelledError:
        if abrupt:
            connection.transport.abort()
        raise
    finally:
        await connection.close()


async def run_session(url: str, session: PlannedSession) -> float:
    """The longest time in seconds from the end of an item's audio to its transcript. Raises Refused, Wrong,
    TimeoutError, and the exceptions of websockets."""
    detection = {"type": "server_vad"} if session.turns else None
    config = {"type": "transcription", "audio": {"input": {"turn_detection": detection}}}
    longest = 0.0
    async with dialed(url, session.abrupt) as connection:
        await until(connection, "session.created")
        await connection.send(json.dumps({"type": "session.update", "session": config}))
        await until(connection, "session.updated")
        for samples, broken in zip(session.items, session.broken, strict=True):
            if broken:
                await connection.send(broken)
                await until(connection, "error")
            audio = np.concatenate([samples, SILENCE]) if session.turns else samples
            for start in range(0, len(audio), PIECE):
                data = base64.b64encode(audio[start : start + PIECE].tobytes()).decode()
                event = {"type": "input_audio_buffer.append", "audio": data}
                await connection.send(json.dumps(event))
                await asyncio.sleep(session.pause)
            ended = time.monotonic()
            if not session.turns:
                await connection.send('{"type": "input_audio_buffer.commit"}')
            async with asyncio.timeout(PATIENCE):
                await until(connection, f"{TRANSCRIPTION}.completed")
            longest = max(longest, time.monotonic() - ended)
    return longest


async def until(connection: ClientConnection, type: str) -> dict[str, Any]:
    """The next event of a type. Raises for an error and for a failed item, unless `type` is that."""
    while True:
        event: dict[str, Any] = json.loads(await connection.recv())
        error = event.get("error", {}) if event["type"] == "error" else None
        if error is not None and set(error) != {"type", "code", "message", "param", "event_id"}:
            raise Wrong(f"an error without our shape: {event}")
        if error and error["code"] in BUSY:
            raise Refused
        if event["type"] == type:
            return event
        if event["type"] in ("error", f"{TRANSCRIPTION}.failed"):
            raise Wrong(str(event["error"]))
