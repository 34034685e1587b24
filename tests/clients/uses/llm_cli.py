"""Simon Willison's llm, by its command and by its Python API, with models of its own configuration file."""

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llm as library
import pytest
from click.testing import CliRunner
from llm.cli import cli

SUM = "What is 3 + 4?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Paris"]}, "rain": {"type": "boolean"}},
    "required": ["city", "rain"],
    "additionalProperties": False,
}
ADD = '''
def add(a: int, b: int) -> int:
    """Add two numbers"""
    return a + b
'''
PARAMETERS = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
ADD_TOOL = {"name": "add", "description": "Add two numbers", "parameters": PARAMETERS}


@pytest.fixture(autouse=True, scope="session")
def user_path(tmp_path_factory: pytest.TempPathFactory, url: str, model: str) -> Iterator[None]:
    """llm's folder, with the model `phi` by chat completions, `phi-responses` and `phi-completions`."""
    folder = tmp_path_factory.mktemp("llm")
    base = f"  model_name: {model}\n  api_base: {url}/v1\n"
    features = "  vision: true\n  audio: true\n  supports_schema: true\n  supports_tools: true\n"
    (folder / "extra-openai-models.yaml").write_text(
        f"- model_id: phi\n{base}{features}"
        f"- model_id: phi-responses\n{base}{features}  responses: true\n"
        f"- model_id: phi-completions\n{base}  completion: true\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_USER_PATH", str(folder))
        yield


@pytest.fixture
def llm() -> Callable[..., str]:
    """Run `llm` with arguments and standard input in this process; returns its output, or of status 1 its error."""

    def run(*arguments: str, input: str = "", status: int = 0) -> str:
        result = CliRunner().invoke(cli, arguments, input=input)
        assert result.exit_code == status, result.output
        return (result.stderr if status else result.stdout).strip()

    return run


@pytest.fixture
def logs(llm: Callable[..., str]) -> Callable[[], list[dict[str, Any]]]:
    """Return what llm has logged of the last conversation, the earliest response first."""
    return lambda: json.loads(llm("logs", "-c", "--json"))


@pytest.fixture
def answer(post: Any, model: str) -> Callable[..., dict[str, Any]]:
    """The message that the server answers to a chat without the client."""

    def send(*messages: Any, **fields: Any) -> dict[str, Any]:
        turns = [m if isinstance(m, dict) else {"role": "user", "content": m} for m in messages]
        body = {"model": model, "messages": turns, **fields}
        return post("/v1/chat/completions", body)["choices"][0]["message"]

    return send


