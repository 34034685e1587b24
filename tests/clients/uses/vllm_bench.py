"""vLLM's benchmark client, `vllm bench serve`, with random prompts and with prompts, images and audio of files."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUESTIONS = ["What is 3 + 4?", "Translate to French: cat"]
BACKENDS = {
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
    "openai-responses": "/v1/responses",
}


@pytest.fixture
def bench(tmp_path: Path, url: str, model: str, run_folder: Path) -> Callable[..., dict[str, Any]]:
    """Run `vllm bench serve` with a backend and further options; returns its results, with details."""

    def run(backend: str, route: str, *options: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"]
        command += ["--backend", backend, "--base-url", url, "--endpoint", route]
        command += ["--model", model, "--tokenizer", str(run_folder / "model")]
        command += ["--save-result", "--save-detailed", "--result-dir", str(tmp_path)]
        command += ["--result-filename", "result.json", "--disable-tqdm", *options]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["failed"] == 0, result["errors"]
        return result

    return run


def rows(path: Path, *entries: dict[str, Any]) -> list[str]:
    """Write entries as lines of a file; returns the options that read them in this order."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    options = ["--dataset-path", str(path), "--num-prompts", str(len(entries))]
    return [*options, "--custom-output-len", "8", "--disable-shuffle", "--skip-chat-template"]


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_random_prompts(bench: Any, backend: str) -> None:
    """Prompts are random tokens, and each answer has its exact length (`ignore_eos`)."""
    options = ["--dataset-name", "random", "--num-prompts", "4", "--max-concurrency", "2"]
    options += ["--random-input-len", "24", "--random-output-len", "6", "--ignore-eos"]
    result = bench(backend, BACKENDS[backend], *options)
    assert result["completed"] == 4
    assert result["output_lens"] == [6] * 4
    assert all(ttft > 0 for ttft in result["ttfts"])


def test_completions(bench: Any, post: Any, model: str, tmp_path: Path) -> None:
    entries = [{"prompt": text} for text in QUESTIONS]
    options = ["--dataset-name", "custom", *rows(tmp_path / "rows.jsonl", *entries)]
    result = bench("openai", "/v1/completions", *options, "--ignore-eos")
    for entry, text, count in zip(
        entries, result["generated_texts"], result["output_lens"], strict=True
    ):
        body = {"model": model, "prompt": entry["prompt"], "max_tokens": 8, "ignore_eos": True}
        direct = post("/v1/completions", body)
        assert text == direct["choices"][0]["text"]
        assert count == direct["usage"]["completion_tokens"] == 8


def test_chats(bench: Any, post: Any, model: str, tmp_path: Path) -> None:
    entries = [{"prompt": text} for text in QUESTIONS]
    options = ["--dataset-name", "custom", *rows(tmp_path / "rows.jsonl", *entries)]
    result = bench("openai-chat", "/v1/chat/completions", *options)
    for index, text in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": text}]
        body = {"model": model, "messages": messages, "max_tokens": 8}
        direct = post("/v1/chat/completions", body)
        assert result["generated_texts"][index] == direct["choices"][0]["message"]["content"]
        assert result["input_lens"][index] == direct["usage"]["prompt_tokens"]
        assert result["output_lens"][index] == direct["usage"]["completion_tokens"]


def test_responses(bench: Any, post: Any, model: str, tmp_path: Path) -> None:
    entries = [{"prompt": text} for text in QUESTIONS]
    options = ["--dataset-name", "custom", *rows(tmp_path / "rows.jsonl", *entries)]
    result = bench("openai-responses", "/v1/responses", *options)
    for index, text in enumerate(QUESTIONS):
        body = {"model": model, "input": text, "max_output_tokens": 8, "store": False}
        direct = post("/v1/responses", body)
        assert result["generated_texts"][index] == direct["output"][0]["content"][0]["text"]
        assert result["output_lens"][index] == direct["usage"]["output_tokens"]


def test_images(bench: Any, post: Any, model: str, media: Any, tmp_path: Path) -> None:
    """A path would be sent as a `file://` address, which the server doesn't read by default; a data URL as it is."""
    image = media["picture.png"]
    data = base64.b64encode(Path(image["path"]).read_bytes()).decode()
    url = f"data:image/png;base64,{data}"
    entry = {"prompt": image["question"], "image_files": [url]}
    options = ["--dataset-name", "custom_image", *rows(tmp_path / "rows.jsonl", entry)]
    result = bench("openai-chat", "/v1/chat/completions", *options)
    content = [
        {"type": "text", "text": image["question"]},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8}
    direct = post("/v1/chat/completions", body)
    assert result["input_lens"][0] == direct["usage"]["prompt_tokens"]
    assert result["generated_texts"][0] == direct["choices"][0]["message"]["content"]


@pytest.mark.skip(
    reason="vLLM streams transcriptions as chat chunks (`choices`); here they have OpenAI's events"
)
def test_transcriptions() -> None: ...
