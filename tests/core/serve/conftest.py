"""A real server with a tiny random model, in a thread of this process, and clients for it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx2
import pytest
import uvicorn
from engine.conftest import fitted, make_engine, tokenizer  # noqa: F401
from starlette.requests import HTTPConnection

from polyphi.engine.engine import Engine
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer.server import Server
from polyphi.serve.app import create_app
from polyphi.serve.run import bind, uvicorn_config


@dataclass
class Running:
    """A server that answers at `url`."""

    url: str
    engine: Engine
    settings: Settings
    uvicorn: uvicorn.Server

    def client(self, key: str | None = None) -> httpx2.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        # Without certificates, which take milliseconds to read.
        return httpx2.Client(
            base_url=self.url, headers=headers, timeout=60, trust_env=False, verify=False
        )

    def idle(self) -> bool:
        """Whether no request is in progress and nothing is reserved."""
        counters = self.engine.counters()
        return counters.requests == 0 and counters.blocks_in_use == 0


@contextmanager
def serving(engine: Engine, settings: Settings) -> Iterator[Running]:
    app = create_app(engine, settings)
    listening = bind(replace(settings, port=0))
    port = listening.getsockname()[1]
    server = uvicorn.Server(uvicorn_config(app, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server didn't start"
            time.sleep(0.002)
        yield Running(f"http://127.0.0.1:{port}", engine, settings, server)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def request_of(server: Server, client: bytes) -> HTTPConnection:
    """A request of a client as AccessGuard passes it on."""
    state = {"tenant": b"", "client": client, "bytes": server.quotas.bytes.take(client, 0)}
    return HTTPConnection({"type": "http", "headers": [], "state": state})


def tiny_engine(config: ModelConfig, tokenizer: Tokenizer) -> Engine:  # noqa: F811
    """A context of 2,048 tokens, prompt included."""
    return make_engine(fitted(config, tokenizer, max_position_embeddings=2048), tokenizer)


@pytest.fixture
def engine(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Engine:  # noqa: F811
    return tiny_engine(tiny_config, tokenizer)


@pytest.fixture
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, Settings("tiny")) as server:
        yield server
        assert not engine.counters().requests
