"""Corpora for the loop's tests, written once."""

from pathlib import Path

import pytest

from tests.core.train.small import write_corpora


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("corpora"))
