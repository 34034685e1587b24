"""The processes that follow grammars: whatever happens in one ends only the requests with its grammar."""

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from polyphi.decoding import structured
from polyphi.decoding.grammars import PROCESS_MEMORY
from polyphi.decoding.matcher_process import grammar_bytes, read_grammar
from polyphi.decoding.structured import CompiledGrammar, GrammarProcessEnded, compile_grammar
from polyphi.engine.engine import Engine
from polyphi.engine.request import Request
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.syscall_filter import MACHINES
from polyphi.types.messages import Message
from polyphi.types.sampling import Grammar, SamplingParams
from tests.fixtures.servers import until
from tests.fixtures.variants import few

QUESTION = [Message.user("the dog")]
WORDS = Grammar("regex", "(the|dog|fox){4}")
NEVER_COMPILES = Grammar("ebnf", 'start: %json {"type": "integer", "multipleOf": 9999991}')
"""Without limits it compiles for minutes and takes gigabytes. (As a JSON schema it is refused before.)"""
FORMS = [
    WORDS,
    Grammar("json", '{"const": "größer \\ud83d"}'),
    Grammar("tools", '[{"name": "now"}]', max_calls=2, alternative=Grammar("json", "true")),
]


def processes(tokenizer: Tokenizer) -> list[psutil.Process]:
    """Those of grammars, without the one that starts them."""
    with structured._starters_lock:  # two threads would start two
        first = psutil.Process(structured._cached_starter(tokenizer).process.pid)
    running = []
    for child in first.children():
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if child.status() != psutil.STATUS_ZOMBIE:
                running.append(child)
    return running


def only_process(tokenizer: Tokenizer) -> psutil.Process:
    """The one that is left, when the killed ones have ended."""
    until(lambda: len(processes(tokenizer)) == 1)
    return processes(tokenizer)[0]


@pytest.fixture
def no_processes(tokenizer: Tokenizer) -> Iterator[None]:
    """None is left of earlier tests, and none afterwards."""
    until(lambda: not processes(tokenizer))
    yield
    until(lambda: not processes(tokenizer))


def run(engine: Engine, *samplings: SamplingParams) -> list[Request]:
    return [engine.submit(QUESTION, sampling=sampling) for sampling in samplings]


def steps_until_finished(engine: Engine, *requests: Request) -> int:
    before = engine.counters().steps
    until(lambda: (engine.step(), all(request.finish_reason for request in requests))[1])
    return engine.counters().steps - before


@pytest.mark.parametrize("grammar", FORMS)
def test_a_grammar_is_sent_as_it_is(grammar: Grammar) -> None:
    assert read_grammar(grammar_bytes(grammar)) == grammar


@pytest.mark.usefixtures("no_processes")
def test_a_grammar_above_the_limits_ends_with_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="too complex"):
        compile_grammar(NEVER_COMPILES, tokenizer)
    assert compile_grammar(WORDS, tokenizer).matcher().ready, "others go on"


@pytest.mark.usefixtures("no_processes")
def test_a_grammar_that_nobody_needs_any_more_ends_at_once(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="isn't needed"):
        compile_grammar(NEVER_COMPILES, tokenizer, stop=lambda: bool(processes(tokenizer)))
    until(lambda: not processes(tokenizer))


@pytest.mark.usefixtures("no_processes")
def test_requests_of_others_run_while_a_mask_is_computed(engine: Engine) -> None:
    """A stopped process stands for one whose mask takes long. The answer is the same afterwards."""
    structured_sampling = SamplingParams(grammar=WORDS, max_tokens=60)
    expected = engine.generate(QUESTION, sampling=structured_sampling)
    plain = SamplingParams(max_tokens=12)
    alone = steps_until_finished(engine, *run(engine, plain))
    (waiting,) = run(engine, structured_sampling)
    until(lambda: engine.step() and len(waiting.tokens) >= 3)
    process = only_process(engine.processor.tokenizer)
    process.suspend()
    until(lambda: engine.step() and waiting.waits_for_grammar)
    stopped_at = len(waiting.tokens)
    assert steps_until_finished(engine, *run(engine, plain)) == alone
    assert len(waiting.tokens) == stopped_at and not waiting.finish_reason
    process.resume()
    steps_until_finished(engine, waiting)
    assert waiting.completion() == expected


