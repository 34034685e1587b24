"""A tiny random model, and a server with it in a thread of this process."""

from collections.abc import Iterator

import pytest
import torch
from fixtures.chats import Model
from fixtures.servers import Running, serving, tiny_engine

from polyphi.engine.engine import Engine
from polyphi.engine.sampling import Sampler
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings


@pytest.fixture
def engine(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Engine:
    return tiny_engine(tiny_config, tokenizer)


@pytest.fixture
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, Settings("tiny")) as server:
        yield server
        assert not engine.counters().requests


@pytest.fixture
def model(running: Running, monkeypatch: pytest.MonkeyPatch) -> Model:
    scripted, draw = Model(running), Sampler.draw

    def draw_text(self: Sampler, logits: torch.Tensor) -> int:
        logits = logits.clone()
        logits[scripted.token(sum(self._counts.values()))] = 1e4
        return draw(self, logits)

    monkeypatch.setattr(Sampler, "draw", draw_text)
    return scripted
