"""The load benchmark: its requests are what they claim to be, and it notices what is lost, wrong or not released."""

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest
from fixtures.engines import save
from fixtures.servers import Running, serving, tiny_engine
from fixtures.variants import few

from polyphi.engine.engine import Engine
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("load", "load_live", "load_pool", "load_requests", "damaged_media")


@pytest.fixture(scope="module")
def load() -> Iterator[ModuleType]:
    """The script, and the modules beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("load", BENCHMARKS / "load.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "load", module)
        spec.loader.exec_module(module)
        yield module
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def pool(load: ModuleType) -> Any:
    return load.Pool(load.Random(0), containers=False)


@pytest.fixture
def broken(load: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the share of broken requests."""

    def set_share(share: float) -> None:
        for name in ("load_live", "load_requests"):
            monkeypatch.setattr(sys.modules[name], "BROKEN", share)

    return set_share


@pytest.fixture
def engine(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Engine:
    return tiny_engine(tiny_config, tokenizer)


@pytest.fixture
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, Settings("tiny")) as server:
        yield server


def run(load: ModuleType, running: Running, tasks: list[str], **options: Any) -> Any:
    """The load after one client has sent requests of these tasks, and what wasn't released."""

    async def all_of_them() -> Any:
        async with httpx2.AsyncClient(base_url=running.url, timeout=60) as client:
            pools = await load.pools_for(client, 0, 1)
            result = load.Load(running.url, pools)
            for task in tasks:
                outcome = await result.outcome(client, task, pools[0], **options)
                result.outcomes.append(outcome)
            for _ in range(100):
                counters = {**await load.gauges(client), "processes": 0}
                if not (unreleased := load.not_released(counters, result)):
                    break
                await asyncio.sleep(0.05)
            return result, unreleased

    return asyncio.run(all_of_them())


@pytest.mark.long
def test_every_task_gets_a_whole_answer(
    load: ModuleType, running: Running, broken: Callable[[float], None]
) -> None:
    broken(0)
    result, unreleased = run(load, running, list(load.SHARES))
    assert [o for o in result.outcomes if o.end != "whole"] == [] and not unreleased
    assert "video" in result.shares


@pytest.mark.long
def test_every_broken_request_is_refused(
    load: ModuleType, running: Running, broken: Callable[[float], None]
) -> None:
    broken(1)
    result, unreleased = run(load, running, list(load.SHARES))
    assert not unreleased
    for outcome in result.outcomes:  # a session continues after an event that is refused
        assert outcome.end == ("whole" if outcome.task in load.LIVE else "refused"), outcome


@pytest.mark.long
def test_stored_responses_are_those_that_the_client_knows(
    load: ModuleType, running: Running
) -> None:
    tasks = ["responses stored", "responses resumed", "responses read", "responses resumed"]
    result, unreleased = run(load, running, [*tasks * 4, "responses delete"])
    assert {outcome.end for outcome in result.outcomes} <= {"whole", "refused"}
    assert not unreleased
    (pool,) = result.pools
    assert 1 < max(map(len, pool.conversations)) <= sys.modules["load_requests"].TURNS
    store = running.uvicorn.config.app.state.server.store  # type: ignore[union-attr]
    assert store.count == sum(map(len, pool.conversations))
    counters = dict.fromkeys((*load.IN_USE, "processes"), 0.0)
    counters |= {"stored_responses": store.count + 1.0, "live_sessions": 1.0}
    assert load.not_released(counters, result).keys() == {"stored_responses", "live_sessions"}


@pytest.mark.parametrize("leave", few([0.02, 0.0, 0.2], 1))
def test_clients_that_disconnect_leave_nothing(
    load: ModuleType, running: Running, leave: float
) -> None:
    tasks = ["live", "chat stream", "responses stored", "messages stream", "live turns"]
    result, unreleased = run(load, running, tasks * 2, leave=leave)
    assert {o.end for o in result.outcomes} <= {"disconnected", "whole", "refused"}
    assert leave or {o.end for o in result.outcomes} == {"disconnected"}
    assert not unreleased
    assert running.idle()


ERROR = {"message": "m", "type": "t", "param": None, "code": None}
CHAT = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}
CHOICE = {"message": {"content": "{"}, "finish_reason": "stop"}


def sse(*events: Any) -> str:
    return "".join(f"data: {e if isinstance(e, str) else json.dumps(e)}\n\n" for e in events)


@pytest.mark.parametrize(
    ("task", "options", "status", "body", "end"),
    [
        ("chat", {}, 200, CHAT, "whole"),
        ("chat", {}, 200, {"choices": []}, "wrong"),
        ("chat", {}, 200, "", "lost"),
        ("chat", {}, 429, {"error": ERROR}, "refused"),
        ("chat", {}, 400, {"error": ERROR}, "wrong"),
        ("chat", {}, 500, {"error": ERROR}, "wrong"),
        ("chat", {}, 429, "busy", "wrong"),
        ("chat", {"broken": True}, 400, {"error": ERROR}, "refused"),
        ("chat", {"broken": True}, 200, CHAT, "wrong"),
        ("chat", {"broken": True}, 500, {"error": ERROR}, "wrong"),
        ("structured", {}, 200, {"choices": [CHOICE]}, "wrong"),
        ("chat stream", {}, 200, sse(CHAT, "[DONE]"), "whole"),
        ("chat stream", {}, 200, sse(CHAT), "lost"),
        ("chat stream", {}, 200, sse({"error": {**ERROR, "code": "stopping"}}), "refused"),
        ("chat stream", {}, 200, sse({"error": ERROR}), "wrong"),
        ("transcription", {}, 200, "", "whole"),
        ("messages", {}, 429, {"error": ERROR}, "wrong"),
        ("messages", {}, 429, {"type": "error", "error": ERROR}, "refused"),
        ("messages stream", {}, 200, sse({"type": "message_stop"}), "whole"),
        ("messages stream", {}, 200, sse({"type": "ping"}), "lost"),
        ("messages stream", {}, 200, sse({"type": "error", "error": ERROR}), "wrong"),
        ("responses", {}, 200, {"status": "completed", "output": []}, "whole"),
        ("responses", {}, 200, {"status": "failed", "output": []}, "wrong"),
        ("responses stream", {}, 200, sse({"type": "response.failed"}), "wrong"),
        ("responses stream", {}, 200, sse({"type": "response.created"}), "lost"),
        ("count", {}, 200, {"input_tokens": 0}, "wrong"),
    ],
)
def test_answers_are_judged(
    load: ModuleType,
    pool: Any,
    broken: Callable[[float], None],
    task: str,
    options: dict[str, Any],
    status: int,
    body: Any,
    end: str,
) -> None:
    broken(0)
    request = load.plan(task, pool)
    for name, value in options.items():
        setattr(request, name, value)
    text = body if isinstance(body, str) else json.dumps(body)
    assert load.judge(request, status, text.encode())[0] == end


@pytest.mark.long
def test_the_whole_benchmark(tmp_path: Path, engine: Engine) -> None:
    model, report = save(engine, tmp_path / "tiny"), tmp_path / "load.json"
    options = ["--minutes", "0.1", "--clients", "3", "--json", str(report)]
    options += ["--", "--reasoning", "on"]
    command = [sys.executable, str(BENCHMARKS / "load.py"), str(model), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    written = json.loads(report.read_text())
    # How many is a matter of the machine's speed.
    assert written["by end"]["whole"] and written["exit code"] == 0
    assert written["lost or wrong"] == [] and written["not released"] == {}