@pytest.mark.parametrize("options", [(), ("--no-stream",)], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", ["phi", "phi-responses"])
def test_answer(
    llm: Callable[..., str], logs: Any, post: Any, model: str, name: str, options: tuple[str, ...]
) -> None:
    messages = [{"role": "user", "content": SUM}]
    expected = post("/v1/chat/completions", {"model": model, "messages": messages})
    assert llm("-m", name, *options, SUM) == expected["choices"][0]["message"]["content"].strip()
    (entry,) = logs()
    assert entry["input_tokens"] == expected["usage"]["prompt_tokens"]
    assert entry["output_tokens"] == expected["usage"]["completion_tokens"]


def test_command(answer: Any) -> None:
    command = [sys.executable, "-m", "llm", "-m", "phi", SUM]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert output.strip() == answer(SUM)["content"].strip()


def test_completion(llm: Callable[..., str], post: Any, model: str) -> None:
    expected = post("/v1/completions", {"model": model, "prompt": "3 + 4 ="})
    assert llm("-m", "phi-completions", "3 + 4 =") == expected["choices"][0]["text"].strip()


def test_endpoint_without_configuration(llm: Callable[..., str], url: str, model: str) -> None:
    endpoint = ("openai", "endpoint", f"{url}/v1")
    assert model in llm(*endpoint, "--models").split()
    assert llm(*endpoint, "-m", model, SUM) == llm("-m", "phi", SUM)


def test_system_and_options(llm: Callable[..., str], answer: Any) -> None:
    options = {"temperature": 0.8, "seed": 3, "max_tokens": 8}
    flags = [word for name, value in options.items() for word in ("-o", name, str(value))]
    expected = answer({"role": "system", "content": "Be brief."}, SUM, **options)
    text = llm("-m", "phi", "-s", "Be brief.", *flags, input=SUM)
    assert text == expected["content"].strip()


@pytest.mark.parametrize("name", ["picture.png", "recording.wav"])
def test_attachment(llm: Callable[..., str], answer: Any, media: Any, name: str) -> None:
    file = media[name]
    data = base64.b64encode(Path(file["path"]).read_bytes()).decode()
    part = (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        if name == "picture.png"
        else {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    )
    content = [{"type": "text", "text": file["question"]}, part]
    expected = answer({"role": "user", "content": content})["content"].strip()
    assert llm("-m", "phi", file["question"], "-a", file["path"]) == expected
    if name == "picture.png":
        assert llm("-m", "phi-responses", file["question"], "-a", file["path"]) == expected


@pytest.mark.parametrize("name", ["phi", "phi-responses"])
def test_conversation(llm: Callable[..., str], answer: Any, name: str) -> None:
    first = llm("-m", name, SUM)
    second = llm("-m", name, "-c", "What is 5 + 2?")
    expected = answer(SUM, {"role": "assistant", "content": first}, "What is 5 + 2?")
    assert second == expected["content"].strip()


def test_template(llm: Callable[..., str]) -> None:
    llm("-m", "phi", "Translate to French: $input", "--save", "french")
    assert llm("-t", "french", input="cat") == llm("-m", "phi", "Translate to French: cat")


@pytest.mark.parametrize("name", ["phi", "phi-responses"])
def test_schema(llm: Callable[..., str], name: str) -> None:
    text = llm("-m", name, "--schema", json.dumps(SCHEMA), "Will it rain in Rome?")
    value = json.loads(text)
    assert list(value) == ["city", "rain"]
    assert value["city"] in ("Rome", "Paris") and isinstance(value["rain"], bool)


@pytest.mark.parametrize("name", ["phi", "phi-responses"])
def test_functions(llm: Callable[..., str], logs: Any, answer: Any, name: str) -> None:
    """llm can't require a call, so the question is one to which nano calls the function."""
    tools = [{"type": "function", "function": ADD_TOOL}]
    questions = ("Add 660 and 498.", "What is 12 plus 30?", "Add 77 and 31.", "Add 123 and 456.")
    question = next((q for q in questions if "tool_calls" in answer(q, tools=tools)), None)
    if question is None:
        pytest.skip("this nano calls the function for none of the questions")
    llm("-m", name, "--functions", ADD, "-o", "max_tokens", "60", question)
    first, second, *_ = logs()
    (call,) = first["tool_calls"]
    assert call["name"] == "add" and set(call["arguments"]) == {"a", "b"}
    (result,) = second["tool_results"]
    assert result["output"] == str(sum(call["arguments"].values()))
    assert result["tool_call_id"] == call["tool_call_id"]


def test_python(answer: Any, media: Any) -> None:
    model = library.get_model("phi")
    response = model.prompt(SUM)
    assert "".join(response) == answer(SUM)["content"]
    assert response.usage().input > 0
    file = media["picture.png"]
    attachments = [library.Attachment(path=file["path"])]
    text = model.prompt(file["question"], attachments=attachments, stream=False).text()
    assert text == "".join(model.prompt(file["question"], attachments=attachments))


@pytest.mark.parametrize("name", ["phi", "phi-responses"])
def test_python_async(answer: Any, name: str) -> None:
    model = library.get_async_model(name)

    async def both() -> list[str]:
        async def stream() -> str:
            return "".join([delta async for delta in model.prompt(SUM)])

        async def text() -> str:
            return await model.prompt("What is 5 + 2?", stream=False).text()

        return await asyncio.gather(stream(), text())

    assert asyncio.run(both()) == [answer(q)["content"] for q in (SUM, "What is 5 + 2?")]


def test_error(llm: Callable[..., str], tmp_path: Path) -> None:
    """The server's message is the command's."""
    (tmp_path / "page.pdf").write_bytes(b"%PDF-1.4\n%%EOF")
    error = llm("-m", "phi", "Read.", "-a", str(tmp_path / "page.pdf"), status=1)
    assert "the PDF is damaged" in error
