"""CrewAI: its language model, agents with tools, and a crew."""

import asyncio
from typing import Any, Literal

import pytest
from pydantic import BaseModel

SUM = "What is 3 + 4?"


class Color(BaseModel, extra="forbid"):
    color: Literal["red", "green"]
    shape: Literal["circle", "square"]


@pytest.fixture(autouse=True, scope="module")
def no_telemetry(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """CrewAI reads these when it is imported, and keeps files in the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("CREWAI_DISABLE_TELEMETRY", "OTEL_SDK_DISABLED", "CREWAI_TESTING"):
            patch.setenv(name, "true")
        patch.setenv("CREWAI_TRACING_ENABLED", "false")
        yield


@pytest.fixture
def crewai() -> Any:
    """The package, imported after the environment is set."""
    import crewai

    return crewai


@pytest.fixture
def phi(crewai: Any, log: Any, model: str) -> Any:
    return crewai.LLM(model=f"openai/{model}", base_url=f"{log.url}/v1", api_key="none")


def test_language_model(phi: Any, log: Any) -> None:
    assert phi.call(SUM) == log.text()
    assert asyncio.run(phi.acall(SUM)) == log.text()


def test_structured_output(phi: Any) -> None:
    assert isinstance(phi.call(SUM, response_model=Color), Color)


def test_stream(crewai: Any, log: Any, model: str) -> None:
    phi = crewai.LLM(model=f"openai/{model}", base_url=f"{log.url}/v1", api_key="none", stream=True)
    assert phi.call(SUM) == log.text() and log.bodies[0]["stream"] is True


def test_responses(crewai: Any, log: Any, model: str) -> None:
    phi = crewai.LLM(
        model=f"openai/{model}", base_url=f"{log.url}/v1", api_key="none", api="responses"
    )
    assert phi.call(SUM) and log.requests[0][0] == "/v1/responses"


def test_crew(crewai: Any, phi: Any, log: Any) -> None:
    agent = crewai.Agent(role="Tutor", goal="Add", backstory="A teacher.", llm=phi)
    tasks = [
        crewai.Task(description=f"What is {n} + 4?", expected_output="A number", agent=agent)
        for n in (3, 5)
    ]
    result = crewai.Crew(agents=[agent], tasks=tasks).kickoff()
    assert len(result.tasks_output) == 2 and result.raw.strip() == log.text().strip()


def test_tools(crewai: Any, phi: Any, log: Any) -> None:
    """CrewAI leaves the choice of a tool to the model."""
    from crewai.tools import tool

    @tool
    def get_weather(city: str) -> str:
        """Weather in a city"""
        return f"20 C in {city}"

    agent = crewai.Agent(
        role="Reporter", goal="Report", backstory="", llm=phi, tools=[get_weather], max_iter=2
    )
    result = agent.kickoff(SUM)
    (function, *_) = log.bodies[0]["tools"]
    assert function["function"]["name"] == "get_weather" and result.raw is not None


def test_task_with_an_object(crewai: Any, phi: Any) -> None:
    agent = crewai.Agent(role="Painter", goal="Name a color", backstory="A painter.", llm=phi)
    assert isinstance(agent.kickoff(SUM, response_format=Color).pydantic, Color)
