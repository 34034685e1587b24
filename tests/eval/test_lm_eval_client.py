"""lm-eval as a client of our server, with our task files, gives the score of our own in-process evaluation."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
import torch

import polyphi
from polyphi.engine.engine import Engine
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.sampling import SamplingParams
from polyphi_eval import lm_tasks
from polyphi_eval import score as scoring
from polyphi_eval.benchmark import LENIENT, suite
from polyphi_eval.cache import Cache
from polyphi_eval.sources import Data, write_rows
from tests.fixtures.engines import fitted, make_engine, save
from tests.fixtures.servers import served

(SIQA,) = suite("siqa")
ROWS = 40


@pytest.fixture
def lettered(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Engine:
    """A random model that generates mostly letters and punctuation, so that some of its answers are right."""
    engine = make_engine(fitted(tiny_config, tokenizer, max_position_embeddings=2048), tokenizer)
    likely = {tokenizer.encode(text)[-1] for text in ("A", "B", "C", ".", " ")}
    with torch.no_grad():
        rows = engine.model.decoder.embed_tokens.weight
        rows[[i for i in range(len(rows)) if i not in likely]] *= 0.05
    return engine


def data(root: Path) -> Data:
    names = ("Kim", "Lee", "Ana", "Max")
    feelings = ("glad", "sad", "calm")
    rows = [
        {
            "context": f"{names[n % 4]} saw {n}.",
            "question": "So?",
            **{f"answer{'ABC'[k]}": feelings[(n + k) % 3] for k in range(3)},
            "label": str(1 + n * 7 % 3),
        }
        for n in range(5 + ROWS)
    ]
    write_rows(root / SIQA.sources[0].name / "data/train-00000-of-00001.parquet", rows[:5])
    write_rows(root / SIQA.sources[0].name / "data/validation-00000-of-00001.parquet", rows[5:])
    return Data(root)


@pytest.mark.long
def test_lm_eval_gives_the_same_answers_and_scores(lettered: Engine, tmp_path: Path) -> None:
    dataset, folder = data(tmp_path / "data"), save(lettered, tmp_path / "model")
    phi = polyphi.load(str(folder), device="cpu")
    lines = scoring.evaluate(SIQA, dataset, Cache(phi, tmp_path, "tiny"), tmp_path)
    (row,) = scoring.rows_of(SIQA, scoring.score(SIQA, lines))
    assert 0 < row.score < 1 and len({line["answer"] for line in lines}) > 3

    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "TQDM_DISABLE": "1"}
    with served(folder, "--name", "tiny") as url:
        model = f"model=tiny,base_url={url}/v1/chat/completions,num_concurrent=4,max_length=2048"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions"]
        command += ["--model_args", model, "--tasks", "polyphi_siqa"]
        command += ["--include_path", str(lm_tasks.TASK_FOLDER), "--apply_chat_template"]
        command += ["--fewshot_as_multiturn", "false", "--log_samples"]
        command += ["--output_path", str(tmp_path / "theirs")]
        # The data set is found as a folder of its name where lm-eval runs.
        done = subprocess.run(
            command,
            cwd=tmp_path / "data",
            env=os.environ | offline,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(path.read_text())["results"]["polyphi_siqa"]
    assert theirs["exact_match,first-letter"] == pytest.approx(row.score)
    assert theirs["exact_match,any-letter"] == pytest.approx(
        sum(line["parts"]["any-letter"] for line in lines) / ROWS
    )
    assert row.lenient == pytest.approx(sum(x["parts"][LENIENT] for x in lines) / ROWS)
    (path,) = (tmp_path / "theirs").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    answers = {s["doc_id"]: s["resps"][0][0] for s in samples if s["filter"] == "first-letter"}
    assert [answers[n] for n in range(ROWS)] == [line["answer"] for line in lines]


def choices(path: Path) -> list[dict[str, object]]:
    """Questions with three endings each, as lines of a file."""
    rows = [
        {
            "question": f"{n} + {n % 7} is",
            "endings": [f" {n + n % 7}", f" {n + 1} or more", " a fox"],
            "right": n % 3,
        }
        for n in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


TASK = """
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: "{{{{right}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.mark.long
def test_log_likelihoods_beside_chats_give_our_own_score(lettered: Engine, tmp_path: Path) -> None:
    """16 prompts per call while two clients chat all the time: all requests are answered."""
    rows = choices(tmp_path / "choices.jsonl")
    folder = save(lettered, tmp_path / "model")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/choices.yaml").write_text(TASK.format(file=tmp_path / "choices.jsonl"))
    pairs = [(str(row["question"]), str(end)) for row in rows for end in row["endings"]]  # type: ignore[attr-defined]
    encode = lettered.processor.tokenizer.encode
    sums: list[float] = []
    for question, end in pairs:
        ids, start = encode(question + end), len(encode(question))
        scored = SamplingParams(max_tokens=0, prompt_logprobs=0)
        logprobs = lettered.generate(ids, sampling=scored, adapter=None).prompt_logprobs
        sums.append(sum(token.logprob for token in logprobs[start - 1 :]))
    best = [max(range(3), key=sums[3 * n : 3 * n + 3].__getitem__) for n in range(ROWS)]
    ours = sum(b == row["right"] for b, row in zip(best, rows, strict=True)) / ROWS

    done = threading.Event()
    chats: list[float] = []

    def chat(url: str) -> None:
        body = {"messages": [{"role": "user", "content": "1 + 2"}], "max_tokens": 8}
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
            while not done.is_set():
                began = time.monotonic()
                assert client.post("/v1/chat/completions", json=body).status_code == 200
                chats.append(time.monotonic() - began)

    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "TQDM_DISABLE": "1"}
    with served(folder, "--name", "tiny") as url:
        threads = [threading.Thread(target=chat, args=(url,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        model = f"model=tiny,base_url={url}/v1/completions,tokenizer={folder},max_length=2048"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
        command += ["--model_args", model, "--tasks", "choices", "--batch_size", "16"]
        command += ["--include_path", str(tmp_path / "tasks")]
        command += ["--output_path", str(tmp_path / "theirs")]
        process = subprocess.run(
            command,
            env=os.environ | offline,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        done.set()
        for thread in threads:
            thread.join()
    assert process.returncode == 0, process.stderr[-3000:]
    (path,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(path.read_text())["results"]["choices"]["acc,none"]
    assert 0 < ours < 1 and theirs == pytest.approx(ours)
    assert len(chats) > 20
