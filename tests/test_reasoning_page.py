"""The Python of docs/reasoning.md runs unchanged; only the model and the server are synthetic fixtures."""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import polyphi
from polyphi.data.shards import Shards
from polyphi.types.completion import Completion
from polyphi.types.sampling import SamplingParams

PAGE = Path(__file__).parents[1] / "docs" / "reasoning.md"


class Slow:
    """Is right about the first sum, but for its first answer; about others it is wrong."""

    count = 0

    def generate(self, messages: Any, *, sampling: SamplingParams) -> Completion:
        assert sampling.temperature == 1.0
        self.count += 1
        return Completion(f"Draw {sampling.seed}.\nAnswer: {622 if self.count == 1 else 632}")


def solution(question: str) -> str:
    """Sums of two numbers are solved; the answer to everything else is 632."""
    match = re.match(r"Solve step by step: (\d+) \+ (\d+)\n", question)
    total = int(match[1]) + int(match[2]) if match else 632
    return f"{match[0][20:-1]} = {total}\nAnswer: {total}" if match else "Answer: 632"


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    requests: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            text = solution(requests[-1]["messages"][0]["content"])
            answer = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", requests
        running.shutdown()


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(polyphi, "load", lambda _: Slow())
    local, remote = re.findall(r"(?s)```python\n(.*?)```", PAGE.read_text())
    names: dict[str, Any] = {}
    exec(local, names)
    right, pairs = Shards("data/my_reasoning/train"), Shards("data/my_pairs/train")
    counts = names["judge"].count(names["outcomes"])
    assert (
        counts["problems"] == 21 and counts["kept"] == len(right) and counts["pairs"] == len(pairs)
    )
    assert {s.answer.split()[-1] for s in right if s.id.startswith("sum-1")} == {"632"}
    assert any(s.meta["rejected"].endswith("622") for s in pairs)

    address, requests = server
    assert "http://localhost:8000" in remote
    exec(remote.replace("http://localhost:8000", address), names)
    assert names["outcome"].solved and len(requests) == 8
    assert len({body["seed"] for body in requests}) == 8
