"""Adapters come and go in a running engine: no request meets another one than its own, and nothing of one remains."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch

from polyphi.engine.added_adapters import UnknownAdapter
from polyphi.engine.engine import Engine
from polyphi.engine.request import NOBODY, adapter_name
from polyphi.model.config import AdapterConfig
from polyphi.quantization.quantize import quantize
from polyphi.types.batch import Batch
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.fixtures.adapter_folders import random_factors

LONG = [Message.user("abc xyz 123 qrs tuv " * 5)]
FEW = SamplingParams(max_tokens=12)
CONFIG = AdapterConfig(4, 1.0, 0.0)


def add(engine: Engine, seed: int, name: str = "mine") -> str:
    return engine.adapters.add(name, CONFIG, random_factors(engine.model, seed))


def tokens(engine: Engine, adapter: str | None) -> tuple[int, ...]:
    return engine.generate(LONG, sampling=FEW, adapter=adapter).tokens


def parameters(engine: Engine) -> Iterator[torch.Tensor]:
    yield from engine.model.parameters()


def test_another_adapter_under_the_same_name_shares_no_prefix(engine: Engine) -> None:
    """Nor does one that differs in its scale alone; the same one does."""
    factors = random_factors(engine.model, 1)
    results = []
    for scale in (0.25, 0.5, 0.25):
        scaled = {path: replace(one, scale=scale) for path, one in factors.items()}
        key = engine.adapters.add("mine", CONFIG, scaled)
        results.append(engine.generate(LONG, sampling=FEW, adapter=key))
        assert engine.adapters.remove(key).done()
        assert results[-1].adapter == "mine"
    assert results[0].tokens == results[2].tokens != results[1].tokens
    assert [result.cached > 0 for result in results] == [False, False, True]


def test_coming_and_going_leaves_other_prefixes_and_all_memory(engine: Engine) -> None:
    before = tokens(engine, None), tokens(engine, "speech")
    count = len(list(parameters(engine)))
    for seed in range(3):
        key = add(engine, seed)
        assert tokens(engine, key) not in before
        engine.adapters.remove(key).result(0)
    assert len(list(parameters(engine))) == count
    again = engine.generate(LONG, sampling=FEW, adapter="speech")
    assert (tokens(engine, None), again.tokens) == before and again.cached > 0
    assert not engine.adapters._prefixes._digests.keys() - {"speech"}
    with pytest.raises(UnknownAdapter):
        engine.adapters.remove(key)


def test_removing_waits_for_requests_under_way(engine: Engine) -> None:
    """In every phase: running, waiting, and prepared."""
    first, second = add(engine, 1), add(engine, 2)
    expected = tokens(engine, first), tokens(engine, second)
    running = engine.submit(LONG, sampling=FEW, adapter=first)
    engine.step()
    waiting = engine.submit(LONG, sampling=FEW, adapter=first)
    other = engine.submit(LONG, sampling=FEW, adapter=second)
    removed = engine.adapters.remove(first)
    while not (running.finish_reason and waiting.finish_reason and other.finish_reason):
        assert not removed.done()
        engine.step()
    engine.step()
    assert removed.done() and first not in engine.model.config.adapters
    assert tuple(running.tokens) == tuple(waiting.tokens) == expected[0]
    assert tuple(other.tokens) == expected[1]


def test_a_request_whose_adapter_went_meanwhile_gets_an_error_and_no_other(engine: Engine) -> None:
    key = add(engine, 1)
    row = engine.rows.prepare(LONG, FEW, key)
    unfinished_row: Future[Batch] = Future()
    (decoding,) = engine._enter(unfinished_row, FEW, NOBODY, 9)
    engine.adapters.remove(key).result(0)
    unfinished_row.set_result(row)
    other = engine.submit(LONG, sampling=FEW)
    again = add(engine, 2)
    with pytest.raises(UnknownAdapter):
        engine.enter(row, FEW)
    with pytest.raises(UnknownAdapter):
        engine.rows.prepare(LONG, FEW, key)
    while not (other.finish_reason and decoding.finish_reason):
        engine.step()
    assert isinstance(decoding.error, UnknownAdapter) and other.error is None
    assert not engine.counters().requests
    assert adapter_name(again) == adapter_name(key) and again != key


@pytest.mark.parametrize("scheme", ["int8", "int8-all"])
def test_on_a_quantized_model(engine: Engine, scheme: str) -> None:
    factors = random_factors(engine.model, 1)
    quantize(engine.model, scheme)
    before = tokens(engine, None)
    key = engine.adapters.add("mine", CONFIG, factors)
    assert tokens(engine, key) != before == tokens(engine, None)
    engine.adapters.remove(key).result(0)
    assert tokens(engine, None) == before
