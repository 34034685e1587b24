"""Grammars of one client, however complex, stop and delay no other client."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import psutil
import pytest

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from tests.core.decoding.test_matcher_process import NEVER_COMPILES, processes, until
from tests.core.serve.admission.test_fairness import CHAT, chat
from tests.fixtures.servers import Running, from_address, sent, serving


def schema(value: Any, **more: object) -> dict[str, object]:
    form = {"type": "json_schema", "json_schema": {"schema": value}}
    return chat("hi", response_format=form, **more)


NEVER = chat("hi", guided_grammar=NEVER_COMPILES.text)
SLOW_MASKS = chat(
    "hi", response_format={"type": "regex", "regex": "(yes|no){600}"}, n=8, max_tokens=1500
)
WORDS = chat("hi", response_format={"type": "regex", "regex": "(yes|no){3}"}, max_tokens=20)


def grammar_processes(running: Running) -> list[psutil.Process]:
    return processes(running.engine.processor.tokenizer)


def has_begun(running: Running, answers: int) -> bool:
    """Whether a process follows a grammar, for so many answers."""
    return bool(grammar_processes(running)) and running.engine.counters().requests == answers


def test_schemas_that_never_compile_stop_nothing(running: Running) -> None:
    """Four of them, whose clients leave, ended the server: it had four threads for all clients' work."""
    with from_address(running, "127.0.0.2") as other, ExitStack() as attackers:
        for _ in range(4):
            attackers.enter_context(sent(running, CHAT, NEVER))
        until(lambda: grammar_processes(running))
        for path, body in (("/tokenize", {"prompt": "hi"}), (CHAT, chat("hi")), (CHAT, WORDS)):
            assert other.post(path, json=body).status_code == 200
        assert other.get("/metrics").status_code == 200
        attackers.close()
        until(lambda: not grammar_processes(running) and running.idle())
        assert other.post(CHAT, json=WORDS).status_code == 200
    assert not running.server.admitted and not running.server._grammars.slots.waiting


def test_grammars_of_two_addresses_leave_another_a_turn(engine: Engine) -> None:
    """Sixty requests, each of which occupies a slot for grammars until its answer has ended."""
    engine.scheduler.max_num_seqs = 4
    regex = {"type": "regex", "regex": "(yes|no){600}"}
    long = chat("hi", response_format=regex, max_tokens=1500, stream=True)
    with (
        serving(engine, Settings("tiny", max_waiting=200)) as running,
        from_address(running, "127.0.0.3") as other,
        ExitStack() as peers,
    ):
        for number in range(60):
            peers.enter_context(sent(running, CHAT, long, f"127.0.0.{1 + number % 2}"))
        server = running.server
        until(lambda: server.admitted == 60 and server.matchers.waiting > 40)
        assert other.post(CHAT, json=schema({"type": "boolean"})).status_code == 200
        assert server.matchers.waiting > 20, "it didn't wait for them"


PATTERNS = [{"type": "string", "pattern": f"(a|b)*c{{{i}}}.*"} for i in range(1, 21)]
EXPLOSIVE: list[dict[str, Any]] = [
    {"type": "integer", "multipleOf": 9999991},
    {"type": "integer", "multipleOf": 1000000},
    {"type": "integer", "multipleOf": 300007},
    {"allOf": PATTERNS},
]


@pytest.mark.parametrize("value", EXPLOSIVE, ids=["9999991", "1000000", "300007", "patterns"])
def test_a_schema_that_explodes_is_an_error_of_its_field(running: Running, value: Any) -> None:
    """They took 10 s to for ever, and up to 7.3 GiB."""
    with running.client() as client:
        answer = client.post(CHAT, json=schema(value, n=8))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "response_format"


def test_a_grammar_that_never_compiles_is_an_error_of_its_field(running: Running) -> None:
    with running.client() as client:
        answer = client.post(CHAT, json=NEVER)
        assert answer.status_code == 400 and "simplify" in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == "guided_grammar"
        tool = {
            "name": "f",
            "parameters": {"type": "object", "properties": {"x": {"multipleOf": 9999991}}},
        }
        tools = chat("hi", tools=[{"type": "function", "function": tool}], tool_choice="required")
        assert client.post(CHAT, json=tools).status_code == 400


def test_a_killed_process_of_a_grammar_is_an_error_of_the_server(running: Running) -> None:
    """While it compiles, and while an answer follows it."""
    server = running.server
    until(lambda: not grammar_processes(running))  # of earlier tests
    with from_address(running, "127.0.0.1") as client, ThreadPoolExecutor(1) as pool:
        for body, answers in ((NEVER, 0), (SLOW_MASKS, 8)):
            waiting = pool.submit(client.post, CHAT, json=body)
            until(partial(has_begun, running, answers))
            for process in grammar_processes(running):
                process.kill()
            response = waiting.result(60)
            assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "grammar_process_ended"
            until(lambda: not server.admitted)
        assert client.post(CHAT, json=WORDS).status_code == 200


def test_one_client_compiles_one_grammar_at_a_time(running: Running) -> None:
    most = 0
    with (
        ExitStack() as attackers,
        from_address(running, "127.0.0.2") as other,
        ThreadPoolExecutor(1) as pool,
    ):
        for _ in range(4):
            attackers.enter_context(sent(running, CHAT, NEVER))
        until(lambda: grammar_processes(running))
        answer = pool.submit(other.post, CHAT, json=WORDS)
        while not answer.done():
            most = max(most, len(grammar_processes(running)))
            time.sleep(0.01)
    assert answer.result().status_code == 200
    assert most <= 2, "one of each client"


def test_slow_masks_of_eight_answers_delay_no_other_chat(running: Running) -> None:
    """Their process is stopped meanwhile, as if each mask took for ever."""
    with sent(running, CHAT, SLOW_MASKS), from_address(running, "127.0.0.2") as other:
        until(lambda: running.engine.counters().running)
        for process in grammar_processes(running):
            process.suspend()
        for body in (chat("hi", max_tokens=8), WORDS):
            assert other.post(CHAT, json=body).status_code == 200
        assert running.engine.counters().running
    until(running.idle)
    until(lambda: not grammar_processes(running))


def test_a_grammar_is_compiled_once_for_all_answers_of_a_request(running: Running) -> None:
    body = {**WORDS, "n": 8, "temperature": 1, "max_tokens": 200}
    with running.client() as client:
        answer = client.post(CHAT, json=body).json()
        texts = [choice["message"]["content"] for choice in answer["choices"]]
        assert len(texts) == 8 and {len(t) for t in texts} <= {6, 7, 8, 9}
        prompts = {
            "prompt": ["hi"] * 5,
            "guided_regex": "(yes|no){3}",
            "max_tokens": 20,
            "n": 2,
        }
        answer = client.post("/v1/completions", json=prompts).json()
        assert [c["finish_reason"] for c in answer["choices"]] == ["stop"] * 10
    until(lambda: not grammar_processes(running))
