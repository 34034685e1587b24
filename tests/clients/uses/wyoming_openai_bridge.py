"""wyoming-openai: the bridge by which Home Assistant's voice assistants use a server's speech recognition."""

import asyncio
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def bridge(request: pytest.FixtureRequest, url: str, model: str, port: int) -> Iterator[None]:
    """The bridge in a process of its own, with an option for the model if the test has one."""
    options = [f"--stt-{request.param}-models", model] if hasattr(request, "param") else []
    command = [sys.executable, "-m", "wyoming_openai", "--uri", f"tcp://127.0.0.1:{port}"]
    server = ["--stt-openai-url", f"{url}/v1", "--stt-openai-key", "none", "--stt-models", model]
    process = subprocess.Popen([*command, *server, *options])
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert process.poll() is None, "the bridge ended"
            time.sleep(0.1)
    yield
    process.terminate()
    process.wait()


async def transcribe(port: int, model: str, path: str) -> tuple[str, list[str]]:
    """Send a recording as Home Assistant does; returns its transcript and the partial texts before."""
    async with AsyncTcpClient("127.0.0.1", port) as client:
        await client.write_event(Transcribe(name=model, language="en").event())
        with wave.open(path) as file:
            layout = (file.getframerate(), file.getsampwidth(), file.getnchannels())
            await client.write_event(AudioStart(*layout).event())
            while audio := file.readframes(1024):
                await client.write_event(AudioChunk(*layout, audio).event())
        await client.write_event(AudioStop().event())
        pieces = []
        while event := await asyncio.wait_for(client.read_event(), 60):
            if Transcript.is_type(event.type):
                return Transcript.from_event(event).text, pieces
            if TranscriptChunk.is_type(event.type):
                pieces.append(TranscriptChunk.from_event(event).text)
    raise AssertionError("the connection ended without a transcript")


def test_description(bridge: None, port: int, model: str) -> None:
    async def describe() -> Info:
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Describe().event())
            return Info.from_event(await asyncio.wait_for(client.read_event(), 30))

    (program,) = asyncio.run(describe()).asr
    assert model in [entry.name for entry in program.models]


@pytest.fixture
def expected(url: str, model: str, media: Any) -> str:
    """The transcript without the bridge."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    file = Path(media["recording.wav"]["path"])
    return client.audio.transcriptions.create(model=model, file=file).text


def test_transcription(bridge: None, port: int, model: str, media: Any, expected: str) -> None:
    text, _ = asyncio.run(transcribe(port, model, media["recording.wav"]["path"]))
    assert text.strip() == expected.strip() != ""


@pytest.mark.parametrize("bridge", ["streaming"], indirect=True)
def test_streamed(bridge: None, port: int, model: str, media: Any, expected: str) -> None:
    text, pieces = asyncio.run(transcribe(port, model, media["recording.wav"]["path"]))
    assert text.strip() == expected.strip() == "".join(pieces).strip()


@pytest.mark.parametrize("bridge", ["realtime"], indirect=True)
def test_live(bridge: None, port: int, model: str, media: Any) -> None:
    """By the Realtime API."""
    text, _ = asyncio.run(transcribe(port, model, media["recording.wav"]["path"]))
    assert text.strip()


@pytest.mark.skip(reason="the model writes text only")
def test_speech() -> None: ...
