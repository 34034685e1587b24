"""guidellm, by its command: each benchmark sends its requests in a stream and counts their tokens."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUESTIONS = ["What is 3 + 4?", "Translate to French: cat"]


@pytest.fixture
def benchmark(
    tmp_path: Path, url: str, model: str, run_folder: Path
) -> Callable[..., list[dict[str, Any]]]:
    """Run `guidellm run` with a data source on a route; returns the completed requests."""

    def run(data: str, route: str, count: int, profile: str = "kind=synchronous") -> Any:
        report = tmp_path / "report.json"
        command = [sys.executable, "-m", "guidellm", "run", "--profile", profile]
        command += [
            "--backend",
            f"kind=openai_http,target={url},model={model},request_format={route}",
        ]
        command += ["--constraint", f"kind=max_requests,count={count}"]
        command += ["--tokenizer", f"kind=huggingface_auto,model={run_folder / 'model'}"]
        command += ["--data", data, "--output", f"kind=json,path={report}", "--disable-console"]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        requests = json.loads(report.read_text())["benchmarks"][0]["requests"]
        assert not requests["errored"], requests["errored"][0]["info"]["error"]
        assert len(requests["successful"]) == count
        return requests["successful"]

    return run


@pytest.fixture
def decodes_audio() -> None:
    """Leave a test out where guidellm can't decode audio."""
    try:
        import torchcodec  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        pytest.skip(f"guidellm decodes audio by torchcodec, which can't be loaded: {reason}")


def rows(path: Path, *entries: dict[str, str]) -> str:
    """Write entries as lines of a file; returns it as a data source."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return f"kind=json_file,path={path}"


def body(request: dict[str, Any]) -> dict[str, Any]:
    """Return the body that guidellm sent, without its stream."""
    sent = json.loads(request["request_args"])["body"]
    return {key: sent[key] for key in sent if key not in ("stream", "stream_options")}


def tokens(request: dict[str, Any]) -> tuple[int, int]:
    return request["input_metrics"]["text_tokens"], request["output_metrics"]["text_tokens"]


def test_chat(benchmark: Any, post: Any, tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.jsonl", *({"prompt": text} for text in QUESTIONS))
    for request in benchmark(data, "/v1/chat/completions", len(QUESTIONS)):
        direct = post("/v1/chat/completions", body(request))
        assert request["output"] == direct["choices"][0]["message"]["content"]
        usage = direct["usage"]
        assert tokens(request) == (usage["prompt_tokens"], usage["completion_tokens"])


def test_responses(benchmark: Any, post: Any, tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.jsonl", {"prompt": QUESTIONS[0]})
    (request,) = benchmark(data, "/v1/responses", 1)
    direct = post("/v1/responses", body(request))
    assert request["output"] == direct["output"][0]["content"][0]["text"]
    assert tokens(request) == (direct["usage"]["input_tokens"], direct["usage"]["output_tokens"])


def test_completions_of_synthetic_prompts(benchmark: Any, post: Any) -> None:
    """Lengths are exact: the prompts have 20 tokens by the served tokenizer, and the answers 8 (`ignore_eos`)."""
    data = "kind=synthetic_text,prompt_tokens=20,output_tokens=8"
    for request in benchmark(data, "/v1/completions", 2):
        direct = post("/v1/completions", body(request))
        assert request["output"] == direct["choices"][0]["text"]
        assert tokens(request) == (20, 8)


def test_concurrent_requests(benchmark: Any) -> None:
    data = "kind=synthetic_text,prompt_tokens=30,output_tokens=4"
    requests = benchmark(data, "/v1/chat/completions", 6, "kind=concurrent,streams=3")
    assert [tokens(request)[1] for request in requests] == [4] * 6


def test_image(benchmark: Any, post: Any, media: Any, tmp_path: Path) -> None:
    """guidellm sends the picture as JPEG."""
    image = media["picture.png"]
    entry = {"prompt": image["question"], "image": image["path"]}
    (request,) = benchmark(rows(tmp_path / "rows.jsonl", entry), "/v1/chat/completions", 1)
    direct = post("/v1/chat/completions", body(request))
    assert direct["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    assert request["output"] == direct["choices"][0]["message"]["content"]
    assert tokens(request)[0] == direct["usage"]["prompt_tokens"]


@pytest.mark.usefixtures("decodes_audio")
def test_audio(benchmark: Any, post: Any, media: Any, tmp_path: Path) -> None:
    audio = media["recording.wav"]
    entry = {"prompt": audio["question"], "audio": audio["path"]}
    (request,) = benchmark(rows(tmp_path / "rows.jsonl", entry), "/v1/chat/completions", 1)
    direct = post("/v1/chat/completions", body(request))
    assert direct["usage"]["prompt_tokens_details"]["audio_tokens"] > 0
    assert request["output"] == direct["choices"][0]["message"]["content"]


@pytest.mark.usefixtures("decodes_audio")
def test_transcription(benchmark: Any, media: Any, tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.jsonl", {"audio": media["recording.wav"]["path"]})
    (request,) = benchmark(data, "/v1/audio/transcriptions", 1)
    assert request["output"].strip() == media["recording.wav"]["answer"]
