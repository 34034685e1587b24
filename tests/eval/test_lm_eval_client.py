"""lm-eval as a client of our server, on a task file of ours, gives the score of our own run within a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine.conftest import fitted, make_engine, tokenizer  # noqa: F401
from serve.saved import save, served

import polyphi
from polyphi.engine.engine import Engine
from polyphi.eval import lm_tasks, suite
from polyphi.eval.asked import Asked
from polyphi.eval.sources import Data, write_parquet
from polyphi.eval.suite import LENIENT
from polyphi.eval.tasks.text import siqa
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer

ROWS = 40


@pytest.fixture
def lettered(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Engine:  # noqa: F811
    """A random model that says little but letters and marks, so that some of its answers are right."""
    engine = make_engine(fitted(tiny_config, tokenizer, max_position_embeddings=2048), tokenizer)
    said = {tokenizer.encode(text)[-1] for text in ("A", "B", "C", ".", " ")}
    with torch.no_grad():
        rows = engine.model.decoder.embed_tokens.weight
        rows[[i for i in range(len(rows)) if i not in said]] *= 0.05
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
    write_parquet(root / siqa.NAME / "data/train-00000-of-00001.parquet", rows[:5])
    write_parquet(root / siqa.NAME / "data/validation-00000-of-00001.parquet", rows[5:])
    return Data(root)


@pytest.mark.long
def test_lm_eval_gives_the_same_answers_and_scores(lettered: Engine, tmp_path: Path) -> None:
    held, folder = data(tmp_path / "data"), save(lettered, tmp_path / "model")
    phi = polyphi.load(str(folder), device="cpu")
    lines = suite.answered(siqa.benchmark, held, Asked(phi, tmp_path, "tiny"), tmp_path)
    (row,) = suite.summed(siqa.benchmark, suite.scored(siqa.benchmark, lines))
    assert 0 < row.score < 1 and len({line["answer"] for line in lines}) > 3

    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "TQDM_DISABLE": "1"}
    with served(folder, "--name", "tiny") as url:
        model = f"model=tiny,base_url={url}/v1/chat/completions,num_concurrent=4,max_length=2048"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions"]
        command += ["--model_args", model, "--tasks", "polyphi_siqa"]
        command += ["--include_path", str(lm_tasks.OWN), "--apply_chat_template"]
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
    (told,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(told.read_text())["results"]["polyphi_siqa"]
    assert theirs["exact_match,first-letter"] == pytest.approx(row.score)
    assert theirs["exact_match,any-letter"] == pytest.approx(
        sum(line["parts"]["any-letter"] for line in lines) / ROWS
    )
    assert row.lenient == pytest.approx(sum(x["parts"][LENIENT] for x in lines) / ROWS)
    (path,) = (tmp_path / "theirs").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    answers = {s["doc_id"]: s["resps"][0][0] for s in samples if s["filter"] == "first-letter"}
    assert [answers[n] for n in range(ROWS)] == [line["answer"] for line in lines]
