"""A tiny random model, and conversations with images and audio."""

import pytest

from polyphi.engine.engine import Engine
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from tests.fixtures.engines import clip, fitted, make_engine, picture


@pytest.fixture
def engine(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Engine:
    return make_engine(fitted(tiny_config, tokenizer), tokenizer)


@pytest.fixture
def conversations() -> list[list[Message]]:
    """Text, image, audio, both, and a longer one: every adapter in one group."""
    return [
        [Message.user("the quick fox")],
        [Message.user(picture(), "what is this?")],
        [Message.user(clip(), "say it")],
        [Message.user(picture(50, 50), clip(0.3))],
        [
            Message.system("be brief"),
            Message.user("1 + 2"),
            Message.assistant("3"),
            Message.user("and then?"),
        ],
    ]
