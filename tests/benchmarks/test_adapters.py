"""The benchmark of adapters under load, in short: it finds nothing wrong with our server, and notices what is wrong."""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx2
import pytest
from fixtures.servers import serving, tiny_engine

from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("adapters", "load", "load_live", "load_pool", "load_requests", "damaged_media")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, and the modules beside it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("adapters", BENCHMARKS / "adapters.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "adapters", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PROMPTS", 2)
    monkeypatch.setattr(module, "FORMS", module.FORMS[:3])
    yield module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.long
def test_no_request_is_answered_by_the_wrong_adapter(
    benchmark: ModuleType,
    tiny_config: ModelConfig,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    engine = tiny_engine(tiny_config, tokenizer)
    adapters = benchmark.write_adapters(tmp_path / "adapters", engine.model.config.decoder)
    settings = Settings(benchmark.BASE, adapter_folder=tmp_path / "adapters")
    with serving(engine, settings) as server:
        load = benchmark.Load(server.url, benchmark.BASE, adapters, 0)
        result = asyncio.run(load.run(os.getpid(), 24, 4))
    assert not result.errors
    assert result.ends.keys() <= {"right", "refused", "disconnected"} and result.ends["right"] > 5
    assert result.ends.total() - result.ends["refused"] == 24
    assert result.calls["load"] == result.calls["unload"] > 3
    assert sorted(engine.model.config.adapters) == ["speech", "vision"]


def test_what_is_wrong_is_noticed(benchmark: ModuleType) -> None:
    load = benchmark.Load("http://unused", benchmark.BASE, ["a", "b"], 0)
    prompt = load.prompts[0]
    load.alone = {(False, "a", prompt): "of a", (False, "b", prompt): "of b"}
    operator = benchmark.Operator(httpx2.AsyncClient(), ["a", "b"], load.result)
    period = benchmark.Period
    operator.periods["first"] = [period(None, 0.0, 2.0), period("a", 1.0, 4.0), period("b", 3.0)]

    def end(text: str, begin: float, status: int = 200) -> str:
        body = {"choices": [{"message": {"content": text}}]}
        response = httpx2.Response(status, json=body)
        return str(load.judge(operator, "first", "chat", prompt, response, begin))

    assert end("of b", 5.0) == "right" and end("of a", 5.0) == "wrong"
    assert end("of a", 3.5) == "right" and end("of a", 4.0) == "right"
    assert end("", 5.0, 404) == "lost" and end("", 1.5, 404) == "refused"
    assert end("of a", 1.5, 500) == "lost"
