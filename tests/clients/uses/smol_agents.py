"""smolagents with OpenAIModel: its model, and the loops of both of its agents.

nano follows no long prompt, so where a loop depends on what the model decides, the tools or a grammar decide for it.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import BadRequestError, DefaultHttpxClient
from PIL import Image
from smolagents import (
    AgentGenerationError,
    ChatMessage,
    CodeAgent,
    LogLevel,
    MessageRole,
    OpenAIModel,
    ToolCallingAgent,
    tool,
)

QUIET = {"verbosity_level": LogLevel.OFF}


@tool
def get_weather(city: Literal["Rome", "Paris"]) -> str:
    """Weather in a city

    Args:
        city: Its name.
    """
    return f"It is sunny in {city}."


@tool
def final_answer(answer: Literal["yes", "no"]) -> str:
    """The answer to the task

    Args:
        answer: The answer.
    """
    return answer


class Phi(OpenAIModel):
    """The model, with the bodies that it sends, in order."""

    def __init__(self, url: str, model: str, **options: Any) -> None:
        self.bodies: list[dict[str, Any]] = []
        http = DefaultHttpxClient(event_hooks={"request": [self._add]}, timeout=120)
        client = {"http_client": http, "max_retries": 0}
        options = {"max_tokens": 100, **options}
        super().__init__(model, f"{url}/v1", client_kwargs=client, **options)

    def _add(self, request: Any) -> None:
        self.bodies.append(json.loads(request.content))


@pytest.fixture
def phi(url: str, model: str) -> Phi:
    return Phi(url, model)


@pytest.fixture
def answer(post: Any) -> Any:
    """The message that the server answers to a body without the client."""

    def send(body: dict[str, Any]) -> dict[str, Any]:
        body = {name: value for name, value in body.items() if not name.startswith("stream")}
        return post("/v1/chat/completions", body)["choices"][0]["message"]

    return send


def user(*parts: dict[str, Any]) -> list[ChatMessage]:
    return [ChatMessage(MessageRole.USER, list(parts))]


SUM = user({"type": "text", "text": "What is 3 + 4?"})


def test_model(phi: Phi, post: Any, model: str) -> None:
    result = phi.generate(SUM)
    messages = [{"role": "user", "content": "What is 3 + 4?"}]
    expected = post("/v1/chat/completions", {"model": model, "messages": messages})
    assert result.content == expected["choices"][0]["message"]["content"]
    assert result.token_usage.input_tokens == expected["usage"]["prompt_tokens"]
    assert result.token_usage.output_tokens == expected["usage"]["completion_tokens"]


def test_model_streamed(phi: Phi) -> None:
    whole = phi.generate(SUM)
    deltas = list(phi.generate_stream(SUM))
    assert "".join(delta.content or "" for delta in deltas) == whole.content
    (usage,) = [delta.token_usage for delta in deltas if delta.token_usage]
    assert usage.output_tokens == whole.token_usage.output_tokens


def test_image(phi: Phi, answer: Any, media: Any) -> None:
    file = media["picture.png"]
    image = {"type": "image", "image": Image.open(file["path"])}
    result = phi.generate(user(image, {"type": "text", "text": file["question"]}))
    url = phi.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    pixels = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).tobytes()
    assert pixels == Image.open(file["path"]).tobytes()
    assert result.content == answer(phi.bodies[0])["content"]


def test_audio(phi: Phi, answer: Any, media: Any) -> None:
    """Parts that aren't smolagents' own are sent as they are."""
    file = media["recording.wav"]
    data = base64.b64encode(Path(file["path"]).read_bytes()).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    result = phi.generate(user(audio, {"type": "text", "text": file["question"]}))
    assert phi.bodies[0]["messages"][0]["content"][0] == audio
    assert result.content == answer(phi.bodies[0])["content"]


def test_required_tool_call(phi: Phi) -> None:
    question = user({"type": "text", "text": "What is the weather in Rome on Monday?"})
    message = phi.generate(question, tools_to_call_from=[get_weather])
    (call,) = message.tool_calls
    assert phi.bodies[0]["tool_choice"] == "required"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Paris")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_tool_calling_agent(phi: Phi, answer: Any, stream: bool) -> None:
    """Without `final_answer` the agent calls the tool in each step, and answers without tools at the end."""
    agent = ToolCallingAgent([get_weather], phi, stream_outputs=stream, **QUIET)
    del agent.tools["final_answer"]
    result = agent.run("What is the weather in Rome?", max_steps=2)
    first, second = agent.memory.steps[1:3]
    for step in (first, second):
        assert step.error is None
        assert step.tool_calls[0].name == "get_weather"
        city = step.tool_calls[0].arguments["city"]
        assert step.observations == f"It is sunny in {city}."
    assert first.observations in json.dumps(phi.bodies[1]["messages"][-1])
    assert second.observations in json.dumps(phi.bodies[2]["messages"])
    assert "tools" not in phi.bodies[2]
    assert result == answer(phi.bodies[2])["content"]


def test_tool_calling_agent_ends(phi: Phi, media: Any) -> None:
    """Its only tool is `final_answer`, so a call of it ends it. (The agent asks again where nano makes several calls at
    once.) The task has an image."""
    agent = ToolCallingAgent([final_answer], phi, **QUIET)
    image = Image.open(media["picture.png"]["path"])
    result = agent.run(media["picture.png"]["question"], images=[image])
    parts = phi.bodies[0]["messages"][-1]["content"]
    assert "image_url" in [part["type"] for part in parts]
    assert result in ("yes", "no")
    calls = [
        step.tool_calls or [] for step in agent.memory.steps[1:] if hasattr(step, "tool_calls")
    ]
    assert calls[-1][0].arguments == {"answer": result}


def test_code_agent(phi: Phi, answer: Any) -> None:
    """nano writes no code: the agent reports that, and goes on until it may not."""
    agent = CodeAgent([get_weather], phi, **QUIET)
    result = agent.run("What is 3 + 4?", max_steps=1)
    step, body = agent.memory.steps[1], phi.bodies[0]
    assert body["stop"]
    assert step.model_output.startswith(answer(body)["content"])
    assert result == answer(phi.bodies[1])["content"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_code_agent_runs_code(url: str, model: str, stream: bool) -> None:
    """A grammar makes the model write code; what the code prints is in the next request."""
    texts = ["<code>\nprint(get_weather('Rome'))\n</code>"]
    phi = Phi(url, model, extra_body={"structured_outputs": {"choice": texts}})
    agent = CodeAgent([get_weather], phi, stream_outputs=stream, **QUIET)
    agent.run("What is the weather in Rome?", max_steps=2)
    step = agent.memory.steps[1]
    assert step.error is None
    assert "It is sunny in Rome." in step.observations
    assert "It is sunny in Rome." in json.dumps(phi.bodies[1]["messages"][-1])


def test_code_agent_ends(url: str, model: str) -> None:
    texts = ["<code>\nfinal_answer(3 + 4)\n</code>"]
    phi = Phi(url, model, extra_body={"structured_outputs": {"choice": texts}})
    assert CodeAgent([], phi, **QUIET).run("What is 3 + 4?") == 7
    assert len(phi.bodies) == 1


def test_code_agent_with_structured_output(url: str, model: str, answer: Any) -> None:
    phi = Phi(url, model, max_tokens=20)
    agent = CodeAgent([], phi, use_structured_outputs_internally=True, **QUIET)
    agent.run("What is 3 + 4?", max_steps=1)
    body = phi.bodies[0]
    assert body["response_format"]["type"] == "json_schema"
    output = agent.memory.steps[1].model_output
    assert output.startswith("{") and output == answer(body)["content"]


def test_errors(url: str, model: str) -> None:
    phi = Phi(url, model, temperature=-1)
    with pytest.raises(BadRequestError) as error:
        phi.generate(SUM)
    assert error.value.param == "temperature"
    with pytest.raises(AgentGenerationError):
        ToolCallingAgent([], phi, **QUIET).run("What is 3 + 4?")
