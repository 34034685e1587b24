"""A tiny random model and a server with it in a thread of this process, for all tests of a module or for one."""

from collections.abc import Iterator

import pytest
import torch

from polyphi.engine.engine import Engine
from polyphi.engine.sampling import Sampler
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings
from tests.fixtures.chats import Model
from tests.fixtures.servers import Running, serving, tiny_engine, until


@pytest.fixture
def engine(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Engine:
    return tiny_engine(tiny_config, tokenizer)


@pytest.fixture
def fresh(engine: Engine, settings: Settings) -> Iterator[Running]:
    """A server with `engine`, for one test that changes it or counts from zero."""
    with serving(engine, settings) as server:
        yield server
        assert not engine.counters().requests


@pytest.fixture(scope="module")
def settings() -> Settings:
    """The options of `running` and `fresh`."""
    return Settings("tiny")


@pytest.fixture(scope="module")
def shared_engine(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Engine:
    return tiny_engine(tiny_config, tokenizer)


@pytest.fixture(scope="module")
def shared_server(shared_engine: Engine, settings: Settings) -> Iterator[Running]:
    with serving(shared_engine, settings) as server:
        yield server


@pytest.fixture
def running(shared_server: Running) -> Iterator[Running]:
    """The server of a module's tests, each of which leaves nothing in it."""
    yield shared_server
    until(shared_server.idle)


@pytest.fixture
def model(running: Running, monkeypatch: pytest.MonkeyPatch) -> Model:
    scripted, draw = Model(running), Sampler.draw

    def draw_text(self: Sampler, logits: torch.Tensor) -> int:
        logits = logits.clone()
        logits[scripted.token(sum(self._counts.values()))] = 1e4
        return draw(self, logits)

    monkeypatch.setattr(Sampler, "draw", draw_text)
    return scripted
