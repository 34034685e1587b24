"""The voice pipeline of OpenAI's Agents SDK: a recording, the agent's answer, and a voice, which the server lacks."""

import asyncio
import wave
from collections.abc import AsyncIterator
from typing import Any

import agents
import numpy as np
import pytest
from agents import Agent, OpenAIResponsesModel
from agents.voice import (
    AudioInput,
    OpenAIVoiceModelProvider,
    SingleAgentVoiceWorkflow,
    StreamedAudioInput,
    STTModelSettings,
    TTSModel,
    TTSModelSettings,
    VoicePipeline,
    VoicePipelineConfig,
)
from openai import AsyncOpenAI


class Echo(TTSModel):
    """A voice that returns the text as bytes."""

    model_name = "echo"

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def run(self, text: str, settings: TTSModelSettings) -> AsyncIterator[bytes]:
        self.texts.append(text)
        yield bytes(4800)


@pytest.fixture(autouse=True)
def no_tracing() -> None:
    """Traces go to OpenAI's servers."""
    agents.set_tracing_disabled(True)


@pytest.fixture
def client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def samples(media: Any) -> np.ndarray:
    """The recording at 24 kHz, the rate of the SDK."""
    with wave.open(media["recording.wav"]["path"]) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        positions = np.arange(len(values) * 24000 // file.getframerate()) * file.getframerate()
    return values[positions // 24000]


@pytest.fixture
def voice() -> Echo:
    return Echo()


@pytest.fixture
def pipeline(client: AsyncOpenAI, model: str, voice: Echo) -> VoicePipeline:
    agent = Agent("Tutor", instructions="Be brief.", model=OpenAIResponsesModel(model, client))
    provider = OpenAIVoiceModelProvider(openai_client=client)
    return VoicePipeline(
        workflow=SingleAgentVoiceWorkflow(agent),
        stt_model=provider.get_stt_model(model),
        tts_model=voice,
        config=VoicePipelineConfig(model_provider=provider, tracing_disabled=True),
    )


async def events(result: Any) -> list[str]:
    return [event.type async for event in result.stream()]


def test_recording(pipeline: VoicePipeline, samples: np.ndarray, voice: Echo) -> None:
    async def run() -> list[str]:
        return await events(await pipeline.run(AudioInput(buffer=samples)))

    types = asyncio.run(run())
    assert "voice_stream_event_audio" in types and "".join(voice.texts).strip()


@pytest.mark.parametrize("detection", [None, {"type": "server_vad"}], ids=["default", "server_vad"])
def test_live(
    pipeline: VoicePipeline, samples: np.ndarray, voice: Echo, detection: dict[str, str] | None
) -> None:
    """The default finds the end of a turn by `semantic_vad`."""
    if detection:
        pipeline.config.stt_settings = STTModelSettings(turn_detection=detection)

    async def run() -> list[str]:
        audio = StreamedAudioInput()
        result = await pipeline.run(audio)
        silence = np.zeros(24000, np.int16)
        for start in range(0, len(samples), 2400):
            await audio.add_audio(samples[start : start + 2400])
        await audio.add_audio(silence)
        await audio.add_audio(silence)
        await audio.add_audio(None)
        return await asyncio.wait_for(events(result), 60)

    types = asyncio.run(run())
    assert "voice_stream_event_audio" in types and "".join(voice.texts).strip()


@pytest.mark.skip(reason="the server's Realtime API transcribes, and has no conversations")
def test_realtime_agent() -> None: ...


@pytest.mark.skip(reason="the model writes text only")
def test_speech() -> None: ...