@pytest.mark.usefixtures("no_processes")
def test_a_process_that_ends_takes_only_its_request_with_it(engine: Engine) -> None:
    plain = SamplingParams(max_tokens=40)
    expected = engine.generate(QUESTION, sampling=plain).text
    other, structured_one, second = run(
        engine, plain, SamplingParams(grammar=WORDS, max_tokens=60), SamplingParams(grammar=WORDS)
    )
    until(lambda: engine.step() and len(structured_one.tokens) >= 2)
    assert structured_one.matcher is not None
    killed = min(processes(engine.processor.tokenizer), key=lambda process: process.pid)
    killed.kill()
    steps_until_finished(engine, other, structured_one, second)
    assert isinstance(structured_one.error, GrammarProcessEnded)
    assert other.completion().text == expected
    assert second.finish_reason == "stop" and second.error is None


@pytest.mark.usefixtures("no_processes")
def test_a_grammar_whose_process_is_killed_can_be_compiled_again(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = []

    def stop() -> bool:
        for process in processes(tokenizer):
            process.kill()
            killed.append(process)
        return False

    with pytest.raises(GrammarProcessEnded):
        compile_grammar(NEVER_COMPILES, tokenizer, stop)
    assert killed
    monkeypatch.setattr(structured.ForkServer, "start", fail)
    with pytest.raises(GrammarProcessEnded):
        compile_grammar(WORDS, tokenizer)
    monkeypatch.undo()
    assert compile_grammar(WORDS, tokenizer).matcher().ready


def fail(*_: object, **__: object) -> None:
    raise OSError("no memory")


@pytest.mark.skipif(sys.platform != "linux", reason="system calls are filtered on Linux")
def test_a_process_has_no_secrets_and_few_system_calls(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYPHI_API_KEY", "secret")
    structured._cached_starter.cache_clear()
    grammar = compile_grammar(WORDS, tokenizer)
    process = only_process(tokenizer)
    for one in (process, process.parent()):
        assert one is not None
        assert "secret" not in one.environ().values() and "HOME" not in one.environ()
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (0, 0)
    status = Path(f"/proc/{process.pid}/status").read_text()
    if os.uname().machine in MACHINES:
        assert "Seccomp:\t2" in status
    assert grammar.process is not None
    grammar.process.close()


@pytest.mark.usefixtures("no_processes")
def test_after_the_first_process_has_ended_another_is_started(engine: Engine) -> None:
    sampling = SamplingParams(grammar=WORDS)
    expected = engine.generate(QUESTION, sampling=sampling)
    first = structured._cached_starter(engine.processor.tokenizer).process
    (request,) = run(engine, sampling)
    until(lambda: engine.step() and request.tokens)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    steps_until_finished(engine, request)  # its own process goes on
    assert request.completion() == expected
    assert engine.generate(QUESTION, sampling=sampling) == expected


@pytest.mark.usefixtures("no_processes")
def test_a_first_process_that_is_ending_is_replaced(tokenizer: Tokenizer) -> None:
    first = structured._cached_starter(tokenizer)
    process = first.process
    first._control.shutdown(socket.SHUT_RDWR)  # the system is ending it, which isn't known yet
    assert compile_grammar(WORDS, tokenizer).matcher().ready
    assert structured._cached_starter(tokenizer).process is not process


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("times", few([50, 250], 1))
def test_processes_that_end_while_they_are_killed_end_no_others(
    tokenizer: Tokenizer, times: int
) -> None:
    """And all are reaped. The first process ended here within a thousand when it had a handler of SIGCHLD."""
    first, dice = structured._cached_starter(tokenizer).process, random.Random(0)
    invalid = Grammar("regex", "(")
    for _ in range(times):
        running = [structured.MatcherProcess(invalid, tokenizer) for _ in range(4)]
        running[0].wait(1)
        time.sleep(dice.random() * 0.002)
        for process in running:
            process.close()
    assert compile_grammar(WORDS, tokenizer).matcher().ready
    assert structured._cached_starter(tokenizer).process is first
    until(lambda: not psutil.Process(first.pid).children())


@pytest.mark.usefixtures("no_processes")
def test_an_invalid_grammar_ends_a_request_that_did_not_wait_for_it(engine: Engine) -> None:
    row = engine.rows.prepare(QUESTION)
    (request,) = engine.enter(row, SamplingParams(grammar=Grammar("regex", "(")))
    (plain,) = engine.enter(row, SamplingParams(max_tokens=3))
    steps_until_finished(engine, request, plain)
    assert "unclosed" in str(request.error) and plain.error is None


@pytest.mark.usefixtures("no_processes")
def test_a_message_that_is_read_late_counts(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may wait in the queue for longer than a process may take."""
    monkeypatch.setattr(structured, "WAIT", 0.0)
    (matcher,) = structured.open_matchers(WORDS, tokenizer, 1)
    assert matcher is not None
    structured.wait_for([matcher.process], 30)
    assert matcher.ready and matcher.process.error is None
    matcher.close()


@pytest.mark.usefixtures("no_processes")
def test_answers_of_a_request_share_a_process(engine: Engine) -> None:
    sampling = SamplingParams(grammar=WORDS, temperature=2.0, n=4, max_tokens=60)
    row = engine.rows.prepare(QUESTION)
    requests = engine.enter(row, sampling)
    until(lambda: engine.step() and all(r.tokens for r in requests))
    assert len(processes(engine.processor.tokenizer)) == 1
    steps_until_finished(engine, *requests)
    answers = engine.generate(QUESTION, sampling=sampling)
    texts = [answers.text, *(other.text for other in answers.others)]
    assert [request.completion().text for request in requests] == texts
    assert len(set(texts)) > 1


@pytest.mark.usefixtures("no_processes")
def test_an_aborted_request_ends_its_process(engine: Engine) -> None:
    (request,) = run(engine, SamplingParams(grammar=WORDS))
    until(lambda: engine.step() and request.tokens)
    engine.abort(request)
    until(lambda: not processes(engine.processor.tokenizer))


@pytest.mark.usefixtures("no_processes")
def test_a_preempted_request_follows_its_grammar(engine: Engine) -> None:
    sampling = SamplingParams(grammar=WORDS, max_tokens=60)
    expected = engine.generate(QUESTION, sampling=sampling)
    (request,) = run(engine, sampling)
    until(lambda: engine.step() and len(request.tokens) >= 3)
    process = only_process(engine.processor.tokenizer)
    process.suspend()
    until(lambda: engine.step() and request.unsampled is not None)
    engine.scheduler.preempt(request)
    process.resume()
    steps_until_finished(engine, request)
    assert request.completion().text == expected.text


def test_the_last_token_allowed_may_be_the_last_of_the_grammar(engine: Engine) -> None:
    samplings = [
        SamplingParams(grammar=Grammar("regex", "[a-c]{8}"), max_tokens=most)
        for most in range(1, 14)
    ]
    answers = engine.generate_many([QUESTION] * len(samplings), sampling=samplings)
    for answer in answers:
        assert (answer.finish_reason == "stop") == (len(answer.text) == 8)
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory exist on Linux")
def test_memory_of_a_process_is_limited(tokenizer: Tokenizer) -> None:
    grammar = compile_grammar(WORDS, tokenizer)
    limit, _ = only_process(tokenizer).rlimit(psutil.RLIMIT_AS)
    assert PROCESS_MEMORY <= limit < PROCESS_MEMORY + (8 << 30)
    assert grammar.process is not None
    grammar.process.close()


def test_without_a_grammar_no_process_is_started(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise AssertionError("a process was started")

    structured._cached_starter.cache_clear()
    monkeypatch.setattr(structured, "ForkServer", refuse)
    engine.generate(QUESTION, sampling=SamplingParams(max_tokens=3))


def test_a_compiled_grammar_equals_its_source(tokenizer: Tokenizer) -> None:
    grammar = compile_grammar(WORDS, tokenizer)
    assert isinstance(grammar, CompiledGrammar)
    assert (grammar.format, grammar.text) == (WORDS.format, WORDS.text)
