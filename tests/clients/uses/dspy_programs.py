"""DSPy: its language model, its modules, and what its adapters ask of a server."""

import asyncio
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

QUESTION = "What is the weather in Seville on Tuesday?"


class Forecast(dspy.Signature):
    """Name the city and the day of a question."""

    question: str = dspy.InputField()
    city: Literal["Seville", "Oslo"] = dspy.OutputField()
    day: Literal["Monday", "Tuesday"] = dspy.OutputField()


@pytest.fixture
def options(log: Any) -> dict[str, Any]:
    return {"api_base": f"{log.url}/v1", "api_key": "none", "cache": False, "num_retries": 0}


@pytest.fixture
def phi(options: dict[str, Any], model: str) -> dspy.LM:
    return dspy.LM(f"openai/{model}", **options)


def test_language_model(phi: dspy.LM, log: Any) -> None:
    assert phi("What is 3 + 4?") == [log.text()]


def test_responses(options: Any, model: str, log: Any) -> None:
    phi = dspy.LM(f"openai/{model}", model_type="responses", **options)
    assert phi("What is 3 + 4?") and log.requests[0][0] == "/v1/responses"


def test_text_completion(options: Any, model: str, log: Any) -> None:
    phi = dspy.LM(f"openai/{model}", model_type="text", max_tokens=5, **options)
    assert phi("3 + 4 =") and log.requests[0][0] == "/v1/completions"


@pytest.mark.parametrize("module", [dspy.Predict, dspy.ChainOfThought])
def test_module(phi: dspy.LM, log: Any, module: Any) -> None:
    """nano doesn't write the format of the default adapter, so that DSPy asks again, by a JSON schema."""
    with dspy.context(lm=phi):
        if module is dspy.ChainOfThought:  # free text within JSON, which nano doesn't end
            with pytest.raises(Exception, match="."):
                module(Forecast)(question=QUESTION, config={"max_tokens": 60})
        else:
            result = module(Forecast)(question=QUESTION)
            assert result.city in ("Seville", "Oslo") and result.day in ("Monday", "Tuesday")
    assert log.bodies[-1]["response_format"]["type"] == "json_schema"


def test_json_adapter_and_async(phi: dspy.LM) -> None:
    async def ask() -> Any:
        return await dspy.Predict(Forecast).acall(question=QUESTION)

    with dspy.context(lm=phi, adapter=dspy.JSONAdapter()):
        assert asyncio.run(ask()).city in ("Seville", "Oslo")


def test_stream(phi: dspy.LM) -> None:
    listener = dspy.streaming.StreamListener(signature_field_name="city")
    ask = dspy.streamify(dspy.Predict(Forecast), stream_listeners=[listener])

    async def read() -> list[Any]:
        return [value async for value in ask(question=QUESTION)]

    with dspy.context(lm=phi, adapter=dspy.JSONAdapter()):
        values = asyncio.run(read())
    assert isinstance(values[-1], dspy.Prediction)
    pieces = [value.chunk for value in values if isinstance(value, dspy.streaming.StreamResponse)]
    assert values[-1].city in "".join(pieces)


def test_image_and_audio(phi: dspy.LM, log: Any, media: Any) -> None:
    see = dspy.Predict("image: dspy.Image -> digit: Literal['0', '1']")
    hear = dspy.Predict("audio: dspy.Audio -> digit: Literal['0', '1']")
    with dspy.context(lm=phi, adapter=dspy.JSONAdapter()):
        picture = Path(media["picture.png"]["path"])
        assert see(image=dspy.Image(str(picture))).digit in "01"
        audio = dspy.Audio.from_file(media["recording.wav"]["path"])
        assert hear(audio=audio).digit in "01"
    types = [part["type"] for body in log.bodies for part in body["messages"][-1]["content"]]
    assert "image_url" in types and "input_audio" in types


def test_react_with_tools(phi: dspy.LM) -> None:
    def get_weather(city: Literal["Seville", "Oslo"]) -> str:
        """Weather in a city"""
        return f"20 C in {city}"

    agent = dspy.ReAct(Forecast, tools=[get_weather], max_iters=1)
    with dspy.context(lm=phi, adapter=dspy.JSONAdapter()):
        result = agent(question=QUESTION)
    assert result.city in ("Seville", "Oslo") and result.trajectory


def test_embeddings(options: Any, model: str) -> None:
    embed = dspy.Embedder(f"openai/{model}", caching=False, api_base=options["api_base"])
    cat, dog = embed(["a cat", "a dog"])
    assert len(cat) == len(dog) and list(cat) != list(dog)
