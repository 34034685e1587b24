"""Griptape: agents, pipelines and drivers with OpenAI's API."""

from pathlib import Path
from typing import Any, Literal

import pytest
from griptape.artifacts import AudioArtifact, ImageArtifact, ListArtifact, TextArtifact
from griptape.drivers.audio_transcription.openai import OpenAiAudioTranscriptionDriver
from griptape.drivers.embedding.openai import OpenAiEmbeddingDriver
from griptape.drivers.prompt.openai import OpenAiChatPromptDriver
from griptape.structures import Agent, Pipeline
from griptape.tasks import PromptTask
from griptape.tokenizers import SimpleTokenizer
from griptape.tools import CalculatorTool
from griptape.utils import Stream
from pydantic import BaseModel

SUM = "What is 3 + 4?"
# The default counts tokens by files that it downloads.
TOKENIZER = SimpleTokenizer(max_input_tokens=6000, max_output_tokens=2000, characters_per_token=4)


class Color(BaseModel, extra="forbid"):
    color: Literal["red", "green"]
    shape: Literal["circle", "square"]


@pytest.fixture
def server(log: Any, model: str) -> dict[str, Any]:
    return {"model": model, "base_url": f"{log.url}/v1", "api_key": "none"}


@pytest.fixture
def options(server: Any) -> dict[str, Any]:
    return {**server, "tokenizer": TOKENIZER, "temperature": 0, "max_attempts": 1}


def test_agent(options: Any, log: Any) -> None:
    agent = Agent(prompt_driver=OpenAiChatPromptDriver(**options))
    assert agent.run(SUM).output.value == log.text()


def test_stream(options: Any, log: Any) -> None:
    agent = Agent(prompt_driver=OpenAiChatPromptDriver(**options, stream=True))
    text = "".join(artifact.value for artifact in Stream(agent).run(SUM))
    assert text.strip() == log.text().strip()


def test_pipeline(options: Any, log: Any) -> None:
    driver = OpenAiChatPromptDriver(**options)
    tasks = [
        PromptTask(SUM, prompt_driver=driver),
        PromptTask("{{ parent_output }} + 1", prompt_driver=driver),
    ]
    assert Pipeline(tasks=tasks).run().output.value == log.text() and len(log.bodies) == 2


def test_output_schema(options: Any) -> None:
    task = PromptTask(output_schema=Color, prompt_driver=OpenAiChatPromptDriver(**options))
    assert isinstance(task.run(SUM).value, Color)


def test_tools(options: Any, log: Any) -> None:
    """Griptape leaves the choice of a tool to the model."""
    driver = OpenAiChatPromptDriver(**options, max_tokens=60)
    Agent(tools=[CalculatorTool()], prompt_driver=driver).run(SUM)
    assert log.bodies[0]["tools"][0]["function"]["name"].startswith("CalculatorTool")


def test_image(options: Any, log: Any, media: Any) -> None:
    picture = media["picture.png"]
    image = ImageArtifact(Path(picture["path"]).read_bytes(), format="png", width=112, height=112)
    question = TextArtifact(picture["question"])
    agent = Agent(prompt_driver=OpenAiChatPromptDriver(**options))
    assert agent.run(ListArtifact([question, image])).output.value == log.text()


def test_transcription(server: Any, media: Any) -> None:
    audio = AudioArtifact(Path(media["recording.wav"]["path"]).read_bytes(), format="wav")
    assert OpenAiAudioTranscriptionDriver(**server).run(audio).value


def test_embeddings(server: Any) -> None:
    driver = OpenAiEmbeddingDriver(**server, tokenizer=TOKENIZER, max_attempts=1)
    assert len(driver.embed("a cat")) > 1
