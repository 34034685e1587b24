"""A model on a Hub of these tests, with empty caches."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import fake_hub, published
from tests.fixtures.fake_hub import Hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write(tmp_path_factory.mktemp("published") / "mini", "mini")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Iterator[Hub]:
    with fake_hub.clean_hub(monkeypatch, tmp_path) as server:
        server.add("owner/mini", folder)
        yield server
