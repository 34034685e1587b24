"""lm-eval, by its command, with small tasks of local files, in each mode that uses an OpenAI-compatible server."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROWS = [
    {"question": "What is 3 + 4?", "answer": "7", "endings": [" 7", " 9", " fox"], "right": 0},
    {"question": "What is 2 + 2?", "answer": "4", "endings": [" 5", " 4", " fox"], "right": 1},
    {"question": "What is 1 + 5?", "answer": "6", "endings": [" fox", " 3", " 6"], "right": 2},
    {"question": "What is 8 + 1?", "answer": "9", "endings": [" 9", " 2", " fox"], "right": 0},
]
TASKS = {
    "generate": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "choose": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{endings}}"
doc_to_target: "{{right}}"
target_delimiter: ""
metric_list: [{metric: acc}]
""",
}


@pytest.fixture
def evaluate(
    tmp_path: Path, model: str, run_folder: Path
) -> Callable[..., tuple[dict[str, float], list[dict[str, Any]]]]:
    """Run lm-eval's command with a mode, its arguments, a task of `TASKS` and further options; returns the results and
    the samples."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in TASKS.items():
        source = f"{{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}"
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {source}\ntest_split: test\n"
        (tmp_path / f"{name}.yaml").write_text(head + text.lstrip())

    def run(mode: str, arguments: str, task: str, *options: str) -> Any:
        out = tmp_path / "out"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", mode, "--tasks", task]
        command += ["--model_args", f"model={model},max_length=2048,{arguments}"]
        command += ["--include_path", str(tmp_path), "--output_path", str(out), "--log_samples"]
        done = subprocess.run(
            [*command, *options],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (results,) = out.rglob("results_*.json")
        (samples,) = out.rglob("samples_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        lines.sort(key=lambda line: line["doc_id"])
        return json.loads(results.read_text())["results"][task], lines

    return run


def check_completions(post: Any, model: str, samples: list[dict[str, Any]]) -> None:
    for row, sample in zip(ROWS, samples, strict=True):
        body = {"model": model, "prompt": row["question"], "max_tokens": 8, "stop": ["\n\n"]}
        direct = post("/v1/completions", body)["choices"][0]["text"]
        assert sample["resps"][0][0] == direct


def check_chats(post: Any, model: str, samples: list[dict[str, Any]]) -> None:
    for row, sample in zip(ROWS, samples, strict=True):
        messages = [{"role": "user", "content": row["question"]}]
        body = {"model": model, "messages": messages, "max_tokens": 8, "stop": ["\n\n"]}
        direct = post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
        assert sample["resps"][0][0] == direct


def check_choices(post: Any, model: str, samples: list[dict[str, Any]]) -> None:
    """The log-probability of each ending is the sum of those of its tokens in an echoed prompt."""
    for row, sample in zip(ROWS, samples, strict=True):
        start = len(row["question"])
        for ending, response in zip(row["endings"], sample["resps"], strict=True):
            body = {"model": model, "prompt": row["question"] + ending, "echo": True}
            body |= {"max_tokens": 1, "logprobs": 1, "temperature": 0}
            logprobs = post("/v1/completions", body)["choices"][0]["logprobs"]
            tokens = zip(logprobs["text_offset"], logprobs["token_logprobs"], strict=True)
            end = start + len(ending)
            expected = sum(logprob for offset, logprob in tokens if start <= offset < end)
            assert float(response[0][0]) == pytest.approx(expected, abs=1e-3)


def test_local_completions_generate(evaluate: Any, post: Any, model: str, url: str) -> None:
    """By default the tokenizer is the server's (`/tokenizer_info`), and prompts are sent as token ids."""
    _, samples = evaluate("local-completions", f"base_url={url}/v1/completions", "generate")
    check_completions(post, model, samples)


def test_local_completions_generate_text(evaluate: Any, post: Any, model: str, url: str) -> None:
    arguments = f"base_url={url}/v1/completions,tokenized_requests=False,num_concurrent=2"
    _, samples = evaluate("local-completions", arguments, "generate")
    check_completions(post, model, samples)


def test_local_completions_loglikelihood(evaluate: Any, post: Any, model: str, url: str) -> None:
    arguments = f"base_url={url}/v1/completions"
    results, samples = evaluate("local-completions", arguments, "choose", "--batch_size", "4")
    check_choices(post, model, samples)
    assert results["acc,none"] == sum(sample["acc"] for sample in samples) / len(ROWS)


def test_local_completions_loglikelihood_local_tokenizer(
    evaluate: Any, post: Any, model: str, url: str, run_folder: Path
) -> None:
    tokenizer = f"tokenizer_backend=huggingface,tokenizer={run_folder / 'model'}"
    arguments = f"base_url={url}/v1/completions,{tokenizer}"
    _, samples = evaluate("local-completions", arguments, "choose")
    check_choices(post, model, samples)


def test_local_chat_completions(evaluate: Any, post: Any, model: str, url: str) -> None:
    arguments = f"base_url={url}/v1/chat/completions"
    results, samples = evaluate(
        "local-chat-completions", arguments, "generate", "--apply_chat_template"
    )
    check_chats(post, model, samples)
    right = [
        sample["resps"][0][0] == row["answer"] for row, sample in zip(ROWS, samples, strict=True)
    ]
    assert results["exact_match,none"] == sum(right) / len(ROWS)


def test_local_chat_completions_concurrent(evaluate: Any, post: Any, model: str, url: str) -> None:
    arguments = f"base_url={url}/v1/chat/completions,num_concurrent=4"
    _, samples = evaluate("local-chat-completions", arguments, "generate", "--apply_chat_template")
    check_chats(post, model, samples)
