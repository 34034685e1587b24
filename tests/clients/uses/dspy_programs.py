"""DSPy: its language model, its modules, and what its adapters ask of a server."""

import asyncio
from typing import Any, Literal

import dspy
import pytest
from dspy import lm15
from dspy.lm15 import OpenAIChatCompat
from dspy.utils.exceptions import AdapterParseError

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


def test_default_adapter(phi: dspy.LM, log: Any) -> None:
    """nano doesn't write the format of the default adapter, and DSPy then asks for JSON in words."""
    with dspy.context(lm=phi), pytest.raises(AdapterParseError):
        dspy.Predict(Forecast)(question=QUESTION, config={"max_tokens": 20})
    assert len(log.bodies) == 2 and log.bodies[0]["messages"] != log.bodies[1]["messages"]


@pytest.fixture
def strict(options: Any, model: str) -> dspy.LM:
    """The model of a provider that is registered as one with schemas; DSPy sends none to unknown models."""
    access = lm15.AccessPolicy(provider="polyphi", base_url=options["api_base"])
    supports = lm15.ModelSupport(response_schema=True, function_calling=True)
    provider = lm15.ProviderDefinition.chat(access, compat=OpenAIChatCompat())
    lm15.register_provider(provider, supports=supports, replace=True)
    return dspy.LM(f"polyphi/{model}", **options)


def test_json_adapter(strict: dspy.LM, log: Any) -> None:
    with dspy.context(lm=strict, adapter=dspy.JSONAdapter()):
        result = dspy.Predict(Forecast)(question=QUESTION)
    assert result.city in ("Seville", "Oslo") and result.day in ("Monday", "Tuesday")
    assert log.bodies[-1]["response_format"]["type"] == "json_schema"


def test_async_and_stream(strict: dspy.LM) -> None:
    listener = dspy.streaming.StreamListener(signature_field_name="city")
    predict = dspy.Predict(Forecast)
    ask = dspy.streamify(predict, stream_listeners=[listener])

    async def read() -> tuple[Any, list[Any]]:
        whole = await predict.acall(question=QUESTION)
        return whole, [value async for value in ask(question=QUESTION)]

    with dspy.context(lm=strict, adapter=dspy.JSONAdapter()):
        whole, values = asyncio.run(read())
    assert values[-1].city == whole.city
    pieces = [value.chunk for value in values if isinstance(value, dspy.streaming.StreamResponse)]
    assert whole.city in "".join(pieces)


def test_image(strict: dspy.LM, log: Any, media: Any) -> None:
    see = dspy.Predict("image: dspy.Image -> digit: Literal['0', '1']")
    with dspy.context(lm=strict, adapter=dspy.JSONAdapter()):
        assert see(image=dspy.Image.from_path(media["picture.png"]["path"])).digit in "01"
    assert "image_url" in [part["type"] for part in log.bodies[0]["messages"][-1]["content"]]


def test_audio(phi: dspy.LM, log: Any, media: Any) -> None:
    """DSPy sends audio by LiteLLM only, so that the answer has no schema, and nano's has no format."""
    hear = dspy.Predict("audio: dspy.Audio -> digits: str")
    audio = dspy.Audio.from_path(media["recording.wav"]["path"])
    with dspy.context(lm=phi, adapter=dspy.JSONAdapter()), pytest.raises(AdapterParseError):
        hear(audio=audio, config={"max_tokens": 20})
    assert "input_audio" in [part["type"] for part in log.bodies[0]["messages"][-1]["content"]]


def test_embeddings(options: Any, model: str) -> None:
    embed = dspy.Embedder(f"openai/{model}", caching=False, api_base=options["api_base"])
    cat, dog = embed(["a cat", "a dog"])
    assert len(cat) == len(dog) and list(cat) != list(dog)
