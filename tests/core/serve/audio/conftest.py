import pytest
from fixtures.engines import end_answers

from polyphi.engine.engine import Engine


@pytest.fixture
def engine(engine: Engine) -> Engine:
    return end_answers(engine)
