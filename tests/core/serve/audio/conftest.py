"""Answers that end after about ten tokens."""

import pytest

from polyphi.engine.engine import Engine
from tests.fixtures.engines import end_answers


@pytest.fixture
def engine(engine: Engine) -> Engine:
    return end_answers(engine)


@pytest.fixture(scope="module")
def shared_engine(shared_engine: Engine) -> Engine:
    return end_answers(shared_engine)
